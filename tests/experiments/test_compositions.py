"""Compositions that no paper has: each is its parts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optax_sam
from experiments.methods import compositions
from optax_sam import sharpness_aware
from optax_sam.pieces.ascents import to_radius
from optax_sam.pieces.gates import with_variance_rate
from optax_sam.pieces.reuses import decayed_difference
from optax_sam.pieces.starts import drawn_by_score
from tests.methods.small import (
    BATCH,
    NUM_EXAMPLES,
    PARAMS,
    STEPS,
    close,
    flatten,
    mean_gradient,
    norm,
    one_step,
    perturbed,
    train,
    train_base,
)

WINDOW = {"window": 6, "slices": 3, "max_rate": 0.4}


def drawn_vsam(fraction):
    return sharpness_aware(
        to_radius(0.1),
        start=drawn_by_score(NUM_EXAMPLES, fraction=fraction),
        gate=with_variance_rate(**WINDOW),
        reuse=decayed_difference(0.7, 6),
    )


@pytest.mark.slow
def test_ausam_of_all_examples_with_vsams_gate_is_vsam():
    run, other = train(drawn_vsam(1.0)), train(optax_sam.vsam(rho=0.1, **WINDOW))
    np.testing.assert_array_equal(run.info["perturbed"], other.info["perturbed"])
    close(run.params, other.params)


@pytest.mark.slow
def test_half_of_the_examples_in_some_of_the_steps_costs_less_than_sgd():
    run = train(drawn_vsam(0.5))
    perturbed = run.info["perturbed"]
    spent = np.diff(run.info["gradients"], prepend=0)
    np.testing.assert_allclose(spent, 0.5 * (1 + perturbed), rtol=1e-6)
    assert 0 < perturbed.mean() < 0.5 and run.info["gradients"][-1] < 0.75 * STEPS
    scored = run.after.start.times_scored.sum(axis=1)
    np.testing.assert_array_equal(np.diff(scored, prepend=0), 6 * perturbed)


@pytest.mark.slow
@pytest.mark.parametrize("every_k", [1, 3])
def test_friendly_looksam_is_either_of_the_two_at_its_limits(every_k):
    def made(sigma, alpha):
        return sharpness_aware(
            to_radius(0.1),
            direction=optax_sam.directions.batch_specific(sigma, 0.8),
            gate=optax_sam.gates.every(every_k),
            reuse=optax_sam.reuses.orthogonal_component(alpha),
        )

    close(train(made(0.0, 0.5)).params, train(optax_sam.looksam(0.1, every_k, 0.5)).params)
    if every_k == 1:
        close(train(made(0.7, 0.5)).params, train(optax_sam.friendly_sam(0.1, 0.7, 0.8)).params)
    else:  # the mean of the gradients moves in unpaid steps too
        run = train(made(0.7, 0.5))
        assert np.all(np.ptp(np.diff(flatten(run.after.direction.mean, axes=1), axis=0), axis=1) > 0)


@pytest.mark.slow
def test_asams_geometry_by_a_coin_is_asam_for_a_coin_of_two_heads():
    close(train(compositions.adaptive_rst(0.5, probability=1.0)).params, train(optax_sam.asam(0.5)).params)
    close(train(compositions.adaptive_rst(0.5, probability=0.0)).params, train_base())


@pytest.mark.slow
def test_gsam_of_slices_is_the_mean_of_their_gsams():
    descent, state, _ = one_step(compositions.sharded_gsam(0.1, alpha=0.4, num_microbatches=3))
    parts = []
    for n in range(3):
        part = jax.tree.map(lambda x, n=n: x[4 * n : 4 * n + 4], BATCH)
        params = jax.tree.map(jnp.asarray, PARAMS)
        g = mean_gradient(params, part)
        gs = mean_gradient(perturbed(params, g, 0.1), part)
        along = flatten(g) @ flatten(gs) / norm(gs) ** 2
        parts.append(flatten(gs) - 0.4 * (flatten(g) - along * flatten(gs)))
    close(flatten(descent), np.mean(parts, axis=0), rtol=1e-3, atol=1e-5)
    assert optax_sam.info(state)["gradients"] == pytest.approx(2)


def test_the_compositions_of_the_experiments_are_their_parts():
    drawn = sharpness_aware(
        to_radius(0.1),
        start=drawn_by_score(NUM_EXAMPLES, fraction=0.5),
        gate=with_variance_rate(10),
        reuse=decayed_difference(0.7, 6),
    )
    friendly = sharpness_aware(
        to_radius(0.1),
        direction=optax_sam.directions.batch_specific(1.0, 0.9),
        gate=optax_sam.gates.every(4),
        reuse=optax_sam.reuses.orthogonal_component(0.7),
    )
    found = compositions.drawn_vsam(NUM_EXAMPLES, rho=0.1, window=10)
    close(train(found).params, train(drawn).params)
    close(train(compositions.friendly_looksam(0.1, every_k=4)).params, train(friendly).params)
