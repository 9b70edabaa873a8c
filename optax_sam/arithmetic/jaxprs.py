"""Walking a jaxpr: the same computation with every convolution in the form that XLA's CPU backend runs fast.

XLA compiles convolutions to fast kernels on a CPU only if they are in canonical form when they stand
inside a conditional or a loop: batch first, channels last, kernels spatial-input-output. Elsewhere
it rewrites them itself. The gradients of a convolution are convolutions in other forms, and are
then compiled to naive loops, tens of times slower (jax-ml/jax#12868).
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from optax_sam.engine import checks

_JAXPRS = (jex.Jaxpr, jex.ClosedJaxpr)

# JAX 0.10 has renamed what the type of an array says of manual axes.
_MANUAL = "manual_axis_type" if hasattr(jax.core.ShapedArray, "manual_axis_type") else "vma"


def canonical_convolutions(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`fn` with every convolution as transpose, canonical convolution, transpose back.

    The result is the same function (equal to float rounding; bit for bit except where grouped
    convolutions are summed in another order). It reaches convolutions inside `jit`, `custom_jvp` and
    `custom_vjp` calls, `checkpoint`, `scan`, `while_loop`, `cond` and `shard_map`, and leaves every
    other equation alone. Take derivatives first: `canonical_convolutions(jax.grad(loss))`, since the
    derivative of a canonical convolution is not canonical.

    On other backends than the CPU nothing is changed: `fn` itself is called.

    Args:
      fn: a function of pytrees of arrays, which JAX can trace.

    Returns:
      A function with the signature of `fn`.

    Raises:
      TypeError: `fn` is no function.

    Cost:
      None in straight-line code (XLA makes the same rewrite there). One more trace of `fn`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from optax_sam import canonical_convolutions
      >>> blur = lambda x: jnp.convolve(x, jnp.ones(3), mode="same")
      >>> print(canonical_convolutions(blur)(jnp.array([0.0, 3.0, 0.0])))
      [3. 3. 3.]
    """
    checks.function("fn", fn, "a function of pytrees of arrays, such as jax.grad(loss)")

    @functools.wraps(fn)
    def rewritten(*args, **kwargs):
        if jax.default_backend() != "cpu":
            return fn(*args, **kwargs)
        # As a new function: of one that it knows JAX returns the old trace, whatever the function reads now.
        traced = jax.make_jaxpr(lambda *args, **kwargs: fn(*args, **kwargs), return_shape=True)
        jaxpr, shape = traced(*args, **kwargs)
        jaxpr = with_arrays(jaxpr)
        flat = canonical(jaxpr)(*jaxpr.consts, *jax.tree.leaves((args, kwargs)))
        return jax.tree.unflatten(jax.tree.structure(shape), flat)

    return rewritten


def canonical(closed: jex.ClosedJaxpr) -> Callable[..., list[Any]]:
    """A jaxpr as a function of its constants and arguments; on a CPU with canonical convolutions."""
    jaxpr, number = closed.jaxpr, len(closed.consts)
    if jax.default_backend() == "cpu" and _has_convolution(jaxpr):
        return lambda *arrays: _evaluate(jaxpr, arrays[:number], arrays[number:])
    return lambda *arrays: jex.jaxpr_as_fun(jex.ClosedJaxpr(jaxpr, arrays[:number]))(*arrays[number:])


def with_arrays(closed: jex.ClosedJaxpr) -> jex.ClosedJaxpr:
    """The same jaxpr with arrays of JAX as its constants, for whoever runs it again.

    A trace keeps constants as arrays of NumPy, which the rule of a `custom_vjp` that was called with
    `jnp.asarray(x)` does not expect: those cannot be indexed by what is traced, and have no `at`. The arrays
    are concrete, for rules that did mean NumPy.
    """

    def of_rule(equation):
        if not equation.primitive.name.startswith("custom_"):
            return equation
        atoms = [jex.Literal(_array(v.val), v.aval) if _is_literal(v) else v for v in equation.invars]
        return equation.replace(invars=atoms)

    equations = list(map(of_rule, closed.jaxpr.eqns))
    return jex.ClosedJaxpr(closed.jaxpr.replace(eqns=equations), list(map(_array, closed.consts)))


def _array(constant: Any) -> Any:
    is_of_numpy = hasattr(constant, "__array__") and not isinstance(constant, jax.Array)
    if not is_of_numpy or constant.dtype == jax.dtypes.float0:
        return constant
    with jax.ensure_compile_time_eval():
        return jnp.asarray(constant)


def _is_literal(atom: Any) -> bool:
    return isinstance(atom, jex.Literal)


def _evaluate(jaxpr: jex.Jaxpr, consts: Sequence[Any], args: Sequence[Any]) -> list[Any]:
    """Runs the equations of `jaxpr` one by one, convolutions in canonical form."""
    values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args), strict=True))
    last_equation = {v: n for n, equation in enumerate(jaxpr.eqns) for v in _variables(equation)}
    kept = {atom for atom in jaxpr.outvars if not _is_literal(atom)}

    def read(atom):
        return atom.val if _is_literal(atom) else values[atom]

    for number, equation in enumerate(jaxpr.eqns):
        if equation.primitive is lax.conv_general_dilated_p:
            lhs, rhs = map(read, equation.invars)
            outputs = [_canonical_convolution(lhs, rhs, **equation.params)]
        elif equation.primitive.name == "shard_map" and _has_convolution(equation.params["jaxpr"]):
            outputs = _canonical_shard_map(equation.params)(*map(read, equation.invars))
        else:
            outputs = evaluate_equation(_with_canonical_jaxprs(equation), jaxpr, values)
        values.update(zip(equation.outvars, outputs, strict=True))
        for variable in _variables(equation):  # where nothing is compiled, memory is freed here
            if last_equation[variable] == number and variable not in kept:
                del values[variable]
    return [read(atom) for atom in jaxpr.outvars]


def evaluate_equation(equation: jex.JaxprEqn, jaxpr: jex.Jaxpr, values: dict[Any, Any]) -> list[Any]:
    """What one equation of `jaxpr` gives, by the values of the variables that it reads."""
    variables = _variables(equation)
    return jex.jaxpr_as_fun(_alone(equation, variables, jaxpr))(*(values[v] for v in variables))


def inlined(closed: jex.ClosedJaxpr) -> jex.ClosedJaxpr:
    """The same computation with the equations of calls (`jit`, `checkpoint`) in their place."""

    def run(jaxpr, consts, args):
        values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args), strict=True))

        def read(atom):
            return atom.val if _is_literal(atom) else values[atom]

        for equation in jaxpr.eqns:
            inner = equation.params.get("jaxpr")
            if equation.primitive.name in ("jit", "pjit", "closed_call", "checkpoint", "remat2"):
                consts = inner.consts if isinstance(inner, jex.ClosedJaxpr) else ()
                outputs = run(_open(inner), consts, [read(atom) for atom in equation.invars])
            else:
                outputs = evaluate_equation(equation, jaxpr, values)
            values.update(zip(equation.outvars, outputs, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    inputs = [like(variable.aval) for variable in closed.jaxpr.invars]
    return with_arrays(jax.make_jaxpr(lambda *args: run(closed.jaxpr, closed.consts, args))(*inputs))


def _variables(equation: jex.JaxprEqn) -> list[Any]:
    """The variables that an equation reads, each once."""
    return list(dict.fromkeys(v for v in equation.invars if not _is_literal(v)))


def _alone(equation: jex.JaxprEqn, variables: list[Any], jaxpr: jex.Jaxpr) -> jex.ClosedJaxpr:
    """A jaxpr of one equation: JAX then evaluates it with its own context and source line."""
    return jex.ClosedJaxpr(
        jaxpr.replace(
            constvars=[],
            invars=variables,
            outvars=equation.outvars,
            eqns=[equation],
            effects=equation.effects,
            debug_info=jaxpr.debug_info.with_unknown_names(),
        ),
        (),
    )


def _with_canonical_jaxprs(equation: jex.JaxprEqn) -> jex.JaxprEqn:
    """The equation with every jaxpr among its parameters rewritten."""
    return equation.replace(params={name: _mapped(_rewritten, v) for name, v in equation.params.items()})


def _mapped(function: Callable[[Any], Any], value: Any) -> Any:
    """`value` with another jaxpr in the place of each one in it; where none changes, `value` itself."""
    if isinstance(value, _JAXPRS):
        return function(value)
    if isinstance(value, dict):
        changed = {name: new for name, v in value.items() if (new := _mapped(function, v)) is not v}
        return value | changed if changed else value
    if not isinstance(value, tuple | list):
        return value
    parts = [_mapped(function, v) for v in value]
    if all(new is v for new, v in zip(parts, value, strict=True)):
        return value
    return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)


def jaxprs_in(value: Any) -> Iterator[Any]:
    """The jaxprs in tuples, named ones too, lists and dicts, however deep."""
    if isinstance(value, _JAXPRS):
        yield value
    elif isinstance(value, tuple | list | dict):
        for part in value.values() if isinstance(value, dict) else value:
            yield from jaxprs_in(part)


def _canonical_shard_map(params: dict[str, Any]) -> Callable[..., Any]:
    """The same `shard_map`, anew: its jaxpr makes sense only where its mesh axes are bound."""

    def evaluate(*args):
        closed = with_arrays(jex.ClosedJaxpr(_open(params["jaxpr"]), ()))
        return tuple(_evaluate(closed.jaxpr, (), args))

    axes = "newly_manual_axes" if "newly_manual_axes" in params else "manual_axes"  # before JAX 0.10.2
    return jax.shard_map(
        evaluate,
        mesh=params["mesh"],
        in_specs=tuple(params["in_specs"]),
        out_specs=tuple(params["out_specs"]),
        axis_names=set(params[axes]),
        check_vma=params["check_vma"],
    )


@functools.lru_cache(maxsize=256)  # else a jitted loss would be compiled anew in every eager step
def _rewritten(jaxpr: jex.Jaxpr | jex.ClosedJaxpr) -> jex.Jaxpr | jex.ClosedJaxpr:
    """A jaxpr of the same inputs and outputs, with canonical convolutions."""
    closed = jaxpr if isinstance(jaxpr, jex.ClosedJaxpr) else jex.ClosedJaxpr(jaxpr, ())
    inputs = [variable.aval for variable in closed.jaxpr.invars]
    known = all(isinstance(aval, jax.core.ShapedArray) for aval in inputs)
    if not known or not _has_convolution(closed.jaxpr):
        return jaxpr
    rewritten = jax.make_jaxpr(functools.partial(_evaluate, closed.jaxpr, closed.consts))
    result = rewritten([like(aval) for aval in inputs])
    return result if isinstance(jaxpr, jex.ClosedJaxpr) else result.jaxpr


def like(aval: Any, mesh: Any = None, axis: Any = None) -> jax.ShapeDtypeStruct:
    """What traces to an argument of the very same type.

    On another mesh, where one is given, and there with the first axis split over an axis of it.
    """
    place = aval.sharding
    if mesh is not None:
        first = (axis, *place.spec[1:]) if axis and aval.ndim else place.spec
        place = NamedSharding(mesh, PartitionSpec(*first))
    return jax.ShapeDtypeStruct(
        aval.shape,
        aval.dtype,
        sharding=place,
        weak_type=aval.weak_type,
        **{_MANUAL: getattr(aval, _MANUAL)},
    )


def _has_convolution(jaxpr: jex.Jaxpr | jex.ClosedJaxpr) -> bool:
    return any(
        equation.primitive is lax.conv_general_dilated_p
        or any(map(_has_convolution, jaxprs_in(equation.params)))
        for equation in _open(jaxpr).eqns
    )


def equations_of(jaxpr: jex.Jaxpr | jex.ClosedJaxpr) -> Iterator[jex.JaxprEqn]:
    """All equations of a jaxpr, and of those inside it."""
    for equation in _open(jaxpr).eqns:
        yield equation
        for inner in jaxprs_in(equation.params):
            yield from equations_of(inner)


_CALLS = frozenset("jit pjit closed_call core_call checkpoint remat2 custom_jvp_call custom_vjp_call".split())


def called_by(equation: jex.JaxprEqn) -> Any:
    """The jaxpr that an equation calls once, with its own inputs and outputs; None where it calls none."""
    if equation.primitive.name not in _CALLS:
        return None
    return equation.params.get("jaxpr", equation.params.get("call_jaxpr"))


def handed_back(jaxpr: jex.Jaxpr | jex.ClosedJaxpr) -> list[int | None]:
    """For each output the place of the input that it is, through calls; None where it is computed."""
    jaxpr = _open(jaxpr)
    places = {variable: place for place, variable in enumerate(jaxpr.invars)}
    for equation in jaxpr.eqns:
        if (inner := called_by(equation)) is not None:
            for variable, place in zip(equation.outvars, handed_back(inner), strict=True):
                given = None if place is None else equation.invars[place]
                if isinstance(given, jex.Var) and given in places:
                    places[variable] = places[given]
    return [places.get(x) if isinstance(x, jex.Var) else None for x in jaxpr.outvars]


def parts_of_scan(equation: jex.JaxprEqn) -> tuple[int, int]:
    """How many constants a scan has, and how much it carries; versions of JAX call them differently."""
    inside = _open(equation.params["jaxpr"])

    def is_alike(outer: Any, inner: Any) -> bool:
        return outer.aval.ndim == inner.aval.ndim

    carried = sum(map(is_alike, equation.outvars, inside.outvars))
    looped = len(equation.invars) - sum(map(is_alike, equation.invars, inside.invars))
    return len(equation.invars) - looped - carried, carried


def _open(jaxpr: jex.Jaxpr | jex.ClosedJaxpr) -> jex.Jaxpr:
    return jaxpr.jaxpr if isinstance(jaxpr, jex.ClosedJaxpr) else jaxpr


def _canonical_convolution(lhs, rhs, *, dimension_numbers, **params):
    """One convolution in the form (batch, space..., channels) x (space..., in, out)."""
    lhs_spec, rhs_spec, out_spec = dimension_numbers
    rank = len(lhs_spec)
    space = tuple(range(1, rank - 1))
    batch_first = (0, rank - 1, *space)
    kernel_last = (rank - 1, rank - 2, *range(rank - 2))
    to_lhs = (lhs_spec[0], *lhs_spec[2:], lhs_spec[1])
    to_rhs = (*rhs_spec[2:], rhs_spec[1], rhs_spec[0])
    out = lax.conv_general_dilated_p.bind(
        lax.transpose(lhs, to_lhs),
        lax.transpose(rhs, to_rhs),
        dimension_numbers=lax.ConvDimensionNumbers(batch_first, kernel_last, batch_first),
        **params,
    )
    from_out = [0] * rank
    for position, axis in enumerate((out_spec[0], *out_spec[2:], out_spec[1])):
        from_out[axis] = position
    return lax.transpose(out, from_out)
