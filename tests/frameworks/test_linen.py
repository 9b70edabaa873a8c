"""Flax Linen's `TrainState`, with batch norm and dropout, against steps written out by hand."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.linen.fp8_ops import OVERWRITE_WITH_GRADIENT
from flax.training.train_state import TrainState

import optax_sam
import optax_sam.flax
from optax_sam.arithmetic.keys import numbered
from tests.problem import assert_trees_close, assert_trees_equal, make_batch, make_indices
from tests.registry import METHODS, VARIANTS, over

RHO = 0.3
SLICES = {"m_rst": 4, "accumulated": 4}


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.BatchNorm(use_running_average=False, momentum=0.9)(nn.Dense(3)(x))
        return nn.Dropout(0.3, deterministic=False)(x)


class StateWithStatistics(TrainState):
    batch_stats: Any


@pytest.fixture(autouse=True)
def promotion_as_flax_needs_it():
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


@jax.jit
def forward(params, batch_stats, batch, key):
    """`(losses, new batch statistics)` of a plain forward pass."""
    variables = {"params": params, "batch_stats": batch_stats}
    logits, new = Net().apply(variables, batch["image"], rngs={"dropout": key}, mutable=["batch_stats"])
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]), new["batch_stats"]


@functools.cache
def variables():
    keys = {"params": jax.random.key(1), "dropout": jax.random.key(2)}
    return jax.jit(Net().init)(keys, make_batch()["image"])


def make_state(tx):
    return StateWithStatistics.create(apply_fn=Net().apply, tx=tx, **variables())


def part(number, tree):
    return jax.tree.map(lambda x: x[number], tree)


def distance(tree, other):
    leaves = zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True)
    return np.sqrt(sum(np.sum((np.asarray(x) - np.asarray(y)) ** 2) for x, y in leaves))


@jax.jit
def step_by_hand(params, batch_stats, momentum, batch, key, second_key):
    """SAM before SGD with momentum, as one would write it without any library."""

    def loss(params, key):
        losses, new = forward(params, batch_stats, batch, key)
        return jnp.mean(losses), new

    (value, new_stats), grads = jax.value_and_grad(loss, has_aux=True)(params, key)
    norm = jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(grads)))
    moved = jax.tree.map(lambda p, g: p + RHO * g / norm, params, grads)
    (_, _), descent = jax.value_and_grad(loss, has_aux=True)(moved, second_key)
    momentum = jax.tree.map(lambda m, d: 0.9 * m + d, momentum, descent)
    params = jax.tree.map(lambda p, m: p - 0.1 * m, params, momentum)
    return params, new_stats, momentum, value


def through_the_oracle(sam, state, batch, key):
    """The key closed over: the same dropout in both passes."""

    def loss_fn(params, batch):
        return forward(params, state.batch_stats, batch, key)

    value_and_grad = sam.value_and_grad(loss_fn, has_aux=True)
    (loss, batch_stats), grads, oracle = value_and_grad(state.params, batch, state=state.opt_state)
    state = optax_sam.flax.apply_gradients(state, grads=grads, oracle=oracle, batch_stats=batch_stats)
    return state, loss


def with_a_key_for_every_pass(sam, state, batch, key):
    """The key passed on: another dropout in the second pass."""

    def loss_fn(params, batch, key):
        return forward(params, state.batch_stats, batch, key)

    value_and_grad = sam.value_and_grad(loss_fn, has_aux=True)
    (loss, batch_stats), grads, oracle = value_and_grad(state.params, batch, state=state.opt_state, key=key)
    state = optax_sam.flax.apply_gradients(state, grads=grads, oracle=oracle, batch_stats=batch_stats)
    return state, loss


def through_a_gradient_function(sam, state, batch, key):
    """Flax's own step, which closes over the batch, with one line changed."""
    del sam

    def loss_fn(params):
        losses, batch_stats = forward(params, state.batch_stats, batch, key)
        return jnp.mean(losses), batch_stats

    grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
    (loss, batch_stats), grads = grad_fn(state.params)
    state = optax_sam.flax.apply_gradients(
        state, grads=grads, grad_fn=lambda params: grad_fn(params)[1], batch_stats=batch_stats
    )
    return state, loss


@pytest.mark.parametrize(
    ("step", "second_key"),
    [
        (through_the_oracle, lambda key: key),
        (through_a_gradient_function, lambda key: key),
        (with_a_key_for_every_pass, lambda key: numbered(key, 1)),
    ],
    ids=["oracle", "grad_fn", "fresh_keys"],
)
def test_linen_step_is_the_one_written_by_hand(step, second_key):
    sam = optax_sam.sam(RHO)
    state = make_state(optax.chain(sam, optax.sgd(0.1, momentum=0.9)))
    by_hand = state.params, state.batch_stats, jax.tree.map(jnp.zeros_like, state.params)
    traces = []

    @jax.jit
    def jitted(state, batch, key):
        traces.append(1)
        return step(sam, state, batch, key)

    for number in range(4):
        key, batch = jax.random.key(number), make_batch(number)
        state, loss = jitted(state, batch, key)
        *by_hand, wanted_loss = step_by_hand(*by_hand, batch, key, second_key(key))
        momentum = state.opt_state[1][0].trace
        assert_trees_close(
            (state.params, state.batch_stats, momentum, loss), (*by_hand, wanted_loss), rtol=2e-5, atol=2e-6
        )
    assert state.step == 4 and len(traces) == 1


def test_fresh_and_closed_over_keys_give_different_second_passes():
    """So that the comparison by hand tells them apart."""
    state = make_state(optax.sgd(0.1))
    start = state.params, state.batch_stats, jax.tree.map(jnp.zeros_like, state.params)
    key = jax.random.key(0)
    closed = step_by_hand(*start, make_batch(), key, key)
    fresh = step_by_hand(*start, make_batch(), key, numbered(key, 1))
    assert_trees_equal(closed[1], fresh[1])
    assert distance(closed[0], fresh[0]) > 1e-3


@pytest.mark.parametrize("name", over([*METHODS, *SLICES]))
def test_batch_statistics_are_those_of_a_forward_pass_at_the_start_of_the_method(name):
    method, slices = VARIANTS[name].make(), SLICES.get(name, 0)
    state = make_state(optax.chain(method, optax.sgd(0.1)))
    key = jax.random.key(5)

    def loss_fn(params, batch):
        losses, batch_stats = forward(params, state.batch_stats, batch, key)
        return losses, (batch_stats, params, batch)

    @jax.jit
    def step(state):
        (_, (batch_stats, *seen)), grads, oracle = method.value_and_grad(loss_fn, has_aux=True)(
            state.params, make_batch(), state=state.opt_state, indices=make_indices()
        )
        if slices:
            batch_stats = jax.tree.map(lambda x: jnp.mean(x, axis=0), batch_stats)
        new = optax_sam.flax.apply_gradients(state, grads=grads, oracle=oracle, batch_stats=batch_stats)
        return new, *seen

    new, point, batch = step(state)
    if name == "tsam":
        assert distance(point, state.params) > 0.09
    elif not slices:
        assert_trees_equal(point, state.params)
    assert batch["label"].size == {"ausam": 8}.get(name, 16)
    parts = [part(n, (point, batch)) for n in range(slices)] or [(point, batch)]
    passes = [forward(point, state.batch_stats, batch, key)[1] for point, batch in parts]
    wanted = jax.tree.map(lambda *xs: np.mean(xs, axis=0), *passes)
    assert_trees_close(new.batch_stats, wanted, rtol=1e-5, atol=1e-6)
    assert distance(new.batch_stats, state.batch_stats) > 0.01


@pytest.mark.parametrize("tx", [optax.adam(0.1), optax.scale(-0.1)], ids=["chain", "no extra arguments"])
def test_a_train_state_without_a_method_is_stepped_as_by_flax(tx):
    state = StateWithStatistics.create(
        apply_fn=None, params={"w": jnp.ones(3)}, tx=tx, batch_stats=jnp.ones(2)
    )
    grads, statistics = {"w": jnp.arange(3.0)}, jnp.zeros(2)
    wanted = state.apply_gradients(grads=grads, batch_stats=statistics)
    got = optax_sam.flax.apply_gradients(state, grads=grads, batch_stats=statistics, no_field=1)
    assert jax.tree.structure(got) == jax.tree.structure(wanted)  # the optimizer is part of it
    assert_trees_equal((got.params, got.opt_state), (wanted.params, wanted.opt_state))
    assert_trees_equal(got.batch_stats, statistics)


def test_a_forgotten_oracle_is_asked_for():
    tx = optax.chain(optax_sam.sam(), optax.sgd(0.1))
    state = TrainState.create(apply_fn=None, params={"w": jnp.ones(3)}, tx=tx)
    for apply_gradients in (state.apply_gradients, lambda **kw: optax_sam.flax.apply_gradients(state, **kw)):
        with pytest.raises(ValueError, match="none of oracle and grad_fn is given: pass exactly one"):
            apply_gradients(grads=state.params)


def test_scales_of_fp8_layers_are_refused_by_name():
    scales = OVERWRITE_WITH_GRADIENT
    params = {"params": {"w": jnp.ones(3)}, scales: {"s": jnp.ones(2)}}
    plain = TrainState.create(apply_fn=None, params=params, tx=optax.sgd(0.1))
    assert optax_sam.flax.apply_gradients(plain, grads=params).params[scales]["s"][0] == 1
    state = plain.replace(tx=(tx := optax.chain(optax_sam.sam(), optax.sgd(0.1))))
    state = state.replace(opt_state=tx.init(params["params"]))
    for given in (
        {"oracle": optax_sam.Oracle(lambda p, _: p["params"]["w"], jnp.ones(3))},
        {"grad_fn": lambda p: p},
    ):
        with pytest.raises(ValueError, match="scales of FP8 layers.*bfloat16"):
            optax_sam.flax.apply_gradients(state, grads=params, **given)


@pytest.mark.parametrize(("wrong", "right"), [("opt_stat", "opt_state"), ("apply_fun", "apply_fn")])
def test_a_keyword_that_is_nearly_a_field_is_asked_about(wrong, right):
    state = TrainState.create(apply_fn=None, params={"w": jnp.ones(4)}, tx=optax.sgd(0.1))
    with pytest.raises(TypeError, match=f"{wrong} is no field of train_state.*{right}="):
        optax_sam.flax.apply_gradients(state, grads=state.params, **{wrong: 1})


def test_a_parameter_may_be_called_as_an_old_count():
    saved = {"ascent": {"inner": {}, "evaluations": 1.0}, "direction": {"evaluations": np.ones(3)}}
    found = optax_sam.flax.from_0_1(saved)
    assert found["ascent"] == {} and found["direction"]["evaluations"].shape == (3,)


def test_statistics_of_a_batch_are_not_taken_for_an_old_state():
    saved = {"stats": {"mean": np.zeros(3), "variance": np.ones(3)}, "gate": {"mean": 9.0, "variance": 16.0}}
    found = optax_sam.flax.from_0_1(saved)
    assert found["stats"].keys() == {"mean", "variance"}
    assert found["gate"] == {"root_mean": 3.0, "root_deviation": 2.0}


def test_an_optimizer_that_needs_the_loss_gets_it():
    tx = optax.chain(optax_sam.sam(), optax.polyak_sgd())
    state = TrainState.create(apply_fn=None, params={"w": jnp.ones(4)}, tx=tx)
    new = optax_sam.flax.apply_gradients(
        state, grads=state.params, grad_fn=lambda params: params, value=jnp.float32(2.0)
    )
    descent = 1 + 0.05 / 2
    np.testing.assert_allclose(
        new.params["w"], 1 - 2 / (4 * descent**2) * descent, rtol=1e-5
    )  # value / |g|^2 g
