"""Moving rows between devices as little as possible, on meshes with automatic and explicit axes."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec


def replicated(x: jax.Array) -> jax.Array:
    """`x` whole on every device where its type says how it is split; else `x` itself."""
    if any(axis is not None for axis in _spec(x)):
        return jax.sharding.reshard(x, PartitionSpec(*(None,) * x.ndim))
    return x


def take_rows(x: jax.Array, positions: jax.Array) -> jax.Array:
    """Rows of `x` by their positions inside each of several contiguous parts.

    Args:
      x: `[batch, ...]`.
      positions: `int[parts, drawn]`, from 0 to `batch / parts - 1`.

    Returns:
      `[parts * drawn, ...]`, split over devices as `x` is. Where the number of parts is a multiple
      of the number of devices, no row moves.
    """
    num_parts, num_drawn = positions.shape
    part_size = x.shape[0] // num_parts
    axis = (*_spec(x), None)[0]
    if axis is None or num_parts % _axis_size(axis) == 0:
        parts = x.reshape(num_parts, part_size, *x.shape[1:])
        if axis is not None:
            positions = jax.sharding.reshard(positions, PartitionSpec(axis, None))
        taken = jax.vmap(lambda rows, at: rows[at])(parts, positions)
        return taken.reshape(num_parts * num_drawn, *x.shape[1:])
    flat = (positions + part_size * jnp.arange(num_parts)[:, None]).reshape(-1)
    even = flat.size % _axis_size(axis) == 0
    spec = PartitionSpec(axis if even else None, *_spec(x)[1:])
    return x.at[flat].get(out_sharding=spec)


def _spec(x: Any) -> tuple[Any, ...]:
    """The mesh axes along which the type of `x` says that it is split, one entry per axis of `x`."""
    sharding = getattr(jax.typeof(x), "sharding", None)
    spec = () if sharding is None else tuple(sharding.spec)
    return spec + (None,) * (x.ndim - len(spec))


def _axis_size(axis: Any) -> int:
    names = axis if isinstance(axis, tuple) else (axis,)
    mesh = jax.sharding.get_abstract_mesh()
    size = 1
    for name in names:
        size *= mesh.shape[name]
    return size
