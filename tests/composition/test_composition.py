"""Before and inside Optax's own transformations, over every public method.

Parts of the parameters stand in `test_parts_of_the_parameters.py`, searches along a line and lookahead in
`test_line_searches.py`, accumulation over micro-batches and what else Optax asks in `test_optax_bar.py`.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_sam
from tests.composition.chains import remember, side_by_side
from tests.problem import (
    assert_trees_close,
    assert_trees_equal,
    init_params,
    losses,
    make_batch,
    make_indices,
)
from tests.registry import METHODS, VARIANTS, over

STEPS = 4

pytestmark = pytest.mark.usefixtures("as_optax_promotes")
every_kind = pytest.mark.parametrize("name", over(METHODS))

BEHIND = side_by_side(
    descent=optax.identity(),
    clip=optax.clip_by_global_norm(0.01),
    decay_and_adam=optax.chain(optax.add_decayed_weights(1e-3), optax.adam(0.01)),
    named=optax.named_chain(("momentum", optax.trace(0.9)), ("rate", optax.scale(-0.1))),
    muon=optax.contrib.muon(0.01),
    polyak=optax.polyak_sgd(max_learning_rate=0.5),
    plateau=optax.contrib.reduce_on_plateau(factor=0.5, patience=2),
    if_finite=optax.apply_if_finite(optax.sgd(0.1), 3),
    schedule_free=optax.contrib.schedule_free(optax.sgd(0.1), 0.1),
    mechanize=optax.contrib.mechanize(optax.sgd(0.1)),
    partition=optax.partition(
        {"sgd": optax.sgd(0.1), "adam": optax.adam(0.1)}, {"layer_0": "sgd", "layer_1": "adam"}
    ),
)


@functools.cache
def behind_by_hand():
    """What stands behind, jitted alone."""
    return jax.jit(lambda descent, state, params, loss: BEHIND.update(descent, state, params, value=loss))


@functools.cache
def behind(name):
    """What is seen in some steps behind a method, at fixed parameters: `(updates, loss, info)`."""
    method, params = METHODS[name].make(), init_params()
    tx = optax.chain(method, BEHIND)

    @jax.jit
    def step(params, state, batch, indices):
        loss, grads, oracle = method.value_and_grad(losses)(params, batch, state=state, indices=indices)
        updates, state = tx.update(grads, state, params, oracle=oracle, value=loss)
        return updates, state, loss

    state, seen = tx.init(params), []
    for _ in range(STEPS):
        updates, state, loss = step(params, state, make_batch(), make_indices())
        seen.append((updates, loss, optax_sam.info(state)))
    return seen


@every_kind
def test_all_behind_it_do_with_the_descent_as_by_hand(name):
    params = init_params()
    state = BEHIND.init(params)
    for updates, loss, _ in behind(name):
        wanted, state = behind_by_hand()(updates["descent"], state, params, loss)
        assert_trees_close(updates, wanted, rtol=1e-5, atol=1e-6)


@every_kind
def test_step_sizes_are_those_of_the_descent_and_the_given_loss(name):
    """The formulas: norm clipping, Polyak's step, a plateau of two steps without a better loss."""
    best, without, scale = np.inf, 0, 1.0
    for updates, loss, info in behind(name):
        descent = updates["descent"]
        size = np.sqrt(sum(np.sum(np.square(x)) for x in jax.tree.leaves(descent)))
        if name in ("sam", "asam", "ausam"):
            np.testing.assert_allclose(size, info["perturbed_grad_norm"], rtol=1e-5)
            assert not np.isclose(size, info["grad_norm"], rtol=1e-3)
        improved = loss < (1 - 1e-4) * best
        best, without = (loss, 0) if improved else (best, without + 1)
        if without == 2:
            scale, without = 0.5 * scale, 0
        factors = {
            "clip": min(1, 0.01 / size),
            "polyak": -min(loss / size**2, 0.5),
            "plateau": scale,
            "if_finite": -0.1,
        }
        for key, factor in factors.items():
            wanted = jax.tree.map(lambda x, factor=factor: factor * x, descent)
            assert_trees_close(updates[key], wanted, rtol=1e-4, atol=1e-7)
    if METHODS[name].starts_at_params and METHODS[name].examples == 1:
        assert scale == 0.5  # the loss at fixed parameters is a plateau


def around(method):
    """Optax's wrappers around the method and a base optimizer; what the base is handed is kept."""
    chained = optax.named_chain(("sharpness", method), ("seen", remember()), ("base", optax.sgd(0.1)))
    return {
        "schedule_free": optax.contrib.schedule_free(optax.apply_if_finite(chained, 3), 0.1),
        "mechanize": optax.contrib.mechanize(chained, s_init=0.1),
    }


@functools.cache
def around_by_hand():
    """The same wrappers around the base optimizer alone, to which the descent comes by another way."""

    def update(updates, state, params, *, descent):
        del updates
        return optax.sgd(0.1).update(descent, state, params)

    base = optax.GradientTransformationExtraArgs(optax.sgd(0.1).init, update)
    wrappers = {
        "schedule_free": optax.contrib.schedule_free(base, 0.1),
        "mechanize": optax.contrib.mechanize(base, s_init=0.1),
    }
    params = init_params()
    return {key: (jax.jit(tx.update), tx.init(params)) for key, tx in wrappers.items()}


@every_kind
def test_wrappers_around_it_hand_the_descent_to_the_base_optimizer(name):
    """`mechanize` tunes its step size by the gradient that it is handed itself, the clean one; with
    `chain(method, mechanize(base))` it is the descent.
    """
    method = METHODS[name].make()
    wrappers = around(method)

    @jax.jit
    def step(runs, batch, indices):
        after = {}
        for key, (params, state) in runs.items():
            _, grads, oracle = method.value_and_grad(losses)(params, batch, state=state, indices=indices)
            updates, state = wrappers[key].update(grads, state, params, oracle=oracle)
            after[key] = grads, updates, state
        return after

    runs = {key: (init_params(), tx.init(init_params())) for key, tx in wrappers.items()}
    by_hand = dict(around_by_hand())
    for number in range(STEPS):
        for key, (grads, updates, state) in step(runs, make_batch(number), make_indices(number)).items():
            descent, params = optax.tree.get(state, "seen"), runs[key][0]
            if number == 0:
                assert_trees_close(descent, behind(name)[0][0]["descent"], rtol=1e-5)
            update, by_hand_state = by_hand[key]
            wanted, by_hand_state = update(grads, by_hand_state, params, descent=descent)
            assert_trees_close(updates, wanted, rtol=1e-5, atol=1e-6)
            by_hand[key] = update, by_hand_state
            runs[key] = optax.apply_updates(params, updates), state
    moved = optax.tree.norm(optax.tree.sub(runs["mechanize"][0], init_params()))
    assert float(moved) > 1e-3


@every_kind
def test_conditionally_transform_skips_the_method_and_its_state(name):
    """Every second step descends along the clean gradient, of which the method learns nothing."""
    method, params = METHODS[name].make(), init_params()
    tx = optax.conditionally_transform(method, lambda step: step % 2 == 0)

    @jax.jit
    def step(params, state, batch, indices):
        grads = jax.grad(lambda p: losses(p, batch).mean())(params)
        oracle = optax_sam.Oracle(losses, batch, indices=indices)
        return grads, *tx.update(grads, state, params, oracle=oracle)

    state = tx.init(params)
    for number in range(4):
        before = state.inner_state
        grads, descent, state = step(params, state, make_batch(), make_indices())
        if number % 2:
            assert_trees_equal(descent, grads)
            assert_trees_equal(state.inner_state, before)
        else:
            wanted = behind(name)[number // 2][0]["descent"]
            assert_trees_close(descent, wanted, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", [name for name in METHODS if not METHODS[name].needs_oracle])
def test_apply_if_finite_around_it_judges_the_clean_gradient_alone(name):
    """A gradient that is not finite is skipped, the method's state included; a perturbed one passes."""
    method, params = METHODS[name].make(), {"w": jnp.array([3.0, 4.0])}
    tx = optax.apply_if_finite(optax.chain(method, optax.sgd(0.1)), 3)
    nowhere = lambda p: jax.tree.map(lambda x: jnp.inf * x, p)
    update = jax.jit(lambda g, state: tx.update(g, state, params, grad_fn=nowhere, perturb=True))
    state = tx.init(params)
    updates, after = update(nowhere(params), state)
    assert_trees_equal(updates, optax.tree.zeros_like(params))
    assert_trees_equal(after.inner_state, state.inner_state)
    assert not after.last_finite
    updates, after = update(params, state)
    assert not np.isfinite(np.asarray(updates["w"])).any()
    assert after.last_finite


def test_state_without_ours_is_refused():
    with pytest.raises(ValueError, match="no state of a sharpness-aware method"):
        optax_sam.sam().value_and_grad(losses)(
            init_params(), make_batch(), state=optax.sgd(0.1).init(init_params())
        )


@pytest.mark.skipif(not hasattr(optax, "microbatching"), reason="Optax has it since 0.2.7")
@pytest.mark.parametrize("name", ["sam", "rst", "vsam"])
def test_accumulated_gradient_function_is_the_big_batch(name):
    method, params = VARIANTS[name].make(), init_params()
    batch = make_batch(size=16)

    def accumulated(params):
        gradient = jax.grad(lambda p, b: jnp.mean(losses(p, b)))
        micro = optax.microbatching.microbatch(
            gradient, argnums=1, microbatch_size=4, accumulator=optax.microbatching.AccumulationType.MEAN
        )
        return micro(params, batch)

    @jax.jit
    def both(params, state):
        oracle = optax_sam.Oracle(losses, batch)
        by_function = method.update(accumulated(params), state, params, grad_fn=accumulated, perturb=True)
        return by_function[0], method.update(params, state, params, oracle=oracle, perturb=True)[0]

    got, wanted = both(params, method.init(params))
    assert_trees_close(got, wanted, rtol=1e-5, atol=1e-6)
