"""Eigenvalues that a first random vector hides."""

import jax.numpy as jnp
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
