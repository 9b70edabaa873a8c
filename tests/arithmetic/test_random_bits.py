"""Faster random numbers are JAX's own, bit for bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optax_sam.arithmetic.random_bits import for_large_arrays


@pytest.mark.parametrize("shape", [(), (0,), (7,), (3, 5), (2, 3, 4, 5), (70_000,)])
def test_numbers_are_those_of_jax(shape):
    key = jax.random.fold_in(jax.random.key(11), 5)
    for draw in (jax.random.normal, jax.random.uniform):
        for dtype in (jnp.float32, jnp.bfloat16, jnp.float16):
            np.testing.assert_array_equal(draw(for_large_arrays(key), shape, dtype), draw(key, shape, dtype))


def test_keys_in_a_loop_and_side_by_side_draw_what_single_ones_draw():
    keys = jax.random.split(jax.random.key(3), 4)
    wanted = np.stack([jax.random.normal(key, (9, 2)) for key in keys])

    def draw(key):
        return jax.random.normal(for_large_arrays(key), (9, 2))

    np.testing.assert_array_equal(jax.vmap(draw)(keys), wanted)
    np.testing.assert_array_equal(jax.lax.map(draw, keys), wanted)


def test_the_other_order_of_bits_is_left_to_jax():
    with jax.threefry_partitionable(False):
        key = jax.random.key(0)
        assert for_large_arrays(key) is key
