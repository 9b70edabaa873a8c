"""Random trees like the parameters: one key for each leaf, hidden ones too: no two parts share one."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from optax_sam.arithmetic import trees
from optax_sam.arithmetic.random_bits import for_large_arrays


def standard_normal(key: jax.Array, params: Any) -> Any:
    """Independent standard normal entries like the inexact leaves; integer leaves get zeros."""
    return _each(lambda key, x: normal(for_large_arrays(key), x.shape, x.dtype), key, params)


def normal(key: jax.Array, shape: tuple[int, ...], dtype: Any, deviation: float = 1.0) -> jax.Array:
    """Normal entries of mean zero, drawn in float32 or wider.

    In half precision JAX has few random bits for an entry: 128 values in bfloat16, whose mean is -0.01.
    """
    return (jax.random.normal(key, shape, trees.accumulator_dtype(dtype)) * deviation).astype(dtype)


def signs(key: jax.Array, params: Any) -> Any:
    """Entries of -1 or 1 like the inexact leaves; integer leaves get zeros."""
    return _each(lambda key, x: jax.random.rademacher(key, x.shape, x.dtype), key, params)


def uniform(key: jax.Array, params: Any) -> Any:
    """Entries from [0, 1), real, in float32, like the inexact leaves; integer leaves get zeros."""
    return _each(lambda key, x: jax.random.uniform(for_large_arrays(key), x.shape, jnp.float32), key, params)


def coins(key: jax.Array, probability: Any, params: Any) -> Any:
    """One `bool[]` for each leaf, true with `probability`."""
    return _each(lambda key, x: jax.random.uniform(key, dtype=jnp.float32) < probability, key, params)


def _each(draw: Callable[[jax.Array, jax.Array], jax.Array], key: jax.Array, params: Any) -> Any:
    leaves, treedef = jax.tree.flatten(params, is_leaf=trees.is_masked)
    keys = jax.random.split(key, max(len(leaves), 1))

    def on_leaf(key, x):
        if trees.is_masked(x):
            return x
        return draw(key, x) if trees.is_inexact(x) else jnp.zeros_like(x)

    return jax.tree.unflatten(treedef, map(on_leaf, keys, leaves))
