"""Arithmetic on trees."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optax_sam
from optax_sam.arithmetic import trees

TREE = {
    "a": jnp.array([3.0, -4.0]),
    "b": jnp.array([[12.0]]),
    "c": jnp.array([0.0 + 84.0j]),
    "n": jnp.ones(2, int),
}


def test_norm_is_that_of_all_inexact_leaves():
    assert trees.norm(TREE) == 85 and trees.norm({"n": TREE["n"]}) == 0


@pytest.mark.parametrize("scale", [1.0, 1e30, 1e-30])
def test_norm_has_a_derivative_forwards_and_backwards(scale):
    leaves = {"a": scale * TREE["a"], "b": scale * TREE["b"].astype(jnp.bfloat16)}
    gradient = jax.grad(trees.norm)(leaves)
    np.testing.assert_allclose(gradient["a"], np.array([3.0, -4.0]) / 13, rtol=1e-2)
    np.testing.assert_allclose(gradient["b"].astype(jnp.float32), [[12 / 13]], rtol=1e-2)
    ones = jax.tree.map(jnp.ones_like, leaves)
    np.testing.assert_allclose(jax.jvp(trees.norm, (leaves,), (ones,))[1], 11 / 13, rtol=1e-2)
    zero = jax.grad(trees.norm)(jax.tree.map(jnp.zeros_like, leaves))
    assert all(np.all(np.asarray(x) == 0) for x in jax.tree.leaves(zero))


def test_norm_under_vmap_rescales_where_it_must():
    rows = jnp.array([[3.0, 4.0], [3e30, 4e30], [3e-30, 4e-30], [0.0, 0.0], [jnp.inf, 1.0]])
    got = jax.vmap(lambda x: trees.norm({"x": x}))(rows)
    np.testing.assert_allclose(got, [5.0, 5e30, 5e-30, 0.0, np.inf], rtol=1e-6)


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e30])
def test_the_norm_of_what_the_compiler_knows_is_right_too(size):
    def norm():
        return trees.norm({"a": jnp.full([2, 4], size, jnp.float32), "b": jnp.full([8], size, jnp.float32)})

    np.testing.assert_allclose(jax.jit(norm)(), 4 * size, rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.complex64])
@pytest.mark.parametrize("compiled", [False, True])
def test_what_is_divided_by_the_largest_norms_does_not_vanish(dtype, compiled):
    """XLA multiplies by the reciprocal, which is none of float32's normal numbers."""
    x = jnp.full((2, 3), 1.5e38, dtype)
    divide = jax.jit(trees.divide) if compiled else trees.divide
    np.testing.assert_allclose(divide([x], jnp.float32(3e38))[0], 0.5, rtol=1e-6)


def test_the_mean_of_equal_draws_is_each_even_where_their_sum_overflows():
    draws = optax_sam.over_draws(optax_sam.sam(0.0), 3, optax_sam.tilted(0.0))
    params = jnp.zeros(2)
    oracle = optax_sam.Oracle(lambda w, x: x * (w * 2e38).sum(), jnp.ones(1), params=params)
    descent, _ = jax.jit(lambda: draws.update(params, draws.init(params), params, oracle=oracle))()
    np.testing.assert_allclose(descent, 2e38, rtol=1e-6)
