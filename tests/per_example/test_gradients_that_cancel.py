"""Norms of single examples' gradients that are small beside the terms of which they are sums."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optax_sam
from optax_sam import per_example, sharpness

CLOSE = 1e-4


def near(rows, size=64, examples=3):
    """Examples whose rows are `CLOSE` to multiples of one row, and the factors with which these cancel."""
    random = np.random.default_rng(0)
    first = random.normal(size=(examples, 1, size))
    multiples = np.arange(1.0, rows + 1)
    x = multiples[:, None] * first + CLOSE * random.normal(size=(examples, rows, size))
    factors = np.ones(rows)
    factors[0] = 1 - multiples.sum()
    return np.float32(x), np.float32(factors)


def norms(x, factors, outputs=64):
    """Of the gradients by `w` of `sum_r factors_r (x_r w)_j`, over `j`."""
    return np.linalg.norm(np.float64(factors) @ np.float64(x), axis=-1) * outputs**0.5


def losses(factors, outputs_first=False):
    def loss_fn(w, batch):
        found = jnp.einsum("ji,bri->brj", w, batch) if outputs_first else batch @ w
        return (factors @ found).sum(-1)

    return loss_fn


@pytest.mark.parametrize(("rows", "outputs"), [(2, 7), (3, 200)])
def test_a_few_rows_that_cancel_keep_their_digits(rows, outputs):
    x, factors = near(rows)
    found = per_example.gradient_norms(losses(factors), jnp.ones((64, outputs)), jnp.asarray(x))
    np.testing.assert_allclose(found, norms(x, factors, outputs), rtol=5e-3)
    turned = losses(factors, outputs_first=True)
    found = per_example.gradient_norms(turned, jnp.ones((outputs, 64)), jnp.asarray(x))
    np.testing.assert_allclose(found, norms(x, factors, outputs), rtol=5e-3)


def test_two_uses_of_one_matrix_that_cancel_keep_their_digits():
    """The two sides of a siamese loss."""
    x, _ = near(2)
    x[:, 1] -= x[:, 0]

    def loss_fn(w, batch):
        return (batch[:, 0] @ w - batch[:, 1] @ w).sum(-1)

    found = per_example.gradient_norms(loss_fn, jnp.ones((64, 64)), jnp.asarray(x))
    np.testing.assert_allclose(found, norms(x, [1, -1]), rtol=1e-3)
    np.testing.assert_allclose(sharpness.gradient_noise(loss_fn, jnp.ones((64, 64)), x).norms, found)


@pytest.mark.parametrize("rows", [2, 6])
def test_many_places_of_a_kernel_that_cancel(rows):
    """A convolution sees two pixels, or six."""
    x, factors = near(rows, 3 * 8)
    images = jnp.asarray(x.reshape(3, rows, 3, 8))

    def loss_fn(kernel, image):
        numbers = ("NHWC", "HWIO", "NHWC")
        seen = jax.lax.conv_general_dilated(image, kernel, (1, 1), "VALID", dimension_numbers=numbers)
        return jnp.einsum("r,brwo->b", factors, seen)

    found = np.asarray(per_example.gradient_norms(loss_fn, jnp.ones((1, 3, 8, 16)), images))
    check(found, norms(x, factors, 16), x, factors, 16, rows)


@pytest.mark.parametrize("rows", [4, 12])
def test_many_rows_that_cancel_are_never_nan_and_no_smaller_than_rounding(rows):
    x, factors = near(rows)
    found = np.asarray(per_example.gradient_norms(losses(factors), jnp.ones((64, 64)), jnp.asarray(x)))
    check(found, norms(x, factors), x, factors, 64, rows)
    zero = per_example.gradient_norms(losses(factors), jnp.ones((64, 64)), jnp.zeros((3, rows, 64)))
    np.testing.assert_array_equal(zero, 0)


def check(found, wanted, x, factors, outputs, rows):
    terms = (np.linalg.norm(x, axis=-1) * np.abs(factors)).sum(-1) * outputs**0.5
    if rows <= 3:
        np.testing.assert_allclose(found, wanted, rtol=5e-3)
    else:
        assert np.all(found > 0.9 * wanted) and np.all(found < wanted + 1e-3 * terms)


def test_rows_of_a_table_that_cancel():
    """One token in each of many places: `1 - 1 + CLOSE`."""
    factors = np.tile(np.float32([1, -1, 1, -1 + CLOSE]), 3)

    def loss_fn(table, tokens):
        return jnp.einsum("r,brn->b", factors, table[tokens])

    tokens = jnp.array([[0] * 4 + [1] * 4 + [2] * 4, [3] * 12])
    found = per_example.gradient_norms(loss_fn, jnp.ones((5, 16)), tokens)
    kept = np.float64(factors[:4]).sum()
    np.testing.assert_allclose(found, [kept * 4 * 3**0.5, 3 * kept * 4], rtol=1e-2)


def test_slopes_of_norms_of_rows_that_cancel():
    x, factors = near(2)

    def total(x):
        return per_example.gradient_norms(losses(factors), jnp.ones((64, 64)), x).sum()

    summed = np.float64(factors) @ np.float64(x)
    unit = summed / np.linalg.norm(summed, axis=-1, keepdims=True) * 8
    np.testing.assert_allclose(jax.grad(total)(jnp.asarray(x))[:, 1], factors[1] * unit, atol=0.03)
    assert np.all(np.isfinite(jax.grad(total)(jnp.ones((1, 2, 64)))))


def test_ausam_scores_a_siamese_loss_by_the_norms_of_its_gradients():
    x, factors = near(2)
    method = optax_sam.ausam(num_examples=3, rho=0.1, fraction=1.0, score="gradient_norm")
    params = jnp.ones((64, 64))
    state = method.init(params)
    _, grads, oracle = method.value_and_grad(losses(factors))(
        params, jnp.asarray(x), state=state, indices=jnp.arange(3)
    )
    _, state = method.update(grads, state, params, oracle=oracle)
    np.testing.assert_allclose(state.start.score_sum, norms(x, factors), rtol=5e-3)
