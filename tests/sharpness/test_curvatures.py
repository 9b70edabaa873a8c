"""Fisher matrices and differences of gradients, against matrices that are written out."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optax_sam import sharpness
from tests.sharpness.problems import (
    differentiable,
    floats,
    joined,
    losses,
    network,
    outputs,
    random_vector_like,
    written_out,
)


def gradients(params, batch, loss_fn=losses):
    flat, back = differentiable(params)
    return np.asarray(jax.jacobian(lambda v: loss_fn(back(v), batch))(flat), float)


def test_the_empirical_fisher_matrix_is_the_second_moment_of_the_gradients():
    params, loss_fn, batches = network()
    rows, _ = written_out()
    vector = random_vector_like(params)
    fisher = sharpness.EmpiricalFisher(loss_fn)
    found = sharpness.hessian_vector_product(fisher, params, batches, vector)
    expected = rows.T @ (rows @ floats(vector)) / len(rows)
    np.testing.assert_allclose(floats(found), expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    whole = sharpness.trace(fisher, params, batches, num_products=60)
    assert whole.value == pytest.approx((rows**2).sum() / len(rows), rel=1e-4)
    block, part = sharpness.of_part(fisher, params, lambda path, _: "first" in jax.tree_util.keystr(path))
    top = sharpness.top_eigenvalues(block, part, batches, tolerance=1e-5).values[0]
    exact = np.linalg.eigvalsh(rows[:, :16].T @ rows[:, :16] / len(rows))[-1]
    assert top == pytest.approx(exact, rel=1e-4)


LABELS = [{"x": batch["x"], "label": jnp.arange(len(batch["x"])) % 2} for batch in network()[2]]


def cross_entropy(logits, batch):
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])


@pytest.mark.slow
def test_the_fisher_matrix_is_made_of_the_labels_that_are_drawn():
    params, _, _ = network()

    def ones(key, logits, batch):
        return batch | {"label": jnp.ones(len(logits), int)}

    fisher = sharpness.Fisher(outputs, cross_entropy, ones, num_draws=2)
    drawn = joined(LABELS) | {"label": jnp.ones(10, int)}
    rows = gradients(params, drawn, lambda p, b: cross_entropy(outputs(p, b), b))
    vector = random_vector_like(params)
    found = sharpness.hessian_vector_product(fisher, params, LABELS, vector)
    expected = rows.T @ (rows @ floats(vector)) / len(rows)
    np.testing.assert_allclose(floats(found), expected, rtol=1e-4, atol=1e-5)
    loss = sharpness.ascent_sharpness(fisher, params, LABELS, 0.0).loss  # at its own labels
    assert loss == pytest.approx(float(cross_entropy(outputs(params, joined(LABELS)), joined(LABELS)).mean()))


@pytest.mark.slow
def test_with_many_labels_it_is_the_gauss_newton_matrix_of_cross_entropy():
    params, _, _ = network()

    def draw(key, logits, batch):
        return batch | {"label": jax.random.categorical(key, logits)}

    newton = sharpness.GaussNewton(outputs, cross_entropy)
    exact = sharpness.trace(newton, params, LABELS, num_products=60).value

    def trace(seed):
        fisher = sharpness.Fisher(outputs, cross_entropy, draw, num_draws=8, seed=seed)
        return sharpness.trace(fisher, params, LABELS, num_products=60).value

    found = np.array([trace(seed) for seed in range(6)])
    assert abs(found.mean() - exact) < 4 * found.std(ddof=1) / 6**0.5 < exact / 2
    assert trace(0) == found[0] != found[1]


def test_every_batch_draws_labels_of_its_own_and_the_same_ones_in_each_pass():
    size, vector = 400, jnp.eye(3)[0]
    logits = jnp.array([0.3, 0.0, -0.2])
    shares = np.exp(logits) / np.exp(logits).sum()

    def draw(key, outputs, batch):
        return batch | {"label": jax.random.categorical(key, outputs)}

    fisher = sharpness.Fisher(lambda w, b: jnp.outer(b["x"], w), cross_entropy, draw)
    parts = [{"x": jnp.ones(2), "label": jnp.zeros(2, int)}] * (size // 2)
    found = sharpness.hessian_vector_product(fisher, logits, parts, vector)[0]
    # An example has (1 - p)^2 where the label is the first class, p^2 where not; labels by chance.
    p = shares[0]
    assert abs(found - p * (1 - p)) < 4 * (1 - 2 * p) * np.sqrt(p * (1 - p) / size)
    again = sharpness.hessian_vector_product(fisher, logits, parts, vector)[0]
    assert found == again
    mean = sharpness.batch_sharpness(fisher, logits, parts)
    assert len(np.unique(mean.values.round(4))) > 1
    whole = sharpness.directional_sharpness(fisher, logits, parts, vector)
    assert whole.value == pytest.approx(float(found), rel=1e-4) and whole.standard_error > 0
    cut = sharpness.batch_sharpness(fisher, logits, parts, microbatch_size=1)
    assert len(np.unique(cut.values.round(4))) > 1


def test_many_labels_make_no_longer_program():
    """Labels by chance as above, 2,000 of one example: a program with each of them would take minutes."""
    logits = jnp.array([0.3, 0.0, -0.2])
    p = np.exp(logits[0]) / np.exp(logits).sum()
    draws, calls = 2000, []

    def draw(key, outputs, batch):
        calls.append(key)
        return batch | {"label": jax.random.categorical(key, outputs)}

    fisher = sharpness.Fisher(lambda w, b: jnp.outer(b["x"], w), cross_entropy, draw, num_draws=draws)
    batch = {"x": jnp.ones(1), "label": jnp.zeros(1, int)}
    found = sharpness.hessian_vector_product(fisher, logits, batch, jnp.eye(3)[0])[0]
    assert abs(found - p * (1 - p)) < 4 * (1 - 2 * p) * np.sqrt(p * (1 - p) / draws)
    assert len(calls) < 5


@pytest.mark.slow
def test_differences_of_gradients_are_products_with_the_hessian():
    params, loss_fn, batches = network()
    vector = random_vector_like(params)
    exact = written_out()[1].mean(0) @ floats(vector)
    differences = sharpness.FiniteDifferences(loss_fn)
    found = sharpness.hessian_vector_product(differences, params, batches, vector)
    error = np.linalg.norm(floats(found) - exact) / np.linalg.norm(exact)
    assert error < 5e-3
    told = sharpness.finite_difference_error(differences, params, batches, vector)
    assert told < 0.01 and error < told
    top = sharpness.top_eigenvalues(differences, params, batches, tolerance=1e-2).values[0]
    assert top == pytest.approx(np.linalg.eigvalsh(written_out()[1].mean(0))[-1], rel=1e-2)


@jax.custom_vjp
def cube(x):
    return x**3


cube.defvjp(lambda x: (x**3, np.float32(3) * x**2), lambda residual, g: (residual * g,))


def test_what_has_no_second_derivative_is_measured_all_the_same():
    """A kernel's rule that JAX cannot differentiate forwards, as that of attention kernels."""

    def loss_fn(w, batch):
        return batch * jnp.sum(cube(w))

    w, batch = jnp.array([1.0, 2.0]), jnp.ones(3)
    with pytest.raises(TypeError, match="custom_vjp"):
        jax.jvp(cube, (w,), (w,))
    found = sharpness.trace(sharpness.FiniteDifferences(loss_fn), w, batch, num_products=10)
    assert found.value == pytest.approx(18, rel=1e-2)
    kinked = sharpness.FiniteDifferences(lambda w, batch: batch * jnp.abs(w - 1.001), step=0.01)
    assert sharpness.finite_difference_error(kinked, jnp.array(1.0), batch, jnp.array(1.0)) > 0.3


def test_what_is_no_matrix_is_refused():
    params, loss_fn, batches = network()
    vector = random_vector_like(params)

    def refused(message, loss_fn, measure=sharpness.hessian_vector_product):
        with pytest.raises((ValueError, TypeError), match=message):
            measure(loss_fn, params, batches, vector)

    refused(
        "one loss per example is needed, because EmpiricalFisher",
        sharpness.EmpiricalFisher(lambda p, b: losses(p, b).mean()),
    )
    fisher = sharpness.Fisher(lambda p, b: outputs(p, b).T, lambda o, b: o.sum(0), lambda key, o, b: b)
    refused(r"outputs returned the shapes \(2, 5\) for 5 examples", fisher)
    refused("num_draws=0 is outside", sharpness.Fisher(outputs, cross_entropy, lambda k, o, b: b, 0))
    refused("step=-1", sharpness.FiniteDifferences(loss_fn, step=-1.0))
    refused("takes no differences: pass FiniteDifferences", loss_fn, sharpness.finite_difference_error)
