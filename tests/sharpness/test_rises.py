"""Worst and average rises, gradient noise, PSF norms and landscapes, against NumPy and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optax_sam
from optax_sam import per_example, sharpness
from tests.sharpness.problems import floats, joined, losses, network, quadratic

MATRIX = np.array([[3.0, 1.0], [1.0, -1.0]])
START = np.array([0.5, 0.25])
ONE = jnp.ones([1])


def value(w):
    return w @ MATRIX @ w / 2


def test_one_step_is_sam_and_several_come_close_to_the_highest_point_of_the_ball():
    loss_fn, params, rho = quadratic(jnp.asarray(MATRIX, jnp.float32)), jnp.asarray(START, jnp.float32), 0.3
    gradient = MATRIX @ START
    there = START + rho * gradient / np.linalg.norm(gradient)
    found = sharpness.ascent_sharpness(loss_fn, params, ONE, rho)
    assert found.value == pytest.approx(value(there) - value(START), rel=1e-5)
    assert found.loss == pytest.approx(value(START)) and found.count == 1
    assert sharpness.surrogate_gap(loss_fn, params, ONE, rho).value == pytest.approx(found.value, rel=1e-6)
    angles = np.linspace(0, 2 * np.pi, 20_000)
    circle = START[:, None] + rho * np.stack([np.cos(angles), np.sin(angles)])
    highest = np.max(np.einsum("in,ij,jn->n", circle, MATRIX, circle)) / 2 - value(START)
    several = sharpness.ascent_sharpness(loss_fn, params, ONE, rho, num_steps=20)
    assert found.value < several.value <= highest * (1 + 1e-5)
    assert several.value == pytest.approx(highest, rel=1e-3)


def test_the_step_is_that_of_the_methods():
    params, loss_fn, batches = network()
    params = {"first": params["first"], "second": params["second"]}
    for method, adaptive, rho, eta in (
        (optax_sam.sam(0.05), False, 0.05, 0.0),
        (
            optax_sam.sharpness_aware(
                optax_sam.ascents.to_radius(0.5, optax_sam.geometries.elementwise(0.01, biases=True))
            ),
            True,
            0.5,
            0.01,
        ),
    ):
        state, batch = method.init(params), batches[0]
        (_, grads, oracle) = method.value_and_grad(loss_fn)(params, batch, state=state)
        told = optax_sam.info(method.update(grads, state, params, oracle=oracle)[1])
        found = sharpness.ascent_sharpness(loss_fn, params, batch, rho, adaptive=adaptive, eta=eta)
        assert found.value == pytest.approx(float(told["sharpness"]), rel=1e-4)
        assert found.loss == pytest.approx(float(told["loss"]), rel=1e-6)


def test_the_adaptive_ball_does_not_see_a_rescaling():
    def loss_fn(params, batch):
        return (params["u"] * params["v"] * batch - 1) ** 2

    batch = jnp.array([0.5, 2.0])
    balanced, lopsided = (
        {"u": jnp.array(1.5), "v": jnp.array(0.5)},
        {"u": jnp.array(15.0), "v": jnp.array(0.05)},
    )

    def of(params, adaptive):
        worst = sharpness.ascent_sharpness(loss_fn, params, batch, 0.1, num_steps=3, adaptive=adaptive).value
        mean = sharpness.average_sharpness(
            loss_fn, params, batch, 0.1, adaptive=adaptive, num_samples=4
        ).value
        return worst, mean

    np.testing.assert_allclose(of(balanced, True), of(lopsided, True), rtol=1e-4)
    assert of(lopsided, False)[0] > 2 * of(balanced, False)[0]


def test_m_sharpness_is_the_mean_over_parts_of_so_many_examples():
    params, loss_fn, batches = network()
    first = jax.tree.map(lambda x: x[:3], batches[0])
    parts = [jax.tree.map(lambda x, i=i: x[i : i + 1], first) for i in range(3)]
    each = [sharpness.ascent_sharpness(loss_fn, params, part, 0.1).value for part in parts]
    found = sharpness.ascent_sharpness(loss_fn, params, first, 0.1, microbatch_size=1)
    assert found.value == pytest.approx(np.mean(each), rel=1e-4) and found.count == 3
    assert found.standard_error == pytest.approx(np.std(each, ddof=1) / 3**0.5, rel=1e-3)
    whole = sharpness.ascent_sharpness(loss_fn, params, first, 0.1)
    assert whole.value < found.value and whole.count == 1 and np.isnan(whole.standard_error)


@pytest.mark.parametrize(("distribution", "factor"), [("gaussian", 1 / 2), ("uniform", 1 / 6)])
def test_the_average_rise_of_a_quadratic_is_its_trace(distribution, factor):
    diagonal = jnp.array([4.0, 2.0, 1.0, -1.0])
    found = sharpness.average_sharpness(
        quadratic(jnp.diag(diagonal)), jnp.ones(4), ONE, 0.1, distribution=distribution, num_samples=200
    )
    expected = 0.1**2 * factor * 6
    assert abs(found.value - expected) < 4 * found.standard_error < expected
    assert found.count == 200


def test_gradient_noise_is_the_spread_of_the_examples_gradients():
    params, loss_fn, batches = network()
    whole = joined(batches)
    gradients = np.array(
        [
            floats(jax.grad(lambda p, i=i: losses(p, whole)[i], allow_int=True)(without_counts(params)))
            for i in range(10)
        ]
    )
    found = sharpness.gradient_noise(loss_fn, params, batches)
    np.testing.assert_allclose(found.norms, np.linalg.norm(gradients, axis=1), rtol=1e-5)
    assert found.variance == pytest.approx(np.trace(np.cov(gradients.T)), rel=1e-4)
    assert found.grad_norm == pytest.approx(np.linalg.norm(gradients.mean(0)), rel=1e-5)
    signal = found.grad_norm**2 - found.variance / len(found.norms)
    assert found.noise_scale == pytest.approx(found.variance / signal)
    in_parts = sharpness.gradient_noise(loss_fn, params, whole, microbatch_size=5)
    np.testing.assert_allclose(in_parts.norms, found.norms, rtol=1e-5)
    assert np.array_equal(per_example.gradient_norms(losses, params, whole).shape, found.norms.shape)


def test_gradients_that_are_nearly_alike_keep_the_digits_of_their_spread():
    x = np.float32(1000 + 0.05 * np.random.default_rng(0).normal(size=(64, 4)))
    expected = np.trace(np.cov(np.float64(x).T))
    batches = [jnp.asarray(x[:24]), jnp.asarray(x[24:])]
    found = sharpness.gradient_noise(lambda w, rows: rows @ w, jnp.ones(4), batches)
    assert found.variance == pytest.approx(expected, rel=1e-3)
    assert sharpness.gradient_noise(lambda w, rows: rows @ w, jnp.ones(2), jnp.ones((3, 2))).variance == 0


def kept(rows):
    return jax.random.bernoulli(jax.random.key(0), 0.9, rows.shape)


def dropped(w, rows):
    return jnp.where(kept(rows), rows, 0.0) @ w


def before_a_new_head(w, rows):
    """All losses are alike, their gradients are not."""
    return 3.0 + dropped(w, rows) - jax.lax.stop_gradient(dropped(w, rows))


def centred(rows):
    return rows - rows.mean(0, keepdims=True)


def normalized(w, rows):
    return jnp.square(centred(rows) @ w) + 1.0


def before_a_small_head(w, rows):
    return jnp.logaddexp(0.0, 0.02 * (jnp.tanh(centred(rows) * w[None]) @ jnp.ones(3)))


def over_their_mean_length(w, rows):
    return rows[:, 0] * w[0] / jnp.mean(rows[:, 0] + 60.0)


NOT_ALONE = {
    "dropout": (dropped, "in another place of the batch, as dropout does"),
    "dropout, a mean": (lambda w, rows: dropped(w, rows).mean(), "in another place of the batch"),
    "dropout before a new head": (before_a_new_head, "in another place of the batch"),
    "batch norm": (normalized, "alone than beside others, as batch norm in training does"),
    "batch norm, a mean": (lambda w, rows: normalized(w, rows).mean(), "alone than beside others"),
    "batch norm before a small head": (before_a_small_head, "alone than beside others"),
    "sums of tokens over a mean length": (over_their_mean_length, "alone than beside others"),
}


@pytest.mark.parametrize(("scale", "least"), [(100.0, 0.8), (1000.0, 0.7)])
def test_a_noise_scale_is_found_that_is_as_large_as_the_number_of_examples(scale, least):
    """A mean of n examples is noise of variance / n, too: its square alone would say n at most."""
    width, rng = 1000, np.random.default_rng(0)
    rows = rng.normal(size=(1024, width)) + np.sqrt(1 / scale)
    found = sharpness.gradient_noise(lambda w, x: x @ w, jnp.ones(width), jnp.asarray(rows, jnp.float32))
    assert least < found.noise_scale / scale < 1 / least
    nothing = sharpness.gradient_noise(lambda w, x: x @ w, jnp.ones(2), jnp.array([[1.0, 1.0], [-1.0, -1.0]]))
    assert nothing.noise_scale == np.inf


@pytest.mark.parametrize("name", NOT_ALONE)
def test_gradient_noise_refuses_losses_of_which_one_example_says_something_else(name):
    loss_fn, message = NOT_ALONE[name]
    rows = jnp.arange(1.0, 13.0).reshape(4, 3)
    with pytest.raises(ValueError, match=message):
        sharpness.gradient_noise(loss_fn, jnp.ones(3), rows)


@pytest.mark.parametrize(
    ("dtype", "scale", "error"),
    [("float32", 1.0, 1e-3), ("float32", 1e-5, 1e-2), ("bfloat16", 1.0, 0.1)],
)
def test_rounding_is_no_other_loss(dtype, scale, error):
    """A network of eight layers, and targets that it fits but for `scale`."""
    rng = np.random.default_rng(0)
    params = [jnp.asarray(rng.normal(size=(64, 64)) / 8, jnp.float32) for _ in range(8)]
    x = jnp.asarray(rng.normal(size=(32, 64)), jnp.float32)

    def outputs(params, x):
        x = x.astype(dtype)
        for w in params:
            x = jax.nn.relu(x @ w.astype(dtype)) * jnp.array(1.4, dtype)
        return x.astype(jnp.float32)

    targets = outputs(params, x) + scale * jnp.asarray(rng.normal(size=(32, 64)), jnp.float32)
    loss_fn = lambda p, b: jnp.square(outputs(p, b["x"]) - b["y"]).sum(1)  # noqa: E731
    found = sharpness.gradient_noise(loss_fn, params, {"x": x, "y": targets})
    gradients = jax.vmap(lambda row: jnp.concatenate([g.ravel() for g in jax.grad(single)(params, row)]))
    single = lambda p, row: loss_fn(p, jax.tree.map(lambda x: x[None], row))[0]  # noqa: E731
    expected = np.asarray(gradients({"x": x, "y": targets}), float).var(axis=0, ddof=1).sum()
    assert found.variance == pytest.approx(expected, rel=error)


def test_dropout_with_a_key_for_each_example_has_its_gradient_noise():
    rows, keys = jnp.arange(1.0, 13.0).reshape(4, 3), jax.random.split(jax.random.key(0), 4)

    def masked(batch):
        kept = jax.vmap(lambda key: jax.random.bernoulli(key, 0.5, (3,)))(batch[1])
        return jnp.where(kept, batch[0], 0.0)

    found = sharpness.gradient_noise(lambda w, batch: masked(batch) @ w, jnp.ones(3), (rows, keys))
    gradients = np.asarray(masked((rows, keys)))
    assert found.variance == pytest.approx(np.trace(np.cov(gradients.T)), rel=1e-5)


def without_counts(params):
    return {"first": params["first"], "second": params["second"]}


def test_the_psf_norm_is_the_mean_of_the_batches_weighted_by_their_examples():
    params, loss_fn, batches = network()
    params, differences = without_counts(params), []
    for batch in batches:
        gradient = jax.grad(lambda p, b=batch: losses(p, b).mean())
        here = gradient(params)
        length = np.linalg.norm(floats(here))
        there = gradient(jax.tree.map(lambda w, g, s=0.1 / length: w + s * g, params, here))
        differences.append(np.linalg.norm(floats(there) - floats(here)))
    found = sharpness.psf_norm(loss_fn, params, batches, 0.1)
    np.testing.assert_allclose(found.norms, differences, rtol=1e-3)
    assert found.value == pytest.approx(np.average(differences, weights=[5, 2, 3]), rel=1e-3)


def test_landscapes_are_the_losses_on_their_grid():
    params, loss_fn, batches = network()
    directions = [sharpness.random_direction(params, seed) for seed in (0, 1)]
    for direction in directions:
        for found, w in zip(jax.tree.leaves(direction), jax.tree.leaves(params), strict=True):
            lengths = np.linalg.norm(w, axis=0) if w.ndim == 2 else np.zeros(w.shape)
            filters = np.linalg.norm(found, axis=0) if w.ndim == 2 else np.abs(found)
            np.testing.assert_allclose(filters, lengths, rtol=1e-5)
    found = sharpness.landscape(loss_fn, params, batches, directions, span=(-1.0, 0.5), num_points=4)
    assert found.losses.shape == (4, 4) and found.axes[0].tolist() == [-1.0, -0.5, 0.0, 0.5]
    params, first, second = map(without_counts, (params, *directions))
    moved = jax.tree.map(lambda w, d, e: w - d + 0.5 * e, params, first, second)
    assert found.losses[0, 3] == pytest.approx(float(losses(moved, joined(batches)).mean()), rel=1e-5)
    assert found.losses[2, 2] == pytest.approx(found.loss, rel=1e-6)
    line = sharpness.landscape(
        loss_fn, params, batches, [sharpness.difference(params, moved)], span=(0.0, 1.0), num_points=2
    )
    assert line.losses[1] == pytest.approx(found.losses[0, 3], rel=1e-5)


def test_batch_statistics_are_those_of_each_point():
    x = np.random.default_rng(0).normal(size=[12, 3]).astype(np.float32)
    batches = [jnp.asarray(x[:8]), jnp.asarray(x[8:])]

    def statistics(w, batch):
        return {"mean": (batch @ w).mean()}

    def loss_fn(w, batch, statistics):
        return (batch @ w - statistics["mean"]) ** 2

    w, direction = jnp.ones(3), jnp.array([1.0, 0.0, -1.0])
    found = sharpness.landscape(loss_fn, w, batches, [direction], num_points=3, statistics=statistics)
    expected = [np.var(x @ (np.ones(3) + a * np.asarray(direction))) for a in (-1, 0, 1)]
    np.testing.assert_allclose(found.losses, expected, rtol=1e-5)


def test_where_the_loss_overflows_the_landscape_is_infinite():
    found = sharpness.landscape(
        lambda w, batch: batch * jnp.exp(w), jnp.array(0.0), ONE, [jnp.array(1.0)], span=200.0, num_points=3
    )
    assert np.isposinf(found.losses[2]) and found.losses[0] == 0
