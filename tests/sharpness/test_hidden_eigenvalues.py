"""Eigenvalues that a first random vector hides."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
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


def test_residuals_are_those_of_the_products_of_a_network_in_half_precision():
    """Softmax regression is convex: no eigenvalue is below that of the decay."""
    rng, decay = np.random.default_rng(0), 5e-4
    inputs = jnp.asarray(rng.normal(size=(256, 10)) * np.linspace(0.3, 6, 10), jnp.float32)
    labels = jnp.asarray(rng.integers(0, 4, 256), jnp.int32)
    params = jnp.asarray(rng.normal(size=(10, 4)) * 0.1, jnp.float32)

    def loss_in(dtype):
        def loss_fn(params, batch):
            logits = (batch[0].astype(dtype) @ params.astype(dtype)).astype(jnp.float32)
            found = optax.softmax_cross_entropy_with_integer_labels(logits, batch[1])
            return found + 0.5 * decay * jnp.sum(jnp.square(params))

        return loss_fn

    exact = sharpness.top_eigenvalues(loss_in(jnp.float32), params, (inputs, labels), which="both")
    for seed in range(3):
        found = sharpness.top_eigenvalues(
            loss_in(jnp.bfloat16), params, (inputs, labels), which="both", seed=seed
        )
        assert np.all(np.abs(found.values - exact.values) < 2 * found.residuals)
        assert found.residuals[0] > 1e-4 and exact.residuals[0] < 0.1 * found.residuals[0]


@pytest.mark.parametrize("max_products", [25, 60], ids=["a part", "the whole space"])
def test_a_rule_that_is_no_derivative_has_no_small_residual(max_products):
    """Gradients reversed between two parts of a network: their derivative is not symmetric."""

    @jax.custom_vjp
    def reversed_gradient(x):
        return x

    reversed_gradient.defvjp(lambda x: (x, None), lambda _, g: (-g,))
    rng = np.random.default_rng(0)
    x, y, domain = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((64, 5), 64, 64))
    params = {k: jnp.asarray(rng.normal(size=s), jnp.float32) for k, s in (("f", (5, 4)), ("c", 4), ("d", 4))}

    def loss_fn(params, batch):
        x, y, domain = batch
        features = jnp.tanh(x @ params["f"])
        of_domain = reversed_gradient(features) @ params["d"]
        return jax.nn.softplus(-y * (features @ params["c"])) + jax.nn.softplus(-domain * of_domain)

    found = sharpness.top_eigenvalues(loss_fn, params, (x, y, domain), max_products=max_products)
    assert not found.converged and found.residuals[0] > 0.01 * found.values[0]
