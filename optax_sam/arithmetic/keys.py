"""Keys that a user's program does not have, though it begins with the same seed.

`jax.random.split(key)[i]` is `jax.random.fold_in(key, i)`, and programs count from 0. A key that was counted
so here would be the user's own: noise would be the initial weights, and a coin the one that augments a batch.
"""

import zlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

FIRST = 0x9E3779B1
"""Where counting begins: further on than programs count."""


class SharedByPasses(NamedTuple):
    """A key that is the same in all passes and draws of a step. Slices and single examples have their own."""

    key: jax.Array


def from_seed(seed: Any, purpose: str) -> jax.Array:
    """A typed Threefry key of a seed, `int[]`: another one for each purpose."""
    return jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), zlib.crc32(purpose.encode()))


def numbered(key: jax.Array, number: Any) -> jax.Array:
    """A key of the user's for one of several passes, draws, slices or examples, `number` from 0 on."""
    return jax.random.fold_in(key, jnp.uint32(FIRST) + jnp.asarray(number).astype(jnp.uint32))
