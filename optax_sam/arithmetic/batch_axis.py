"""Rows of a batch: taken, cut into parts and joined, moved between devices as little as possible."""

import jax
import jax.numpy as jnp

from optax_sam.arithmetic import sharding


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
    if num_parts % sharding.num_devices(x) == 0:
        positions = sharding.split_as(positions, x)
        taken = jax.vmap(lambda rows, at: rows[at])(split_rows(x, num_parts), positions)
        return taken.reshape(num_parts * num_drawn, *x.shape[1:])
    part_size = x.shape[0] // num_parts
    flat = (positions + part_size * jnp.arange(num_parts)[:, None]).reshape(-1)
    axis, *rest = sharding.spec_of(x)
    axis = axis if flat.size % sharding.num_devices(x) == 0 else None
    return x.at[flat].get(out_sharding=sharding.place_on(x, axis, *rest))


def split_rows(x: jax.Array, num_parts: int) -> jax.Array:
    """`[batch, ...]` as `[num_parts, batch / num_parts, ...]`, the parts contiguous.

    Where the number of parts is a multiple of the number of devices, no row moves. Otherwise every part is
    split over all devices, as far as it can be.
    """
    axis, *rest = sharding.spec_of(x)
    if num_parts % sharding.num_devices(x) == 0:
        parts = x.reshape(num_parts, -1, *x.shape[1:])  # with one device, the axis may stand at the rows
        return parts if axis is None else sharding.placed(parts, x, axis, None, *rest)
    return split_each_part(x, num_parts)


def split_each_part(x: jax.Array, num_parts: int) -> jax.Array:
    """The same, every part split over all devices as far as it can be: the parts may be looped over."""
    axis, *rest = sharding.spec_of(x)
    if axis is None:
        return x.reshape(num_parts, -1, *x.shape[1:])
    parts = sharding.placed(x, x, None, *rest).reshape(num_parts, -1, *x.shape[1:])
    axis = axis if parts.shape[1] % sharding.num_devices(x) == 0 else None
    return sharding.placed(parts, x, None, axis, *rest)


def whole_parts(x: jax.Array, num_parts: int) -> jax.Array:
    """`[batch]` as `[num_parts, batch / num_parts]`, every part whole on a device that has it."""
    if num_parts % sharding.num_devices(x):
        return sharding.replicated(x).reshape(num_parts, -1)
    return sharding.split_as(x.reshape(num_parts, -1), x)


def first_rows(x: jax.Array, number: int) -> jax.Array:
    """`x[:number]`, whole on every device: the rows are looked up, which sends them once."""
    if number == x.shape[0]:
        return sharding.replicated(x)
    return look_up(x, jnp.arange(number))


def look_up(table: jax.Array, indices: jax.Array) -> jax.Array:
    """`table[indices]`, its first axis split over devices as the indices are."""
    if not (sharding.is_split(table) or sharding.is_split(indices)):
        return table[indices]
    place = (*sharding.spec_of(indices), *sharding.spec_of(table)[1:])
    like = table if sharding.is_split(table) else indices
    return table.at[indices].get(out_sharding=sharding.place_on(like, *place))


def join_rows(parts: jax.Array, like: jax.Array) -> jax.Array:
    """`[num_parts, rows, ...]` as `[num_parts * rows, ...]`, split over devices as the rows of `like`."""
    return sharding.split_as(sharding.replicated(parts).reshape(-1, *parts.shape[2:]), like)
