"""Arithmetic on trees."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optax_sam import trees

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
