"""Padding, the examples of weight 0: as losses see it, and as aux shows it."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp

from optax_sam.arithmetic import rowwise, sharding, trees
from optax_sam.arithmetic.sentinels import Meant, meant


def spare_row(batch: Any, weights: jax.Array, params: Any) -> tuple[list[Any], jax.Array]:
    """The first real row, a list of the batch's leaves `[1, ...]`, None for keys; whether any row is real.

    It is found by masked sums, which keep a sharded batch in place.
    """
    real = weights != 0
    number = jnp.arange(real.size, dtype=jnp.int32)
    first = jnp.min(jnp.where(real, number, real.size))  # of a split array, one number is sent
    is_lender, exists = sharding.first_of_replicas(first < real.size, params)
    chosen = real & (number == first) & is_lender

    def on_leaf(x):
        if trees.is_key(x.dtype):
            return None
        return _sum_of_one(jnp.where(_column(chosen, x), x, jnp.zeros_like(x)), params)

    return [on_leaf(x) for x in jax.tree.leaves(batch)], exists


def without_padding(batch: Any, weights: jax.Array, spare: Any, they_meet: bool) -> Any:
    """The batch with the spare row in the place of padding, or of what is not finite in it.

    A mask on the losses alone is not enough: a NaN inside a padding row makes the derivative
    `0 * NaN`. Where no row is real, finite ones stay.
    """
    rows, exists = spare

    def on_leaf(x, row):
        if row is None:
            return x
        usable = jnp.isfinite(x) if trees.is_inexact(x) else jnp.ones_like(x, bool)
        kept = usable if they_meet else usable & ~exists
        return jnp.where(_column(weights != 0, x) | kept, x, row)

    leaves, treedef = jax.tree.flatten(batch)
    return treedef.unflatten([on_leaf(x, row) for x, row in zip(leaves, rows, strict=True)])


def _column(flags: jax.Array, like: jax.Array) -> jax.Array:
    """`bool[batch]` beside an array `[batch, ...]`."""
    return flags.reshape(-1, *(1,) * (like.ndim - 1))


def _sum_of_one(rows: jax.Array, params: Any) -> jax.Array:
    """The sum of rows of which all but one are zeros, `[1, ...]`.

    Sums of one dtype are sent as one: what has 32 bits or less is summed in float32, which loses nothing.
    """
    dtype = rows.dtype
    is_long = jnp.issubdtype(dtype, jnp.integer) and dtype.itemsize == 4
    parts = [rows >> 16, rows & 0xFFFF] if is_long else [rows]
    parts = parts if dtype.itemsize > 4 else [x.astype(jnp.float32) for x in parts]
    sums = [jnp.sum(x, axis=0, keepdims=True) for x in parts]
    high, *low = [x.astype(dtype) for x in sharding.psum_over_replicas(sums, params)]
    return high << 16 | low[0] if low else high


def with_signs(given: Any, finite: Any, forward: jex.Jaxpr, num_params: int, is_row: list[bool]) -> Any:
    """The batch without what is not finite in padding, but with what of it is a sign to the losses.

    Args:
      given: the batch as the user gave it.
      finite: the same, what is not finite in padding replaced.
      forward: the losses and aux, in which examples meet.
      num_params: how many of its inputs are parameters; they come first.
      is_row: which of its inputs are the batch's.
    """
    leaves, treedef = jax.tree.flatten(given)
    signs = _signs(forward, num_params, is_row)
    return treedef.unflatten(map(_with_signs, leaves, jax.tree.leaves(finite), signs))


def with_axes_of_lengths(
    axes: Sequence[rowwise.Axis], aux: Any, size: int | None, of_twice: Callable[[], Any]
) -> Sequence[rowwise.Axis]:
    """The axes of the examples, with those of leaves that read no example but have something for each: ones.

    Args:
      axes: of the examples, in the losses and in each leaf of aux, as far as these read them.
      aux: what the losses returned.
      size: the number of examples.
      of_twice: the shapes of aux for twice as many. Where it fails, nobody can tell.
    """
    leaves = jax.tree.leaves(aux)
    pairs = zip(axes[1:], leaves, strict=True)
    if rowwise.MEET in axes or all(axis is not None or size not in x.shape for axis, x in pairs):
        return axes
    try:
        others = jax.tree.leaves(of_twice())
    except Exception:  # the losses are made for this number of examples alone
        return axes

    def of_leaf(axis, x, other):
        lengths = zip(x.shape, other.shape, strict=False)
        longer = [n for n, (one, another) in enumerate(lengths) if one != another]
        return axis if axis is not None or not longer else longer[0]

    return [axes[0], *map(of_leaf, axes[1:], leaves, others)]


def cleared(aux: Any, axes: Sequence[rowwise.Axis], weights: jax.Array) -> Any:
    """Auxiliary values, 0 for padding in arrays that have something of each example.

    Padding was computed as a copy of a real example, whose own mask says that it counts. Where examples meet,
    it stood as the user gave it, and so it stays.

    Args:
      aux: what the losses returned.
      axes: of the examples, in the losses and in each leaf of aux.
      weights: `float[batch]`.
    """
    if rowwise.MEET in axes:
        return aux

    def on_leaf(x, axis):
        if axis is None or trees.is_key(x.dtype):
            return x
        place = [None] * x.ndim
        place[axis] = sharding.spec_of(x)[axis]
        is_real = (weights != 0).reshape([-1 if n == axis else 1 for n in range(x.ndim)])
        return jnp.where(sharding.placed(is_real, x, *place), x, jnp.zeros_like(x))

    leaves, treedef = jax.tree.flatten(aux)
    return treedef.unflatten([on_leaf(x, axis) for x, axis in zip(leaves, axes[1:], strict=True)])


def _signs(forward: jex.Jaxpr, num_params: int, is_row: list[bool]) -> list[Meant]:
    """For each leaf of the batch, what of it that is not finite is a sign for losses of other examples."""
    found = meant(forward, [n < num_params for n in range(len(is_row))], is_row)
    for number in [n for n, what in enumerate(found) if what != Meant.NOTHING]:
        axes = [0 if n == number else None for n in range(len(is_row))]
        if rowwise.MEET not in rowwise.axes_of_outputs(forward, axes):
            found[number] = Meant.NOTHING
    return [what for what, row in zip(found, is_row, strict=True) if row]


def _with_signs(given: jax.Array, finite: jax.Array, what: Meant) -> jax.Array:
    """A leaf of the batch without what is not finite in padding, but with what of it is a sign."""
    if what == Meant.NOTHING or not trees.is_inexact(given):
        return finite
    return given if what == Meant.ANYTHING else jnp.where(jnp.isinf(given), given, finite)
