"""What users of SAM do to the chain, over every public method: schedules, clipping, accumulation, masks.

The faults that these tests would find are reproduced in `test_traps_in_optax.py`.
"""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_sam
from tests.quadratic import CURVATURE, INDICES, ROWS, START, gradient, length, losses, watched
from tests.registry import GATED, METHODS, VARIANTS, WRAPPED, assert_trees_equal

every_method = pytest.mark.parametrize("name", WRAPPED)


@pytest.fixture(autouse=True)
def as_optax_promotes():
    """Some of Optax's own transformations mix dtypes and ranks."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def begin(method, state, params=START, rows=ROWS, loss_fn=losses):
    """The first half of a training step."""
    return method.value_and_grad(loss_fn)(params, rows, state=state, indices=INDICES)


# Schedules and the point that is seen.


@every_method
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


@every_method
def test_parameters_in_hand_and_the_loss_in_the_log_are_clean(name):
    for step in watched(name):
        clean = [point for point in step.points if np.array_equal(point, step.params)]
        assert clean, "the parameters in hand were never looked at"
        if VARIANTS[name].examples == 1:
            np.testing.assert_allclose(step.loss, np.mean(losses(step.params, ROWS)), rtol=1e-5)
        np.testing.assert_allclose(step.info["loss"], step.loss, rtol=1e-6)


def test_perturbing_every_step_is_sam_and_no_radius_is_the_base_optimizer():
    def trajectory(rho, gate=None):
        tx = optax.chain(optax_sam.sharpness_aware(optax_sam.to_radius(rho), gate=gate), optax.sgd(0.05))

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
    assert_trees_equal(trajectory(0.1, optax_sam.every(1)), trajectory(0.1))
    np.testing.assert_allclose(trajectory(0.1), by_hand, rtol=1e-5)
    np.testing.assert_allclose(trajectory(0.0, optax_sam.every(1)), [0.857375, -1.024, 0.499125], rtol=1e-5)


@every_method
def test_late_start_pays_nothing_before_and_perturbs_afterwards(name):
    case, examples = VARIANTS[name], []
    method = case.make()
    tx = optax.chain(optax.conditionally_transform(method, lambda step: step >= 2), optax.sgd(0.1))

    def counted(params, rows):
        jax.debug.callback(lambda size=rows.shape[0]: examples.append(size))
        return losses(params, rows)

    @jax.jit
    def step(state):
        _, grads, oracle = begin(method, state, loss_fn=counted)
        updates, state = tx.update(grads, state, START, oracle=oracle, perturb=True)
        return updates, state, grads

    state = tx.init(START)
    for number in range(4):
        examples.clear()
        updates, state, grads = step(state)
        jax.effects_barrier()
        assert sum(examples) == len(ROWS) * (case.gradients if number >= 2 else case.examples)
        assert np.allclose(updates, -0.1 * grads, rtol=1e-5) == (number < 2)
    assert optax_sam.info(state)["perturbed"] == 1
    assert state[0].inner_state.step == 2  # schedules inside count from the late start


# What stands before and behind in the chain.


@every_method
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


@every_method
def test_an_optimizer_that_needs_the_loss_gets_it(name):
    method = VARIANTS[name].make()
    tx = optax.chain(method, optax.polyak_sgd())
    state = tx.init(START)

    @jax.jit
    def step():
        loss, grads, oracle = begin(method, state)
        descent, _ = method.update(grads, state[0], START, oracle=oracle)
        return loss, descent, tx.update(grads, state, START, oracle=oracle, value=loss)[0]

    loss, descent, updates = step()
    np.testing.assert_allclose(updates, -min(loss / np.sum(descent**2), 1.0) * descent, rtol=1e-4)


def test_a_line_search_behind_takes_a_loss_that_accepts_the_oracle():
    sam = optax_sam.sam(0.1)
    tx = optax.chain(sam, optax.sgd(1.0), optax.scale_by_backtracking_linesearch(20))
    state = tx.init(START)

    def step(value_fn):
        loss, grads, oracle = begin(sam, state)
        return tx.update(grads, state, START, oracle=oracle, value=loss, grad=grads, value_fn=value_fn)[0]

    with pytest.raises(TypeError, match="oracle"):
        step(lambda params: jnp.mean(losses(params, ROWS)))
    updates = step(lambda params, oracle: jnp.mean(oracle.losses(params, oracle.batch)))
    assert np.mean(losses(START + updates, ROWS)) < np.mean(losses(START, ROWS))


# Accumulation.


@every_method
def test_multi_steps_behind_descends_on_the_mean_of_the_micro_batches(name):
    method = VARIANTS[name].make()
    tx = optax.chain(method, optax.MultiSteps(optax.sgd(0.1), 4))

    def micro_step(carry, shift):
        chained, alone = carry
        _, grads, oracle = begin(method, chained, rows=ROWS + shift)
        updates, chained = tx.update(grads, chained, START, oracle=oracle)
        _, grads, oracle = begin(method, alone, rows=ROWS + shift)
        descent, alone = method.update(grads, alone, START, oracle=oracle)
        return (chained, alone), (updates, descent)

    @jax.jit
    def run():
        shifts = jnp.array([0.0, 0.5, -0.3, 0.9])
        return jax.lax.scan(micro_step, (tx.init(START), method.init(START)), shifts)[1]

    updates, descents = run()
    np.testing.assert_array_equal(updates[:3], 0)
    np.testing.assert_allclose(updates[3], -0.1 * np.mean(descents, axis=0), rtol=1e-5)


def test_multi_steps_behind_sam_is_sam_per_microbatch():
    sam = optax_sam.sam(0.5)
    whole = np.concatenate([ROWS, ROWS + 0.5, ROWS - 0.3])
    sliced = optax_sam.per_microbatch(sam, 3)
    _, grads, oracle = sliced.value_and_grad(losses)(START, whole, state=sliced.init(START))
    wanted, _ = sliced.update(grads, sliced.init(START), START, oracle=oracle)
    tx = optax.chain(sam, optax.MultiSteps(optax.sgd(1.0), 3))
    state = tx.init(START)
    for rows in np.split(whole, 3):
        _, grads, oracle = begin(sam, state, rows=rows)
        updates, state = tx.update(grads, state, START, oracle=oracle)
    np.testing.assert_allclose(updates, -wanted, rtol=1e-5)


@every_method
def test_where_optax_strips_keywords_the_error_names_both_doors(name):
    method = VARIANTS[name].make()
    stripped = optax.MultiSteps(optax.chain(method, optax.sgd(0.1)), 2).gradient_transformation()
    tx = optax.chain(stripped)
    with pytest.raises(ValueError, match=r"none of oracle and grad_fn(.|\n)*exactly one"):
        tx.update(START, tx.init(START), START, oracle=optax_sam.Oracle(losses, ROWS, indices=INDICES))


# Hyperparameters, finite checks, masks.


@pytest.mark.parametrize("name", METHODS)
def test_inject_hyperparams_without_static_arguments_works_or_says_what_to_do(name):
    case = METHODS[name]
    arguments = {**case.required, **case.own}
    tx = optax.inject_hyperparams(case.method)(**arguments)
    oracle = optax_sam.Oracle(losses, ROWS, indices=INDICES)
    defaults = {key: value.default for key, value in inspect.signature(case.method).parameters.items()}
    shaping = [(defaults | arguments)[key] for key in optax_sam.static_arguments(case.method)]

    @jax.jit
    def step():
        return tx.update(START, tx.init(START), START, oracle=oracle)[0]

    if any(isinstance(value, int | float) and not isinstance(value, bool) for value in shaping):
        with pytest.raises(TypeError, match=r"an array.*static_arguments"):
            step()
    else:
        assert np.all(np.isfinite(step()))


def test_apply_if_finite_around_the_chain_judges_the_first_gradient_alone():
    sam = optax_sam.sam()
    around = optax.apply_if_finite(optax.chain(sam, optax.sgd(0.1)), 3)
    behind = optax.chain(sam, optax.apply_if_finite(optax.sgd(0.1), 3))
    for tx, passes in ((around, True), (behind, False)):
        updates, state = tx.update(
            START, tx.init(START), START, grad_fn=lambda params: jnp.full_like(params, jnp.inf)
        )
        assert bool(np.all(np.isinf(updates))) == passes
        assert bool(np.all(np.asarray(updates) == 0)) != passes
        own = optax_sam.info(state)
        assert np.isnan(own["perturbed_grad_norm"]) and own["perturbed"] == 1
        leaves = jax.tree.leaves(state)
        assert all(np.all(np.isfinite(x)) for x in leaves)


@every_method
def test_partition_leaves_the_other_part_to_its_own_optimizer(name):
    method = VARIANTS[name].make()
    labels = {"near": "sharp", "far": "plain"}
    tx = optax.partition({"sharp": optax.chain(method, optax.sgd(0.1)), "plain": optax.sgd(0.5)}, labels)
    params = {"near": jnp.asarray(START), "far": jnp.asarray(-START)}
    state = tx.init(params)

    @jax.jit
    def step():
        _, grads, oracle = begin(
            method, state, params, loss_fn=lambda p, rows: losses(p["near"], rows) + losses(p["far"], rows)
        )
        return tx.update(grads, state, params, oracle=oracle, perturb=True), grads

    (updates, after), grads = step()
    np.testing.assert_allclose(updates["far"], -0.5 * grads["far"], rtol=1e-6)
    assert np.all(np.isfinite(updates["near"]))
    assert optax_sam.info(after)["perturbation_norm"] > 0.04
    assert not np.allclose(updates["near"], -0.1 * grads["near"], rtol=1e-5)
