"""Faster random numbers are JAX's own, bit for bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optax_sam
from optax_sam import lora
from optax_sam.arithmetic import random_trees
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


SHORT = ["bfloat16", "float16", "float8_e4m3fn", "float32"]


@pytest.mark.parametrize("dtype", SHORT)
def test_normal_entries_of_few_bits_have_mean_zero_and_deviation_one(dtype):
    """JAX's own have a mean of -0.012 in bfloat16, and none beyond 2.5."""
    size = 2**21
    z = random_trees.standard_normal(jax.random.key(0), jnp.zeros(size, dtype))
    assert z.dtype == dtype
    z = np.float64(z.astype(jnp.float32))
    assert abs(z.mean()) < 4 / size**0.5 and abs(z.std() - 1) < 0.005 and z.max() > 4


@pytest.mark.parametrize("dtype", SHORT[:2])
@pytest.mark.parametrize("name", ["tsam", "bsam", "adapter"])
def test_sums_over_noise_of_few_bits_are_as_wide_as_a_normal_deviation(name, dtype):
    """The loss is a sum of the noisy entries over the root of their number: about a standard normal one."""
    size, whole = 2**20, jnp.ones([1])
    losses = lambda w, x: x * (jnp.sum(w.astype(jnp.float32)) / size**0.5)
    methods = {
        "tsam": lambda seed: optax_sam.tsam(0.0, radius=1e9, num_samples=1, seed=seed),
        "bsam": lambda seed: optax_sam.bsam(1, augmentation_factor=1, num_microbatches=1, seed=seed),
    }
    for seed in range(2):
        if name == "adapter":
            found = losses(lora.adapter(jax.random.key(seed), 1, 1, size, dtype).lora_a, whole)
        else:
            method, w = methods[name](seed), jnp.zeros(size, dtype)
            found = method.value_and_grad(losses)(w, whole, state=method.init(w))[0]
        assert abs(float(jnp.squeeze(found))) < 4
