"""Programs of a loss that is measured repeatedly: traced each time, compiled when the trace is new."""

import functools
import hashlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.extend.core as jex
import numpy as np

from optax_sam.arithmetic.jaxprs import canonical_convolutions

_COMPILED: dict[Any, Callable[..., Any]] = {}

# What says where arrays lie. A mesh can be called, as a decorator, and its text leaves out its devices.
_PLACES = (jax.sharding.Mesh, jax.sharding.AbstractMesh, jax.sharding.Sharding)


def traced_anew(function: Callable[..., Any], loss_fn: Any) -> Callable[..., Any]:
    """`function(loss_fn, *args)`, traced at the first arguments of each shape.

    What the loss reads beside its arguments, an attribute, a global, an array, is that of the trace. An equal
    trace runs what was compiled for an earlier one. Its constants are arguments. A trace that calls the host,
    as `jax.pure_callback` does, is compiled anew: its text does not tell which function it calls.
    """
    seen: dict[Any, Any] = {}

    def run(*args: Any) -> Any:
        leaves, treedef = jax.tree.flatten((loss_fn, *args))
        key = treedef, tuple(map(jax.typeof, leaves)), jax.sharding.get_abstract_mesh()
        if key not in seen:
            seen[key] = _trace(function, loss_fn, *args)
        program, constants, structure = seen[key]
        return jax.tree.unflatten(structure, program(constants, leaves))

    return run


def _trace(function: Callable[..., Any], *args: Any) -> tuple[Callable[..., Any], list[Any], Any]:
    # As a new function: of one that it knows JAX returns the old trace.
    rewritten = canonical_convolutions(lambda *args: function(*args))
    closed, shapes = jax.make_jaxpr(lambda *args: rewritten(*args), return_shape=True)(*args)
    key = _digest(closed), _places(closed.jaxpr), jax.sharding.get_abstract_mesh()
    program = jax.jit(functools.partial(_run, closed.jaxpr))
    if not _calls_host(closed.jaxpr):
        program = _COMPILED.setdefault(key, program)
    return program, closed.consts, jax.tree.structure(shapes)


def _run(jaxpr: Any, constants: list[Any], leaves: list[Any]) -> list[Any]:
    return jex.jaxpr_as_fun(jex.ClosedJaxpr(jaxpr, constants))(*leaves)


def _digest(closed: jex.ClosedJaxpr) -> str:
    """Of the equations, and of the arrays inside them; the outermost are arguments."""
    text = re.sub(r" at 0x[0-9a-f]+", "", str(closed.jaxpr))  # of functions that have been traced already
    digest = hashlib.sha256(text.encode())
    for constant in _inner_constants(closed.jaxpr):
        is_key = jax.dtypes.issubdtype(constant.dtype, jax.dtypes.prng_key)
        digest.update(np.asarray(jax.random.key_data(constant) if is_key else constant).tobytes())
    return digest.hexdigest()


def _inner_constants(jaxpr: Any) -> Iterator[Any]:
    for equation in _equations(jaxpr):
        for atom in equation.invars:  # arrays are literals where jax_use_simplified_jaxpr_constants is set
            if isinstance(atom, jex.Literal) and np.ndim(atom.val):
                yield atom.val
        for value in _read(equation):
            if isinstance(value, jex.ClosedJaxpr):
                yield from value.consts
            elif isinstance(value, np.ndarray | jax.Array):
                yield value


def _places(jaxpr: Any) -> tuple[Any, ...]:
    return tuple(
        value for equation in _equations(jaxpr) for value in _read(equation) if isinstance(value, _PLACES)
    )


def _calls_host(jaxpr: Any) -> bool:
    """Whether an equation holds a function that is no jaxpr: its text does not tell it from others.

    Those of `custom_jvp`, `custom_vjp` and `checkpoint` are asked while derivatives are traced, never run.
    """
    return any(
        callable(value) and not isinstance(value, (type, *_PLACES))
        for equation in _equations(jaxpr)
        if not equation.primitive.name.startswith(("custom_jvp", "custom_vjp", "checkpoint", "remat"))
        for param in equation.params.values()
        for value in (param if type(param) in (tuple, list) else [param])
    )


def _equations(jaxpr: Any) -> Iterator[Any]:
    """All of them, those of inner jaxprs too."""
    for equation in jaxpr.eqns:
        yield equation
        for value in _read(equation):
            if _is_jaxpr(value):
                yield from _equations(getattr(value, "jaxpr", value))


def _read(equation: Any) -> list[Any]:
    return jax.tree.leaves(list(equation.params.values()), is_leaf=_is_jaxpr)


def _is_jaxpr(value: Any) -> bool:
    return isinstance(value, jex.ClosedJaxpr | jex.Jaxpr)
