"""Weighted means of trees over the parts of a whole, in a loop or at once.

Inexact leaves are averaged in float32 or wider. Of all others those of the first part that counts stand for
all. A part of share 0 (padding alone) counts nothing, whatever came of it.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from optax_sam.arithmetic import sharding, trees


def shares(
    weights: jax.Array | None, num_parts: int, params: Any, sizes: jax.Array | None = None
) -> jax.Array:
    """How much of the mean each part is: its part of all weights, `float[num_parts]`.

    Inside a `jax.shard_map`, of the weights on all devices with the same `params`. The `sizes` are what each
    part's mean was divided by, where that is another number.
    """
    equal = jnp.full([num_parts], 1 / num_parts, float)
    if weights is None:
        return equal
    given = (weights,) if sizes is None else (weights, sizes)
    given = sharding.psum_over_replicas(tuple(map(sharding.replicated, given)), params)
    total, parts = given[0].astype(float).sum(), given[-1].astype(float)
    without_total = equal if sizes is None else parts  # as `sum(w l)` is taken where the weights sum to 0
    return jnp.where(total != 0, parts / jnp.where(total != 0, total, 1), without_total)


def shares_within(outer: jax.Array, inner: jax.Array | None) -> jax.Array:
    """How much of the mean each slice inside the parts is, in their order; of the parts where they have none.

    Args:
      outer: `float[parts]`.
      inner: `float[parts, slices]`, of each part's own mean.
    """
    return outer if inner is None else (outer[:, None] * sharding.replicated(inner)).reshape(-1)


def first_of(shares: jax.Array) -> jax.Array:
    """`int32[]`, the number of the first part that counts."""
    return jnp.argmax(shares != 0).astype(jnp.int32)


def weighted(share: Any, tree: Any) -> Any:
    """`share * tree` for inexact leaves, in float32 or wider; zeros where the share is zero."""
    share = jnp.asarray(share)

    def on_leaf(x):
        x = x.astype(trees.accumulator_dtype(x.dtype))
        return jnp.where(share != 0, trees.times(share, x), jnp.zeros_like(x))

    return trees.map_inexact(on_leaf, tree)


def add(total: Any, share: Any, tree: Any, is_first: Any = False) -> Any:
    """`total + share * tree` for inexact leaves; the first tree's for all others."""

    def on_leaf(t, x):
        return t + x.astype(t.dtype) if trees.is_inexact(x) else jnp.where(is_first, x, t)

    return jax.tree.map(on_leaf, total, weighted(share, tree))


def zeros_like(tree: Any) -> Any:
    """Where a sum of such trees begins."""
    return trees.widen(jax.tree.map(lambda x: trees.zeros_like(x, x.dtype), tree))


def mean(shares: jax.Array, stacked: Any) -> Any:
    """The mean over the leading axis of every leaf."""

    def on_leaf(x):
        if not trees.is_inexact(x):
            return sharding.replicated(x)[first_of(shares)]
        wide = x.astype(trees.accumulator_dtype(x.dtype))
        column = shares.astype(wide.dtype).reshape(-1, *(1,) * (x.ndim - 1))
        column = sharding.split_as(column, x)
        return jnp.sum(jnp.where(column != 0, column * wide, jnp.zeros_like(wide)), axis=0).astype(x.dtype)

    return jax.tree.map(on_leaf, stacked)


def mean_by_scan(
    function: Callable[[Any], tuple[Any, Any]], shares: jax.Array, parts: Any
) -> tuple[Any, Any]:
    """`function` of one part after the other: the mean of its first results, its second ones stacked."""
    shapes = jax.eval_shape(function, jax.tree.map(lambda x: x[0], parts))[0]

    first = first_of(shares)

    def step(total, part):
        number, share, rows = part
        averaged, stacked = function(rows)
        return add(total, share, averaged, number == first), stacked

    numbers = jnp.arange(len(shares), dtype=jnp.int32)
    total, stacked = lax.scan(step, zeros_like(shapes), (numbers, shares, parts))
    return trees.cast_like(total, shapes), stacked
