"""What users of SAM do to the chain, over every public method: schedules, clipping, accumulation, masks.

The faults that these tests would find are reproduced in `test_traps_in_optax.py`.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_sam
from tests.problem import assert_trees_equal
from tests.registry import GATED, VARIANTS, WRAPPED, over
from tests.traps.quadratic import CURVATURE, INDICES, ROWS, START, gradient, length, losses, watched

every_kind = pytest.mark.parametrize("name", over(WRAPPED))


@pytest.fixture(autouse=True)
def as_optax_promotes():
    """Some of Optax's own transformations mix dtypes and ranks."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def begin(method, state, params=START, rows=ROWS, loss_fn=losses):
    """The first half of a training step."""
    return method.value_and_grad(loss_fn)(params, rows, state=state, indices=INDICES)


# Schedules and the point that is seen.


@every_kind
def test_points_seen_lie_at_the_scheduled_radius_in_every_step(name):
    steps = watched(name)
    for number, step in enumerate(steps):
        distances = [length(name, point - step.params, step.params) for point in step.points]
        away = [distance for distance in distances if distance > 1e-6]
        assert bool(away) == step.due == bool(step.info["perturbed"])
        np.testing.assert_allclose(away, 0.02 * (number + 1), rtol=1e-3)
        assert len(away) < len(distances)
    perturbed = [step.due for step in steps]
    if name in GATED:  # a step that is not perturbed does not stop the schedule
        assert any(later and not earlier for earlier, later in zip(perturbed, perturbed[1:], strict=False))
    else:
        assert all(perturbed)


@every_kind
def test_parameters_in_hand_and_the_loss_in_the_log_are_clean(name):
    for step in watched(name):
        clean = [point for point in step.points if np.array_equal(point, step.params)]
        assert clean, "the parameters in hand were never looked at"
        if VARIANTS[name].examples == 1:
            np.testing.assert_allclose(step.loss, np.mean(losses(step.params, ROWS)), rtol=1e-5)
        np.testing.assert_allclose(step.info["loss"], step.loss, rtol=1e-6)


def test_perturbing_every_step_is_sam_and_no_radius_is_the_base_optimizer():
    def trajectory(rho, gate=None):
        tx = optax.chain(
            optax_sam.sharpness_aware(optax_sam.ascents.to_radius(rho), gate=gate), optax.sgd(0.05)
        )

        @jax.jit
        def step(params, state):
            updates, state = tx.update(gradient(params), state, params, grad_fn=gradient)
            return optax.apply_updates(params, updates), state

        params, state = jnp.asarray(START), tx.init(START)
        for _ in range(3):
            params, state = step(params, state)
        return params

    by_hand = START.astype(np.float64)
    for _ in range(3):
        g = CURVATURE * by_hand
        by_hand = by_hand - 0.05 * CURVATURE * (by_hand + 0.1 * g / np.linalg.norm(g))
    assert_trees_equal(trajectory(0.1, optax_sam.gates.every(1)), trajectory(0.1))
    np.testing.assert_allclose(trajectory(0.1), by_hand, rtol=1e-5)
    np.testing.assert_allclose(
        trajectory(0.0, optax_sam.gates.every(1)), [0.857375, -1.024, 0.499125], rtol=1e-5
    )


@every_kind
def test_late_start_pays_nothing_before_and_perturbs_afterwards(name):
    case, examples = VARIANTS[name], []
    method = case.make()
    tx = optax.chain(optax.conditionally_transform(method, lambda step: step >= 2), optax.sgd(0.1))

    def counted(params, rows):
        jax.debug.callback(lambda size=rows.shape[0]: examples.append(size))
        return losses(params, rows)

    @jax.jit
    def step(state):
        _, _, oracle = begin(method, state, loss_fn=counted)
        updates, state = tx.update(gradient(START), state, START, oracle=oracle, perturb=True)
        return updates, state

    @jax.jit
    def step_by_hand(state):
        oracle = optax_sam.Oracle(counted, ROWS, indices=INDICES)
        return tx.update(gradient(START), state, START, oracle=oracle, perturb=True)

    state, paid_before = tx.init(START), len(ROWS)
    if not case.starts_at_params or case.examples < 1:  # the base optimizer would descend on its beginning
        for door in (step, lambda s: optax_sam.step(tx, losses)(START, s, ROWS, indices=INDICES)):
            with pytest.raises(ValueError, match=r"conditionally_transform .* oracle made by hand"):
                door(state)
        step, paid_before = step_by_hand, 0
    for number in range(4):
        examples.clear()
        updates, state = step(state)
        jax.effects_barrier()
        assert sum(examples) == (len(ROWS) * case.gradients if number >= 2 else paid_before)
        assert np.allclose(updates, -0.1 * CURVATURE * START, rtol=1e-5) == (number < 2)
    assert optax_sam.info(state)["perturbed"] == 1
    assert state[0].inner_state.step == 2  # schedules inside count from the late start


# What stands before and behind in the chain.


@every_kind
def test_decay_clipping_and_scaling_behind_act_on_the_descent_and_never_on_the_radius(name):
    method = VARIANTS[name].make()
    behind = optax.chain(
        method, optax.add_decayed_weights(0.1), optax.clip_by_global_norm(0.5), optax.scale(-0.1)
    )
    before = optax.chain(optax.clip_by_global_norm(0.01), method)

    @jax.jit
    def updates():
        _, grads, oracle = begin(method, method.init(START))
        return [
            tx.update(grads, tx.init(START), START, oracle=oracle, perturb=True)
            for tx in (method, behind, before)
        ]

    (descent, alone), (update, (chained, *_)), (unbounded, (_, steered)) = updates()
    decayed = np.asarray(descent) + 0.1 * START
    np.testing.assert_allclose(update, -0.1 * 0.5 * decayed / np.linalg.norm(decayed), rtol=1e-5)
    assert_trees_equal(chained, alone)
    # A bound on the first gradient is none on the descent; it turns no perturbation and shortens none.
    assert np.linalg.norm(unbounded) > 0.9
    radii = [optax_sam.info(state)["perturbation_norm"] for state in (alone, steered)]
    np.testing.assert_allclose(radii[1], radii[0], rtol=1e-5)
    if name not in ("grst", "pugd"):  # these descend along both gradients
        np.testing.assert_allclose(unbounded, descent, rtol=1e-5)


def test_decay_before_steers_the_perturbation_and_is_not_descended_on():
    sam = optax_sam.sam(0.1)
    tx = optax.chain(optax.add_decayed_weights(5.0), sam)
    state = tx.init(START)
    _, grads, oracle = begin(sam, state)
    descent, _ = tx.update(grads, state, START, oracle=oracle)
    direction = CURVATURE * START + 5.0 * START
    wanted = CURVATURE * (START + 0.1 * direction / np.linalg.norm(direction))
    np.testing.assert_allclose(descent, wanted, rtol=1e-5)


# Accumulation.


@every_kind
def test_where_optax_strips_keywords_the_error_names_both_doors(name):
    method = VARIANTS[name].make()
    stripped = optax.MultiSteps(optax.chain(method, optax.sgd(0.1)), 2).gradient_transformation()
    tx = optax.chain(stripped)
    with pytest.raises(ValueError, match=r"none of oracle and grad_fn(.|\n)*exactly one"):
        tx.update(START, tx.init(START), START, oracle=optax_sam.Oracle(losses, ROWS, indices=INDICES))


# Hyperparameters, finite checks, masks.
