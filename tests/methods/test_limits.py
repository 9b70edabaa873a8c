"""Limits and reductions: where one method is another one."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optax_sam
from optax_sam.pieces.selections import draw
from tests.methods.small import (
    BATCH,
    BATCHES,
    FAST,
    INDICES,
    NUM_EXAMPLES,
    PARAMS,
    STEPS,
    close,
    flatten,
    losses,
    mean_gradient,
    mean_loss,
    one_step,
    perturbed,
    train,
)

WITHOUT_RADIUS = {
    "sam": optax_sam.sam(rho=0.0),
    "asam": optax_sam.asam(rho=0.0),
    "rst": optax_sam.rst(rho=0.0),
    "grst": optax_sam.grst(rho=0.0, probability=0.4),
    "vsam": optax_sam.vsam(rho=0.0, window=6, slices=3, warmup_steps=4),
    "tsam": optax_sam.tsam(rho=0.0, radius=0.0),
    "ausam": optax_sam.ausam(NUM_EXAMPLES, rho=0.0, fraction=1.0),
    "per_microbatch": optax_sam.per_microbatch(optax_sam.sam(rho=0.0), 4),
    "every": optax_sam.sharpness_aware(optax_sam.ascents.to_radius(0.0), gate=optax_sam.gates.every(3)),
}


@pytest.mark.slow  # `test_guarantees.py` and `test_family.py` ask for it in single precision
@pytest.mark.parametrize("name", WITHOUT_RADIUS)
def test_no_radius_is_the_base_optimizer(name, sgd_run):
    close(train(WITHOUT_RADIUS[name]).params, sgd_run)


def test_rst_with_probability_one_is_sam_bit_for_bit(sam_run):
    run = train(optax_sam.rst(rho=0.1, probability=1.0), options=None)
    np.testing.assert_array_equal(run.params, sam_run.params)
    np.testing.assert_array_equal(run.info["perturbed"], 1)


def test_rst_with_probability_zero_is_the_base_optimizer_bit_for_bit(sgd_run):
    run = train(optax_sam.rst(rho=0.1, probability=0.0), options=None)
    np.testing.assert_array_equal(run.params, sgd_run)
    np.testing.assert_array_equal(run.info["perturbed"], 0)


def test_grst_with_alpha_one_is_rst():
    run, other = train(optax_sam.grst(0.1, 0.5, alpha=1.0, seed=3)), train(optax_sam.rst(0.1, 0.5, seed=3))
    np.testing.assert_array_equal(run.info["perturbed"], other.info["perturbed"])
    assert 0 < run.info["perturbed"].sum() < STEPS
    close(run.params, other.params)


def test_grst_with_alpha_zero_is_the_base_optimizer(sgd_run):
    run = train(optax_sam.grst(0.1, 0.5, alpha=0.0, seed=3))
    assert run.info["perturbed"].sum() > 0
    close(run.params, sgd_run)


def test_grst_with_probability_zero_stays_finite(sgd_run):
    close(train(optax_sam.grst(0.1, probability=0.0)).params, sgd_run)


def test_grst_extrapolates_by_one_over_the_probability():
    method = optax_sam.grst(rho=0.1, probability=0.25)
    descent, _, grads = one_step(method, perturb=True)
    perturbed, *_ = one_step(optax_sam.sam(rho=0.1))
    close(flatten(descent), flatten(grads) + 4 * (flatten(perturbed) - flatten(grads)), atol=1e-6)


def descents_of(tilts, num_samples=4):
    """The descent for every tilt, and the perturbed points of the last: what the loss was asked for."""
    points = []

    def recording(params, batch):
        jax.debug.callback(lambda p: points.append(jax.tree.map(np.array, p)), params, ordered=True)
        return losses(params, batch)

    @partial(jax.jit, compiler_options=FAST)
    def descent(tilt, params):
        method = optax_sam.tsam(0.1, tilt=tilt, num_samples=num_samples, seed=5)
        state = method.init(params)
        _, grads, oracle = method.value_and_grad(recording)(params, BATCH, state=state)
        return method.update(grads, state, params, oracle=oracle)[0]

    descents = [flatten(descent(jnp.float32(tilt), PARAMS)) for tilt in tilts]
    jax.effects_barrier()
    assert len(points) == 2 * num_samples * len(tilts)
    return descents, points[1 - 2 * num_samples :: 2]


def test_tsam_of_one_sample_does_not_depend_on_the_tilt():
    first, *rest = descents_of([0.0, 1.0, -7.0, 1e4], num_samples=1)[0]
    for descent in rest:
        np.testing.assert_array_equal(descent, first)


def test_tilt_chooses_between_the_plain_mean_and_one_sample():
    (plain, worst, best), points = descents_of([0.0, 1e7, -1e7])
    found = np.array([mean_loss(point, BATCH) for point in points])
    grads = np.stack([flatten(mean_gradient(point, BATCH)) for point in points])
    assert np.diff(np.sort(found)).min() > 1e-4
    close(plain, grads.mean(axis=0), atol=1e-6)
    close(worst, grads[found.argmax()], atol=1e-6)
    close(best, grads[found.argmin()], atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"radius": 0.0, "num_samples": 1},
        {"radius": 0.0, "noise": "uniform"},
        {"noise_scale": 0.0, "num_samples": 1},
    ],
    ids=["no_radius", "uniform", "no_noise_scale"],
)
def test_tsam_without_noise_is_sam(options, sam_run):
    close(train(optax_sam.tsam(0.1, tilt=3.0, **options)).params, sam_run.params)


def test_ausam_of_the_whole_batch_is_sam(sam_run):
    run = train(optax_sam.ausam(NUM_EXAMPLES, rho=0.1, fraction=1.0))
    close(run.params, sam_run.params)
    np.testing.assert_array_equal(run.aux, BATCHES["position"])


def test_ausam_with_equal_bounds_draws_uniformly():
    run = train(optax_sam.ausam(NUM_EXAMPLES, score_range=(0.3, 0.3), fraction=0.25, seed=1), steps=3000)
    assert np.ptp(run.after.start.score_sum[-1] / run.after.start.times_scored[-1]) > 1e-3
    counts = np.bincount(run.aux.ravel(), minlength=12)
    assert counts.sum() == 3 * 3000
    np.testing.assert_allclose(counts / 3000, 0.25, atol=4 * np.sqrt(0.25 * 0.75 / 3000))


def test_ausam_never_scores_what_it_did_not_draw_and_the_first_visit_sets_the_score():
    run = train(optax_sam.ausam(NUM_EXAMPLES, rho=0.1, fraction=0.5, seed=2))
    before, after = run.before.start, run.after.start
    for t in range(STEPS):
        drawn = np.zeros(NUM_EXAMPLES, bool)
        drawn[INDICES[t][run.aux[t]]] = True
        np.testing.assert_array_equal(after.times_scored[t] - before.times_scored[t], drawn)
        np.testing.assert_array_equal(after.score_sum[t][~drawn], before.score_sum[t][~drawn])
        first = drawn & (before.times_scored[t] == 0)
        assert (before.score_sum[t][first] == 0).all() and (after.score_sum[t][first] > 0).all()
    assert (after.times_scored[-1] > 1).any()

    seen = jax.tree.map(lambda x: x[0][run.aux[0]], BATCHES)
    grads = mean_gradient(PARAMS, seen)
    there = perturbed(PARAMS, grads, 0.1)
    change = np.abs(losses(there, seen) - losses(PARAMS, seen))
    close(after.score_sum[0][INDICES[0][run.aux[0]]], change, rtol=1e-3)


def test_draws_without_replacement_follow_the_weights():
    weights = np.array([0.1, 0.2, 0.3, 0.4])
    keys = jax.random.split(jax.random.key(0), 40_000)
    log_weights = jnp.log(jnp.asarray(weights, jnp.float32)) + 2.0  # of any scale
    drawn = np.asarray(jax.jit(jax.vmap(lambda key: draw(log_weights, 2, 1, key)))(keys))[:, 0]
    for i in range(4):
        for j in range(i + 1, 4):
            both = weights[i] * weights[j]
            expected = both / (1 - weights[i]) + both / (1 - weights[j])
            found = np.mean((drawn[:, 0] == i) & (drawn[:, 1] == j))
            np.testing.assert_allclose(found, expected, atol=4 * np.sqrt(expected / 40_000))
