"""What one device of a manual mesh axis computes, where the function names the axis.

Inside a `shard_map` no array is placed along an axis that is manual, and JAX refuses a function that asks for
it: `with_sharding_constraint(x, PartitionSpec("data"))`, `reshard`, `out_sharding=`. Such a function is
traced where the axis is what it is outside. An explicit one with one device, which divides all rows. Places
change no number, so that its equations then run where the axis is manual, and name it no more.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from optax_sam.arithmetic import jaxprs, sharding


def as_on_one_device(
    function: Callable[..., Any], axis_name: str, kind: AxisType, is_rows: Callable[[Any], bool]
) -> Callable[..., Any]:
    """`function` inside a `jax.shard_map` over an axis along which it may place arrays.

    Args:
      function: of pytrees of arrays.
      axis_name: an axis that is manual where the result is called.
      kind: what it is outside, automatic or explicit.
      is_rows: which parts of the arguments have examples as their first axis.
    """

    def traced(*args):
        with contextlib.suppress(Exception):  # a kernel of Pallas wants the axis manual, as it is
            return jax.make_jaxpr(function, return_shape=True)(*args)
        manual, is_explicit = jax.sharding.get_abstract_mesh(), kind == AxisType.Explicit
        # Types of an automatic axis say nothing of its size, and a place may name the user's own mesh.
        mesh = _with_axis(manual, axis_name, 1 if is_explicit else manual.shape[axis_name], kind)

        def typed(part):
            axis = axis_name if is_explicit and is_rows(part) else None
            return jax.tree.map(lambda x: jaxprs.like(jax.typeof(x), mesh, axis), part)

        with _in_use(mesh):
            inputs = jax.tree.map(typed, args, is_leaf=is_rows)
            return jax.make_jaxpr(function, return_shape=True)(*inputs)

    def run(*args):
        closed, shapes = traced(*args)
        if any(_names(equation, axis_name) for equation in jaxprs.equations_of(closed)):
            closed = _moved(closed, axis_name, jax.sharding.get_abstract_mesh().shape[axis_name])
        found = jex.jaxpr_as_fun(jaxprs.with_arrays(closed))(*jax.tree.leaves(args))
        arrays = [
            x if isinstance(x, jax.Array) else jnp.asarray(x, aval.dtype)  # a constant of the equations
            for x, aval in zip(found, closed.out_avals, strict=True)
        ]
        return jax.tree.unflatten(jax.tree.structure(shapes), arrays)

    return run


def _names(equation: jex.JaxprEqn, axis_name: str) -> bool:
    """Whether it stands on a mesh whose axis is not manual, or places an array along the axis."""
    place = equation.params.get("sharding")
    mesh = equation.ctx.cur_abstract_mesh
    kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    if kinds.get(axis_name, AxisType.Manual) != AxisType.Manual:
        return True
    is_placed = equation.primitive.name == "sharding_constraint" and isinstance(place, NamedSharding)
    return is_placed and any(sharding.without(axis, axis_name) != axis for axis in place.spec)


@functools.lru_cache(maxsize=256)  # a function that is called twice stays one in the program
def _moved(given: Any, axis_name: str, size: int) -> Any:
    """A jaxpr whose axis has one device, with the axis manual and of its size."""
    jaxpr = given.jaxpr if isinstance(given, jex.ClosedJaxpr) else given
    variables: dict[Any, Any] = {}

    def value(found):
        return _moved_value(found, axis_name, size)

    def atom(found):
        if isinstance(found, jex.Literal):
            return jex.Literal(found.val, value(found.aval))
        if found not in variables:
            variables[found] = type(found)(value(found.aval))
        return variables[found]

    def atoms(found):
        return list(map(atom, found))

    def equation(found):
        _check_shard_map(found, axis_name)
        params = {name: value(v) for name, v in found.params.items()}
        return found.replace(
            invars=atoms(found.invars),
            outvars=atoms(found.outvars),
            params=params | ({"concrete_mesh": None} if "concrete_mesh" in params else {}),
            ctx=_moved_context(found.ctx, axis_name, size),
        )

    inputs = {"constvars": atoms(jaxpr.constvars), "invars": atoms(jaxpr.invars)}
    equations = []
    for found in jaxpr.eqns:
        if _is_void(found, axis_name):
            variables[found.outvars[0]] = atom(found.invars[0])
        else:
            equations.append(equation(found))
    moved = jaxpr.replace(
        **inputs,
        eqns=equations,
        outvars=atoms(jaxpr.outvars),
        debug_info=jaxpr.debug_info.with_unknown_names(),
    )
    return jex.ClosedJaxpr(moved, given.consts) if isinstance(given, jex.ClosedJaxpr) else moved


def _is_void(equation: jex.JaxprEqn, axis_name: str) -> bool:
    """Whether it places an array on a mesh that has no axis left on which the compiler places arrays."""
    place = equation.params.get("sharding")
    if equation.primitive.name != "sharding_constraint" or not isinstance(place, NamedSharding):
        return False
    kinds = dict(zip(place.mesh.axis_names, place.mesh.axis_types, strict=True))
    return AxisType.Auto not in (kind for name, kind in kinds.items() if name != axis_name)


def _check_shard_map(equation: jex.JaxprEqn, axis_name: str) -> None:
    """Refuses a `shard_map` over the axis: it would be one inside another over the same devices."""
    params = equation.params
    axes = params.get("newly_manual_axes", params.get("manual_axes", ()))  # before JAX 0.10.2
    if equation.primitive.name == "shard_map" and axis_name in axes:
        raise ValueError(
            f"the loss has a shard_map over {axis_name!r}, but it sees one device of that axis: call the "
            f"mapped function itself, or name the other axes alone, jax.shard_map(..., axis_names=...)."
        )


def _moved_value(value: Any, axis_name: str, size: int) -> Any:
    """What an equation says of jaxprs, types, meshes, and places on them; all else as it is."""

    def moved(value):
        if isinstance(value, jex.Jaxpr | jex.ClosedJaxpr):
            return _moved(value, axis_name, size)
        if isinstance(value, jax.core.ShapedArray):
            return value.update(sharding=moved(value.sharding))
        if isinstance(value, NamedSharding):
            return NamedSharding(moved(value.mesh), moved(value.spec), memory_kind=value.memory_kind)
        if isinstance(value, Mesh):
            return moved(value.abstract_mesh)
        if isinstance(value, AbstractMesh):
            return _with_axis(value, axis_name, size, AxisType.Manual)
        if isinstance(value, PartitionSpec):
            return value.update(partitions=[sharding.without(axis, axis_name) for axis in value])
        if isinstance(value, dict):
            return {name: moved(v) for name, v in value.items()}
        if isinstance(value, tuple | list):
            parts = map(moved, value)
            return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
        return value

    return moved(value)


@functools.lru_cache(maxsize=256)
def _moved_context(context: Any, axis_name: str, size: int) -> Any:
    """Under which settings an equation is run, in the mesh where the axis is manual."""
    with context.manager:
        mesh = _with_axis(jax.sharding.get_abstract_mesh(), axis_name, size, AxisType.Manual)
        with _in_use(mesh):
            return jax.make_jaxpr(jax.lax.neg)(jax.ShapeDtypeStruct((), "float32")).eqns[0].ctx


def _with_axis(mesh: AbstractMesh, axis_name: str, size: int, kind: AxisType) -> AbstractMesh:
    """The mesh with another size and type of one axis, where it has it."""
    if axis_name not in mesh.axis_names:
        return mesh
    at = mesh.axis_names.index(axis_name)
    sizes, kinds = list(mesh.axis_sizes), list(mesh.axis_types)
    sizes[at], kinds[at] = size, kind
    return mesh.update(axis_sizes=tuple(sizes), axis_types=tuple(kinds))


@contextlib.contextmanager
def _in_use(mesh: AbstractMesh) -> Iterator[None]:
    """A mesh for what is traced, also where one of another size is in use."""
    none = AbstractMesh((), ())  # JAX goes from one size to another only by this one
    with jax.sharding.use_abstract_mesh(none), jax.sharding.use_abstract_mesh(mesh):
        yield
