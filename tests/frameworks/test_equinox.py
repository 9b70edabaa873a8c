"""Equinox, with batch norm and dropout, against a step written out by hand."""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import pytest

import optax_sam
from tests.problem import assert_trees_close, make_batch

RHO = 0.3


class Net(eqx.Module):
    first: eqx.nn.Linear
    norm: eqx.nn.BatchNorm
    drop: eqx.nn.Dropout
    last: eqx.nn.MLP  # an activation among its leaves is no array

    def __init__(self, key):
        first, last = jax.random.split(key)
        self.first = eqx.nn.Linear(5, 6, key=first)
        self.norm = eqx.nn.BatchNorm(6, axis_name="batch", mode="ema", momentum=0.9)
        self.drop = eqx.nn.Dropout(0.3)
        self.last = eqx.nn.MLP(6, 3, 4, 0, key=last)

    def __call__(self, x, state, key):
        x, state = self.norm(self.first(x), state)
        return self.last(self.drop(jnp.tanh(x), key=key)), state


def forward(model, state, batch, key):
    """`(losses, new state)`."""
    keys = jax.random.split(key, batch["label"].size)
    logits, state = jax.vmap(model, axis_name="batch", in_axes=(0, None, 0), out_axes=(0, None))(
        batch["image"], state, keys
    )
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]), state


def test_equinox_step_is_the_one_written_by_hand():
    """The norm is by running statistics, so that a pass shows which ones it has begun with."""
    sam = optax_sam.sam(RHO)
    tx = optax.chain(sam, optax.sgd(0.1, momentum=0.9))
    model, state = eqx.nn.make_with_state(Net)(jax.random.key(1))
    params, static = eqx.partition(model, eqx.is_inexact_array)
    opt_state = tx.init(params)
    by_hand = params, state, jax.tree.map(jnp.zeros_like, params)

    @jax.jit
    def step(params, state, opt_state, batch, key):
        def loss_fn(params, batch):
            return forward(eqx.combine(params, static), state, batch, key)

        (loss, new_state), grads, oracle = sam.value_and_grad(loss_fn, has_aux=True)(
            params, batch, state=opt_state
        )
        updates, opt_state = tx.update(grads, opt_state, params, oracle=oracle)
        return eqx.apply_updates(params, updates), new_state, opt_state, loss

    @jax.jit
    def step_by_hand(params, state, momentum, batch, key):
        def loss(params):
            losses, new_state = forward(eqx.combine(params, static), state, batch, key)
            return jnp.mean(losses), new_state

        (value, new_state), grads = jax.value_and_grad(loss, has_aux=True)(params)
        norm = jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(grads)))
        moved = jax.tree.map(lambda p, g: p + RHO * g / norm, params, grads)
        (_, _), descent = jax.value_and_grad(loss, has_aux=True)(moved)
        momentum = jax.tree.map(lambda m, d: 0.9 * m + d, momentum, descent)
        return jax.tree.map(lambda p, m: p - 0.1 * m, params, momentum), new_state, momentum, value

    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        for number in range(3):
            batch, key = make_batch(number), jax.random.key(number)
            params, state, opt_state, loss = step(params, state, opt_state, batch, key)
            *by_hand, wanted_loss = step_by_hand(*by_hand, batch, key)
            got = params, jax.tree.leaves(state), opt_state[1][0].trace, loss
            wanted = by_hand[0], jax.tree.leaves(by_hand[1]), by_hand[2], wanted_loss
            assert_trees_close(got, wanted, rtol=2e-5, atol=2e-6)
    assert step._cache_size() == 1


def test_parts_that_are_none_are_neither_perturbed_nor_trained():
    model = eqx.nn.MLP(5, 3, 4, 1, key=jax.random.key(0))
    frozen = eqx.tree_at(
        lambda spec: spec.layers[0], jax.tree.map(eqx.is_inexact_array, model), replace=False
    )
    params, static = eqx.partition(model, frozen)
    sam = optax_sam.sam(RHO)

    @jax.jit
    def step(params, state, batch):
        def loss_fn(params, batch):
            logits = jax.vmap(eqx.combine(params, static))(batch["image"])
            return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])

        _, grads, oracle = sam.value_and_grad(loss_fn)(params, batch, state=state)
        return sam.update(grads, state, params, oracle=oracle)

    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        descent, state = step(params, sam.init(params), make_batch())
    assert len(jax.tree.leaves(descent)) == 2  # weight and bias of the last layer
    assert abs(optax_sam.info(state)["perturbation_norm"] - RHO) < 1e-5
    stepped = eqx.apply_updates(model, descent)
    assert stepped.layers[0].weight is model.layers[0].weight


def whole_model_given_to(name):
    """A call that hands in a model with a function among its leaves."""
    model = eqx.nn.MLP(5, 3, 4, 1, key=jax.random.key(0))
    params, static = eqx.partition(model, eqx.is_inexact_array)
    losses = lambda params, batch: jnp.sum(jax.vmap(eqx.combine(params, static))(batch["image"]) ** 2, -1)
    batch, sam = make_batch(), optax_sam.sam()
    tx, base = optax.chain(sam, optax.sgd(0.1)), optax.sgd(0.1)
    decoupled = optax_sam.decoupled(sam, base, 0.1)
    oracle = optax_sam.Oracle(losses, batch, params=params)
    return {
        "init": lambda: tx.init(model),
        "bsam": lambda: optax_sam.bsam(num_examples=8).init(model),
        "update": lambda: tx.update(params, tx.init(params), model, oracle=oracle),
        "grad_fn": lambda: tx.update(params, tx.init(params), model, grad_fn=lambda params: params),
        "decoupled": lambda: decoupled.update(params, decoupled.init(params), model, oracle=oracle),
        "value_and_grad": lambda: sam.value_and_grad(losses)(model, batch, state=tx.init(params)),
        "step": lambda: optax_sam.step(tx, losses)(model, tx.init(params), batch),
        "gradient_norms": lambda: optax_sam.per_example.gradient_norms(losses, model, batch),
        "gradients": lambda: optax_sam.per_example.gradients(losses, model, batch),
        "eigenvalues": lambda: optax_sam.sharpness.top_eigenvalues(losses, model, batch, k=1),
    }[name]


CALLS = (
    ("init", "bsam", "update", "grad_fn", "decoupled", "value_and_grad", "step")
    + ("gradient_norms", "gradients", "eigenvalues")
)  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_a_model_passed_whole_is_refused_by_the_place_of_its_function(name):
    message = r"params\.activation is no array of numbers \(\w+\).*eqx\.partition\(model, eqx\.is_inexact_a"
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        call = whole_model_given_to(name)
        with pytest.raises(TypeError, match=message):
            call()


def test_a_batch_with_words_is_refused_by_their_place():
    with pytest.raises(TypeError, match=r"batch\['name'\] is no array of numbers \(str\): leave it out"):
        optax_sam.Oracle(lambda params, batch: params, {"image": jnp.ones(2), "name": "two"})
