"""How a method is called, over every public method: decisions, doors, the first gradient, padding."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_sam
from tests.problem import BATCH, assert_trees_close, init_params, losses, make_batch, make_indices
from tests.registry import GATED, VARIANTS, WRAPPED, first_step, one_step, over

every_kind = pytest.mark.parametrize("name", over(WRAPPED), scope="module")
every_gated = pytest.mark.parametrize("name", over(GATED))


@every_kind
def test_gradient_evaluations_are_those_documented(name):
    case = VARIANTS[name]
    method = case.make()
    examples = []

    def counted(params, batch):
        size = batch["label"].shape[0]
        jax.debug.callback(lambda: examples.append(size))
        return losses(params, batch)

    state = method.init(init_params())

    @jax.jit
    def step(params, state, batch, indices):
        return one_step(method, params, batch, counted, state, indices)

    expected = 0.0
    for number in range(5):
        due = bool(method.due(state))
        examples.clear()
        _, state, _ = step(init_params(), state, make_batch(number), make_indices(number))
        jax.effects_barrier()
        cost = case.gradients if due else case.examples
        expected += cost
        assert due == bool(optax_sam.info(state)["perturbed"])
        if name != "ausam_gradient_norm":  # vmap hides the number of single-example calls
            assert sum(examples) == cost * BATCH
        np.testing.assert_allclose(optax_sam.info(state)["gradients"], expected, rtol=1e-6)


@every_gated
def test_host_decisions_follow_the_program(name):
    method = VARIANTS[name].make()
    tx = optax.chain(method, optax.sgd(0.1, momentum=0.9))
    inside = outside = (init_params(), tx.init(init_params()))

    def step(params, state, batch, indices, perturb):
        _, grads, oracle = method.value_and_grad(losses)(params, batch, state=state, indices=indices)
        updates, state = tx.update(grads, state, params, oracle=oracle, perturb=perturb)
        return optax.apply_updates(params, updates), state

    jitted = jax.jit(step, static_argnames="perturb")
    decisions = []
    for number in range(14):
        batch, indices = make_batch(number), make_indices(number)
        decisions.append(bool(optax_sam.due(outside[1])))
        assert decisions[-1] == bool(method.due(inside[1]))
        inside = jitted(*inside, batch, indices, perturb=None)
        outside = jitted(*outside, batch, indices, perturb=decisions[-1])
    assert_trees_close(inside, outside, rtol=1e-4, atol=1e-6)
    assert 0 < sum(decisions) < len(decisions)


@every_kind
def test_first_gradient_is_where_and_on_what_the_method_wants_it(name):
    case = VARIANTS[name]
    method, params, batch = case.make(), init_params(), make_batch()
    (loss, aux), grads, oracle = method.value_and_grad(lambda p, b: (losses(p, b), b["label"]), has_aux=True)(
        params, batch, state=method.init(params), indices=make_indices()
    )
    mean = lambda p: jnp.mean(losses(p, batch))
    whole_loss, whole_grads = jax.value_and_grad(mean)(params)
    assert isinstance(oracle, optax_sam.Oracle)
    assert aux.size == case.examples * BATCH
    if case.starts_at_params and case.examples == 1:
        np.testing.assert_allclose(loss, whole_loss, rtol=1e-6)
        assert_trees_close(grads, whole_grads, rtol=1e-5, atol=1e-6)
    elif not case.starts_at_params:
        assert not np.allclose(loss, whole_loss, rtol=1e-5)


@functools.cache
def oracle_of_another_method():
    other, params = optax_sam.ausam(48, fraction=0.25), init_params()
    start = other.value_and_grad(losses)
    return start(params, make_batch(), state=other.init(params), indices=make_indices())[2]


@every_kind
def test_an_oracle_by_hand_gives_the_same_step_and_one_of_another_method_is_refused(name):
    case = VARIANTS[name]
    method, params, batch = case.make(), init_params(), make_batch()
    wanted, wanted_state, _ = first_step(name)
    state = method.init(params)
    nonsense = jax.tree.map(lambda x: x + jnp.inf, params)

    @jax.jit
    def by_hand(params, state):
        oracle = optax_sam.Oracle(losses, batch, indices=make_indices())
        return method.update(nonsense, state, params, oracle=oracle)

    got, got_state = by_hand(params, state)
    assert_trees_close(got, wanted, rtol=1e-5)
    assert_trees_close(got_state, wanted_state, rtol=1e-5)
    oracle = oracle_of_another_method()
    with pytest.raises(ValueError, match=r"started by another method than this one: method.*optax_sam.step"):
        method.update(nonsense, state, params, oracle=oracle)
    # What `dataclasses.replace` makes of it is by hand again.
    again = dataclasses.replace(oracle, whole_batch=False)
    got, _ = jax.jit(lambda: method.update(nonsense, state, params, oracle=again))()
    assert_trees_close(got, wanted, rtol=1e-5)


@every_kind
def test_grad_fn_is_the_other_door(name):
    case = VARIANTS[name]
    method, params = case.make(), init_params()
    gradient = jax.grad(lambda p: jnp.mean(losses(p, make_batch())))

    @jax.jit
    def call(params=params, state=method.init(params)):  # noqa: B008
        return method.update(gradient(params), state, params, grad_fn=gradient)

    if case.needs_oracle:
        with pytest.raises(ValueError, match=r"grad_fn.*[Oo]racle"):
            call()
        return
    descent, state = call()
    wanted, wanted_state, _ = first_step(name)
    assert_trees_close(descent, wanted, rtol=1e-5)
    assert np.isnan(optax_sam.info(state)["loss"])
    assert optax_sam.due(state) == optax_sam.due(wanted_state)


@every_kind
def test_padding_is_harmless(name):
    method, params = VARIANTS[name].make(), init_params()
    if "ausam" in name:
        method = VARIANTS[name].make(fraction=1.0)
    batch = make_batch(size=8)
    padded = jax.tree.map(
        lambda x: jnp.concatenate(
            [x, jnp.full_like(x, jnp.nan) if jnp.issubdtype(x.dtype, jnp.inexact) else x - 100]
        ),
        batch,
    )
    weights = jnp.concatenate([jnp.ones(8), jnp.zeros(8)])
    indices = jnp.concatenate([make_indices(size=8), jnp.full([8], -1, jnp.int32)])

    def step(batch, indices, weights):
        state = method.init(params)
        loss, grads, oracle = method.value_and_grad(losses)(
            params, batch, state=state, indices=indices, weights=weights
        )
        return loss, *method.update(grads, state, params, oracle=oracle, perturb=True)

    got_loss, got, got_state = jax.jit(step)(padded, indices, weights)
    chex.assert_tree_all_finite((got_loss, got, got_state))
    if name.startswith("m_") or name == "ausam_strata":
        return  # other slices, other perturbations
    wanted_loss, wanted, wanted_state = jax.jit(step)(batch, indices[:8], None)
    np.testing.assert_allclose(got_loss, wanted_loss, rtol=1e-6)
    assert_trees_close(got, wanted, rtol=1e-5, atol=1e-6)
    assert_trees_close(got_state.start, wanted_state.start, rtol=1e-5, atol=1e-6)


@every_kind
def test_info_has_the_same_keys_in_the_same_order(name):
    method = VARIANTS[name].make()
    keys = [
        "loss",
        "perturbed_loss",
        "sharpness",
        "grad_norm",
        "perturbed_grad_norm",
        "perturbation_norm",
        "perturbed",
        "gradients",
    ]
    state = method.init(init_params())
    assert list(optax_sam.info(state)) == keys
    _, state, _ = first_step(name, perturb=True)
    info = optax_sam.info((state, ()))
    assert list(info) == keys and set(jax.jit(optax_sam.info)(state)) == set(keys)
    assert all(np.shape(value) == () and np.isfinite(value) for value in info.values())
    np.testing.assert_allclose(info["sharpness"], info["perturbed_loss"] - info["loss"], rtol=1e-6)


RADIUS, SCALE = jnp.float32(0.05), jnp.float32(1024.0)
KNOWN = {
    "a schedule's": lambda: optax_sam.sam(optax.constant_schedule(RADIUS)),
    "what a function reads": lambda: optax_sam.sam(lambda count: RADIUS),
    "an argument": lambda: optax_sam.sam(RADIUS),
    "a start": lambda: optax_sam.late_sam(jnp.float32(2.0), rho=0.05),
    "a step of a difference": lambda: optax_sam.reweighted_sam(
        0.05, weight=SCALE, difference_step=jnp.float32(1e-3)
    ),
    "a part": lambda: optax_sam.wsam(0.05, gamma=jnp.float32(0.9)),
}


@pytest.mark.parametrize("name", KNOWN)
def test_a_number_of_jax_whose_value_is_known_may_be_met_inside_a_trace(name):
    params, batch = init_params(), make_batch()

    @jax.jit
    def step(params, batch):
        tx = optax.chain(KNOWN[name](), optax.sgd(0.1))
        return optax_sam.step(tx, losses)(params, tx.init(params), batch, loss_scale=SCALE)

    moved, *_ = step(params, batch)
    tx = optax.chain(KNOWN[name](), optax.sgd(0.1))
    wanted, *_ = jax.jit(optax_sam.step(tx, losses))(params, tx.init(params), batch)
    assert_trees_close(moved, wanted, rtol=1e-5)
