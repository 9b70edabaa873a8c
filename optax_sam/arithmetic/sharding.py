"""What lies where: on meshes with automatic and explicit axes, and inside shard_map."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

try:
    from jax.experimental.shard_alike import shard_alike
except ImportError:  # JAX 0.12 has no such function
    shard_alike = None


def whole_over(x: jax.Array, axis_name: str) -> jax.Array:
    """`x` split no more over one mesh axis, where its type says that it is."""
    return placed(x, x, *(without(axis, axis_name) for axis in spec_of(x)))


def replicated(x: jax.Array) -> jax.Array:
    """`x` whole on every device where its type says how it is split; else `x` itself."""
    return placed(x, x, *(None,) * x.ndim)


def varying_axes(tree: Any) -> frozenset[str]:
    """The axes of the surrounding `jax.shard_map` along which any array of the tree differs."""
    return frozenset().union(*(_varying(jax.typeof(x)) for x in jax.tree.leaves(tree)))


def varying_over(tree: Any, axes: frozenset[str]) -> Any:
    """The tree with arrays that differ along these axes, so that each device has derivatives of its own.

    The derivative with respect to what is the same on all devices would be the sum over them.
    """

    def on_leaf(x):
        missing = tuple(sorted(axes - _varying(jax.typeof(x))))
        return lax.pcast(x, missing, to="varying") if missing else x

    return jax.tree.map(on_leaf, tree)


def zeros_of(aval: Any) -> jax.Array:
    """Zeros of a type, which differ along the same axes."""
    return varying_over(jnp.zeros(aval.shape, aval.dtype), _varying(aval))


def like_row(x: jax.Array) -> jax.ShapeDtypeStruct:
    """What traces to one row of `x`, which differs along the same axes."""
    aval, shape = jax.typeof(x), x.shape[1:]
    if not _varying(aval):
        return jax.ShapeDtypeStruct(shape, x.dtype)
    manual = {"vma": aval.vma} if hasattr(aval, "vma") else {"manual_axis_type": aval.manual_axis_type}
    return jax.ShapeDtypeStruct(shape, x.dtype, sharding=place_on(x, *spec_of(x)[1:]), **manual)


def psum_over_replicas(x: Any, params: Any) -> Any:
    """The sum of `x` over those devices of a surrounding `jax.shard_map` that have the same `params`."""
    axes = varying_axes(x) - varying_axes(params)
    return lax.psum(x, tuple(sorted(axes))) if axes else x


def pmax_over_replicas(x: Any, params: Any) -> Any:
    """The largest `x` of those devices of a surrounding `jax.shard_map` that have the same `params`."""
    axes = varying_axes(x) - varying_axes(params)
    return lax.pmax(x, tuple(sorted(axes))) if axes else x


def first_of_replicas(has: jax.Array, params: Any) -> tuple[jax.Array, jax.Array]:
    """Whether this device is the first that `has` (`bool[]`), among replicas; whether any has."""
    axes = tuple(sorted(varying_axes(has) - varying_axes(params)))
    if not axes:
        return has, has
    number = lax.axis_index(axes)
    first = lax.pmin(jnp.where(has, number, jnp.iinfo(number.dtype).max), axes)
    return has & (number == first), first < jnp.iinfo(number.dtype).max


def num_parts(batch: Any, params: Any) -> int:
    """Over how many devices of a surrounding `jax.shard_map` with the same `params` a batch is split."""
    mesh = jax.sharding.get_abstract_mesh()
    return math.prod(mesh.shape[axis] for axis in varying_axes(batch) - varying_axes(params))


def first_of_all_parts(batch: Any, number: int, params: Any, num_real: Any = None) -> Any:
    """Inside a `jax.shard_map`, the first rows of the batch of all devices with the same `params`, on each.

    The parts stand in the order of the mesh. A batch that is not split so is handed back. Where only the
    first `num_real` (`int32[]`) rows of each part are real, those of all parts come before the others.
    """
    axes = varying_axes(batch) - varying_axes(params)
    axes = tuple(axis for axis in jax.sharding.get_abstract_mesh().axis_names if axis in axes)
    if not axes:
        return batch

    index, size = lax.axis_index(axes), jax.tree.leaves(batch)[0].shape[0]
    places = row = jnp.arange(size, dtype=jnp.int32)
    if num_real is None:
        places += index * size
    else:
        mine = jnp.minimum(num_real, size)
        real = lax.all_gather(mine, axes)
        before = jnp.sum(jnp.where(jnp.arange(real.size) < index, real, 0), dtype=jnp.int32)
        behind = jnp.sum(real, dtype=jnp.int32) + index * size - before
        places = jnp.where(row < mine, before + row, behind + row - mine)

    def on_leaf(x):
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(on_leaf(jax.random.key_data(x)), impl=jax.random.key_impl(x))
        kind = x.dtype
        if kind.itemsize < 4:  # not all devices add up narrow numbers and flags
            x = x.astype(jnp.float32 if jnp.issubdtype(kind, jnp.floating) else jnp.int32)
        own = jnp.zeros([number, *x.shape[1:]], x.dtype).at[places].set(x, mode="drop")
        return lax.psum(own, axes).astype(kind)

    return jax.tree.map(on_leaf, batch)


def unchecked_axes() -> tuple[str, ...]:
    """The named axes of a surrounding `pmap` or `shard_map(check_vma=False)`.

    There no type tells which arrays differ between the devices. The axis of a `pmap` without a name is not
    among them: nothing can be summed over it, so that each device has a model of its own.
    """
    axes = jax.sharding.get_abstract_mesh().manual_axes
    named = [axis for axis in axes if not axis.startswith(_NAMELESS)]
    return tuple(axis for axis in named if not _varying(jax.typeof(lax.axis_index(axis))))


_NAMELESS = ("_internal_pmap_axis_name", "<axis 0x")
"""How JAX calls the axis of a `pmap` that the user has given no name."""


def is_inside_shard_map() -> bool:
    """Whether this is traced inside a `jax.shard_map` or `jax.pmap`."""
    return bool(jax.sharding.get_abstract_mesh().manual_axes)


def cond(condition: Any, on_true: Callable[..., Any], on_false: Callable[..., Any], *operands: Any) -> Any:
    """`lax.cond` whose branches may differ, inside a `jax.shard_map`, in what varies over its devices."""
    if not jax.sharding.get_abstract_mesh().manual_axes:
        return lax.cond(condition, on_true, on_false, *operands)
    branches = [jax.make_jaxpr(branch)(*operands) for branch in (on_true, on_false)]
    pairs = zip(*(branch.out_avals for branch in branches), strict=False)
    axes = [_varying(one) | _varying(other) for one, other in pairs]

    def varying_alike(branch):
        def run(*operands):
            leaves, treedef = jax.tree.flatten(branch(*operands))
            missing = [tuple(a - _varying(jax.typeof(x))) for x, a in zip(leaves, axes, strict=False)]
            return treedef.unflatten(
                [lax.pcast(x, m, to="varying") if m else x for x, m in zip(leaves, missing, strict=False)]
            )

        return run

    return lax.cond(condition, varying_alike(on_true), varying_alike(on_false), *operands)


def alike(tree: Any, like: Any) -> Any:
    """The arrays of `tree`, split over devices as those of `like`.

    The compiler is told: what leaves a conditional it would gather on every device. With JAX 0.12 nothing
    tells it, and it does not.
    """
    if shard_alike is None or is_inside_shard_map():
        return tree

    def on_leaf(x, y):
        return shard_alike(x, y)[0] if isinstance(x, jax.core.Tracer) and x.ndim else x

    return jax.tree.map(on_leaf, tree, like)


def _varying(aval: Any) -> frozenset[str]:
    """The mesh axes along which a type says that its array differs; JAX 0.10 has renamed it."""
    return aval.vma if hasattr(aval, "vma") else aval.manual_axis_type.varying


def split_over(x: jax.Array, axis_name: str) -> jax.Array:
    """`x` with its first axis split over a mesh axis, where the type of `x` can say so."""
    mesh = jax.sharding.get_abstract_mesh()
    kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    if kinds[axis_name] != AxisType.Explicit:
        return x
    return jax.sharding.reshard(x, NamedSharding(mesh, PartitionSpec(axis_name, *(None,) * (x.ndim - 1))))


def split_as(x: jax.Array, other: jax.Array) -> jax.Array:
    """`x` with its first axis split over devices as that of `other`, where its type says how."""
    axis = spec_of(other)[0]
    return x if axis is None else placed(x, other, axis, *(None,) * (x.ndim - 1))


def split_like(tree: Any, like: Any) -> Any:
    """The arrays of `tree` split over devices as those of `like`, where their types say how."""
    return jax.tree.map(lambda x, y: placed(x, y, *spec_of(y)), tree, like)


def placed(x: jax.Array, other: jax.Array, *spec: Any) -> jax.Array:
    """`x` split over these axes of the mesh of `other`, or of its own where it is split already."""
    return x if spec == spec_of(x) else jax.sharding.reshard(x, place_on(x if is_split(x) else other, *spec))


def place_on(x: jax.Array, *spec: Any) -> NamedSharding:
    """The place on the mesh of `x`, which need not be the one of a surrounding `jax.set_mesh`."""
    return NamedSharding(jax.typeof(x).sharding.mesh, PartitionSpec(*spec))


def is_split(x: jax.Array) -> bool:
    """Whether the type of `x` says that it is split over devices."""
    return any(axis is not None for axis in spec_of(x))


def spec_of(x: Any) -> tuple[Any, ...]:
    """The mesh axes along which the type of `x` says that it is split, one entry per axis of `x`."""
    sharding = getattr(jax.typeof(x), "sharding", None)
    spec = () if sharding is None else tuple(sharding.spec)
    return spec + (None,) * (x.ndim - len(spec))


def without(axis: Any, axis_name: str) -> Any:
    """One entry of a spec without an axis of the mesh."""
    names = axis if isinstance(axis, tuple) else (axis,)
    return axis if axis_name not in names else tuple(n for n in names if n != axis_name) or None


def num_devices(x: jax.Array) -> int:
    """Over how many devices the type of `x` says that its first axis is split."""
    axis = spec_of(x)[0]
    if axis is None:
        return 1
    mesh = jax.typeof(x).sharding.mesh
    return math.prod(mesh.shape[name] for name in (axis if isinstance(axis, tuple) else (axis,)))
