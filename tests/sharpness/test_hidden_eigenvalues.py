"""Eigenvalues that a first random vector hides."""

import jax.numpy as jnp
import numpy as np
import pytest

from optax_sam import sharpness


def test_one_eigenvalue_is_found_beside_many_that_are_alike():
    """A random vector is an eigenvector of theirs up to a thousandth."""
    bulk, size = jnp.array([1.0]), 10**5

    def with_another(value):
        return lambda p, x: x * (0.5 * jnp.sum(p["w"] ** 2) + 0.5 * (value - 1) * p["w"][0] ** 2)

    params = {"w": jnp.ones(size)}
    found = sharpness.top_eigenvalues(with_another(2.0), params, bulk)
    assert found.values[0] == pytest.approx(2.0, rel=1e-3) and found.converged
    found = sharpness.top_eigenvalues(with_another(-0.5), params, bulk, which="smallest")
    assert found.values[0] == pytest.approx(-0.5, rel=1e-3) and found.converged
    assert sharpness.by_layer(with_another(4.0), params, bulk).eigenvalues[0] == pytest.approx(4.0, rel=1e-2)
    assert not sharpness.top_eigenvalues(with_another(2.0), params, bulk, max_products=1).converged


@pytest.mark.parametrize("which", ["smallest", "both"])
@pytest.mark.parametrize("largest", [1e4, 1e6, 1e7])
def test_a_small_end_that_the_largest_eigenvalue_hides_is_not_converged(which, largest):
    """Products are rounded relative to the largest one; within that no end can be told from the rest."""
    lowest, size = -0.4, 300
    values = jnp.asarray(np.r_[largest, lowest, np.linspace(0, 0.4, size - 2)], jnp.float32)
    turned = jnp.asarray(np.linalg.qr(np.random.default_rng(0).normal(size=(size, size)))[0], jnp.float32)
    hessian = jnp.einsum("ij,j,kj->ik", turned, values, turned, precision="highest")

    def loss_fn(params, scale):
        return scale * 0.5 * (params @ hessian @ params)

    found = sharpness.top_eigenvalues(loss_fn, jnp.ones(size), jnp.ones(2), which=which)
    assert found.values[0] == pytest.approx(largest, rel=1e-3) or which == "smallest"
    assert not found.converged or found.values[-1] == pytest.approx(lowest, rel=0.1)
