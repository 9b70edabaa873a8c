"""The highest loss in a ball, against closed forms and against all corners of small balls."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optax_sam import sharpness
from optax_sam.sharpness.worst import checkpoints
from tests.sharpness.problems import quadratic

W = np.array([1.0, -2.0, 0.5, 3.0])
X = np.array([[1.0, 0.5, -1.0, 2.0], [0.5, 1.0, 3.0, -1.0]])


def linear(w, x):
    return x @ w


@pytest.mark.parametrize("adaptive", [True, False])
def test_a_linear_loss_rises_by_its_dual_norm(adaptive):
    slope = X.mean(axis=0) * (np.abs(W) if adaptive else 1)
    batches = [jnp.asarray(X[:1], jnp.float32), jnp.asarray(X[1:], jnp.float32)]
    params = jnp.asarray(W, jnp.float32)
    for norm, expected in (("linf", np.abs(slope).sum()), ("l2", np.linalg.norm(slope))):
        whole = jnp.concatenate(batches)
        found = sharpness.worst_case_sharpness(linear, params, whole, 0.1, norm=norm, adaptive=adaptive)
        assert found.value == pytest.approx(0.1 * expected, rel=1e-4)
        assert found.loss == pytest.approx((X @ W).mean()) and found.count == 1


def test_each_part_has_a_perturbation_of_its_own():
    params, whole = jnp.asarray(W, jnp.float32), jnp.asarray(np.repeat(X, [3, 3], axis=0), jnp.float32)
    each = 0.1 * np.abs(X * W).sum(axis=1)
    found = sharpness.worst_case_sharpness(linear, params, whole, 0.1, microbatch_size=3)
    assert found.value == pytest.approx(each.mean(), rel=1e-4) and found.count == 2
    assert found.standard_error == pytest.approx(np.std(each, ddof=1) / 2**0.5, rel=1e-3)
    unequal = [whole[:3], whole[3:4]]
    found = sharpness.worst_case_sharpness(linear, params, unequal, 0.1)
    assert found.value == pytest.approx(np.average(each, weights=[3, 1]), rel=1e-4)


def test_a_convex_loss_is_highest_in_a_corner():
    matrix = np.diag([1.0, 2.0, 0.5, 1.0]) + 0.3
    loss_fn, params = quadratic(jnp.asarray(matrix, jnp.float32)), jnp.asarray(W, jnp.float32)
    corners = [W + 0.2 * np.abs(W) * np.array(signs) for signs in itertools.product([-1, 1], repeat=4)]
    highest = max(corner @ matrix @ corner for corner in corners) / 2 - W @ matrix @ W / 2
    found = sharpness.worst_case_sharpness(loss_fn, params, jnp.ones(1), 0.2, num_steps=20)
    assert found.value == pytest.approx(highest, rel=1e-4)


def test_on_a_circle_it_finds_what_a_scan_does():
    matrix = np.array([[3.0, 1.0], [1.0, -1.0]])
    start = np.array([0.5, 0.25])
    angles = np.linspace(0, 2 * np.pi, 20_000)
    circle = start[:, None] * (1 + 0.5 * np.stack([np.cos(angles), np.sin(angles)]))
    values = np.einsum("in,ij,jn->n", circle, matrix, circle) / 2
    highest = values.max() - start @ matrix @ start / 2
    loss_fn, params = quadratic(jnp.asarray(matrix, jnp.float32)), jnp.asarray(start, jnp.float32)
    found = sharpness.worst_case_sharpness(loss_fn, params, jnp.ones(1), 0.5, norm="l2", num_steps=40)
    assert found.value == pytest.approx(highest, rel=1e-3) and found.value <= highest * (1 + 1e-5)


def test_a_step_that_overshoots_is_halved():
    def ridge(w, batch):  # highest at 1.1, in a ball from 0.8 to 1.2
        return -jnp.abs(w - 1.1) * batch

    few, many = (
        sharpness.worst_case_sharpness(ridge, jnp.array(1.0), jnp.ones(1), 0.2, num_steps=n).value
        for n in (3, 60)
    )
    assert few < 0.09 < many <= 0.1 + 1e-6


def test_looks_are_those_of_auto_pgd():
    assert checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert checkpoints(1) == []


@pytest.mark.slow
def test_scaled_logits_have_the_same_sharpness():
    rng = np.random.default_rng(0)
    batch = {"x": jnp.asarray(rng.normal(size=[6, 4]), jnp.float32), "label": jnp.arange(6) % 3}
    params = jnp.asarray(rng.normal(size=[4, 3]), jnp.float32)

    def of(scale):
        def losses(w, batch):
            logits = sharpness.normalized_logits(scale * batch["x"] @ w)
            return -jnp.take_along_axis(jax.nn.log_softmax(logits), batch["label"][:, None], axis=1)[:, 0]

        return sharpness.worst_case_sharpness(losses, params, batch, 0.05, num_steps=5).value

    assert of(1.0) == pytest.approx(of(30.0), rel=1e-3)
    logits = sharpness.normalized_logits(jnp.array([[3.0, 1.0, 2.0], [5.0, 5.0, 5.0]]))
    np.testing.assert_allclose(logits, [[2**-0.5, -(2**-0.5), 0], [0, 0, 0]], atol=1e-6)
    slope = jax.grad(lambda z: sharpness.normalized_logits(z)[0])(jnp.ones(3))
    np.testing.assert_array_equal(slope, 0)
