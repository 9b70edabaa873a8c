"""JAX's own random numbers, in one pass over the result on a CPU.

On a CPU JAX compiles the twenty rounds of Threefry as a loop over the whole array, five times through
memory. Straight code stays in the processor's registers: the same bits in a quarter of the time.
"""

import math
from typing import Any

import jax
import jax.extend.random as jex_random
import jax.numpy as jnp
from jax import lax

ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
"""Of Threefry-2x32, for every other group of four rounds (Salmon et al., 2011)."""

PARITY = 0x1BD11BDA


def for_large_arrays(key: jax.Array) -> jax.Array:
    """The same key of a generator that draws the same numbers, faster on a CPU in large arrays.

    Keys of another generator than JAX's default one stay as they are.
    """
    config: Any = jax.config
    if jax.default_backend() != "cpu" or not config.jax_threefry_partitionable:
        return key
    if jax.random.key_impl(key) != "threefry2x32":
        return key
    return jax.random.wrap_key_data(jax.random.key_data(key), impl=_straight)


def _bits(key: jax.Array, bit_width: int, shape: tuple[int, ...]) -> jax.Array:
    if bit_width != 32 or math.prod(shape) >= 2**32:
        return jex_random.threefry_prng_impl.random_bits(key, bit_width, shape)
    low = jnp.zeros(shape, jnp.uint32)  # the number of each entry, row by row
    for axis in range(len(shape)):
        stride = jnp.uint32(math.prod(shape[axis + 1 :]))
        low += lax.broadcasted_iota(jnp.uint32, shape, axis) * stride
    first, second = _threefry(key, jnp.zeros_like(low), low)
    return first ^ second


def _threefry(key: jax.Array, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Threefry-2x32 with 20 rounds."""
    keys = key[0], key[1], key[0] ^ key[1] ^ jnp.uint32(PARITY)
    x, y = x + keys[0], y + keys[1]
    for group in range(5):
        for rotation in ROTATIONS[group % 2]:
            x = x + y
            y = x ^ ((y << jnp.uint32(rotation)) | (y >> jnp.uint32(32 - rotation)))
        x = x + keys[(group + 1) % 3]
        y = y + keys[(group + 2) % 3] + jnp.uint32(group + 1)
    return x, y


_original: Any = jex_random.threefry_prng_impl
_straight = jex_random.define_prng_impl(
    key_shape=(2,),
    seed=_original.seed,
    split=_original.split,
    random_bits=_bits,
    fold_in=_original.fold_in,
    name="threefry2x32_straight",
    tag="frs",
)
