"""`optax.MultiSteps` around a method, by every door."""

import jax
import jax.numpy as jnp
import optax
import pytest

import optax_sam
from tests.problem import assert_trees_close, init_params, losses, make_batch, make_indices
from tests.registry import CASES, METHODS, over

WITH_GRAD_FN = [name for name, case in CASES.items() if not case.needs_oracle]
BOTH_REPAIRS = r"chain\(sam, optax.MultiSteps\(base, k\)\).*accumulated\(sam, k\)"


def gradient(params, batch):
    return jax.grad(lambda params: jnp.mean(losses(params, batch)))(params)


def with_grad_fn(tx):
    def step(params, state, batch):
        grads_of = lambda params: gradient(params, batch)
        return tx.update(grads_of(params), state, params, grad_fn=grads_of)

    return step


def by_hand(tx):
    def step(params, state, batch):
        oracle = optax_sam.Oracle(losses, batch, params=params, indices=make_indices())
        return tx.update(params, state, params, oracle=oracle)

    return step


def short(tx):
    train_step = optax_sam.step(tx, losses)

    def step(params, state, batch):
        moved, state, _ = train_step(params, state, batch, indices=make_indices())
        return jax.tree.map(jnp.subtract, moved, params), state

    return step


DOORS = {"grad_fn": with_grad_fn, "oracle by hand": by_hand, "step": short}
NESTED = {
    "chain": lambda tx, k: optax.MultiSteps(tx, k),
    "schedule": lambda tx, k: optax.MultiSteps(tx, lambda step: jnp.where(step < 10, k, k)),
    "in a chain": lambda tx, k: optax.chain(optax.identity(), as_extra(optax.MultiSteps(tx, k))),
    "around a wrapper": lambda tx, k: optax.MultiSteps(optax.apply_if_finite(tx, 3), k),
}


def as_extra(wrapper):
    return optax.GradientTransformationExtraArgs(wrapper.init, wrapper.update)


@pytest.mark.parametrize("jitted", [True, False], ids=["jitted", "eager"])
@pytest.mark.parametrize("nested", NESTED)
@pytest.mark.parametrize("door", DOORS)
def test_of_several_micro_batches_it_is_refused_by_every_door(door, nested, jitted, as_optax_promotes):
    """The error names both repairs."""
    tx = NESTED[nested](optax.chain(optax_sam.sam(0.1), optax.sgd(0.1)), 2)
    step = jax.jit(DOORS[door](tx)) if jitted else DOORS[door](tx)
    with pytest.raises(ValueError, match=BOTH_REPAIRS):
        step(init_params(), tx.init(init_params()), make_batch())


@pytest.mark.parametrize("name", over(METHODS))
def test_value_and_grad_refuses_its_state(name):
    """The state does not tell of how many micro-batches it is."""
    method = METHODS[name].make()
    state = optax.MultiSteps(optax.chain(method, optax.sgd(0.1)), 4).init(init_params())
    with pytest.raises(ValueError, match=BOTH_REPAIRS):
        method.value_and_grad(losses)(init_params(), make_batch(), state=state, indices=make_indices())


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("name", over(WITH_GRAD_FN, ["sam"]))
def test_of_one_micro_batch_it_is_the_chain_itself(name, door, as_optax_promotes):
    chain = optax.chain(CASES[name].make(), optax.sgd(0.1, momentum=0.9))
    wrapped = optax.MultiSteps(chain, 1)
    one, other = jax.jit(DOORS[door](chain)), jax.jit(DOORS[door](wrapped))
    params, state, same = init_params(), chain.init(init_params()), wrapped.init(init_params())
    for number in range(3):
        updates, state = one(params, state, make_batch(number))
        found, same = other(params, same, make_batch(number))
        assert_trees_close(found, updates, rtol=1e-5, atol=1e-7)
        params = optax.apply_updates(params, updates)


def test_behind_it_and_around_another_optimizer_it_is_accepted(as_optax_promotes):
    """A method that is stepped while another optimizer accumulates."""
    tx = optax.chain(optax_sam.sam(0.1), optax.MultiSteps(optax.sgd(0.1), 2).gradient_transformation())
    params, batch = init_params(), make_batch()
    state = tx.init(params)
    for _ in range(2):
        updates, state = with_grad_fn(tx)(params, state, batch)
    descent, _ = with_grad_fn(optax_sam.sam(0.1))(params, optax_sam.sam(0.1).init(params), batch)
    assert_trees_close(updates, jax.tree.map(lambda d: -0.1 * d, descent), rtol=1e-5, atol=1e-7)
