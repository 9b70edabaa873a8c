"""Losses of shape [batch, sequence]: how they become one loss per example, and what padding is worth."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_sam
from tests.problem import assert_trees_close, assert_trees_equal
from tests.registry import over

VOCABULARY, WIDTH, LENGTH, BATCH = 11, 4, 7, 8
LENGTHS = np.array([7, 3, 5, 1, 7, 2, 0, 0])
VALID = np.arange(LENGTH) < LENGTHS[:, None]
METHODS = {
    "sam": optax_sam.sam(0.1),
    "vsam": optax_sam.vsam(0.1, window=4, slices=2),
    "ausam": optax_sam.ausam(BATCH, 0.1, fraction=0.5),
    "tsam": optax_sam.tsam(0.1, num_samples=1, radius=0.1),
    "accumulated": optax_sam.accumulated(optax_sam.sam(0.1), 4),
}


def make_params():
    rng = np.random.default_rng(0)
    shapes = {"embedding": [VOCABULARY, WIDTH], "recurrent": [WIDTH, WIDTH], "logits": [WIDTH, VOCABULARY]}
    return {k: jnp.asarray(0.5 * rng.normal(size=shape), jnp.float32) for k, shape in shapes.items()}


def make_batch(padding=0, frames_of_padding=0.0):
    """A text with some content of padding or another, and some frames where a row is padding alone."""
    rng = np.random.default_rng(1)
    text, other = rng.integers(0, VOCABULARY, [2, BATCH, LENGTH + 1])
    frames = rng.normal(size=[BATCH, LENGTH, WIDTH])
    if padding:
        tokens = np.where(VALID, text[:, :-1], other[:, 1:])
        targets = np.where(VALID, text[:, 1:], -100)  # NaN losses
        frames = np.where(VALID[:, :, None], frames, -frames)
    else:
        tokens, targets = text[:, :-1], text[:, 1:]
    frames = np.where((LENGTHS == 0)[:, None, None], frames_of_padding, frames)
    as_arrays = {"tokens": tokens.astype(np.int32), "targets": targets.astype(np.int32), "valid": VALID}
    return jax.tree.map(jnp.asarray, as_arrays | {"frames": frames.astype(np.float32)})


def token_losses(params, batch):
    """A recurrent language model, `[batch, sequence]`."""

    def step(hidden, x):
        hidden = jnp.tanh(x + hidden @ params["recurrent"])
        return hidden, hidden @ params["logits"]

    inputs = params["embedding"][batch["tokens"]] + batch["frames"]
    start = jnp.zeros_like(inputs[:, 0])
    _, logits = jax.lax.scan(step, start, jnp.swapaxes(inputs, 0, 1))
    return optax.softmax_cross_entropy_with_integer_labels(jnp.swapaxes(logits, 0, 1), batch["targets"])


def of_sequences(params, batch):
    """One loss per sequence, and what was seen."""
    return jnp.mean(token_losses(params, batch), axis=-1, where=batch["valid"]), (params, batch)


@jax.jit
def by_hand(params, batch):
    """The loss, its gradient, and the gradient at a distance of 0.1: of the mean over all valid tokens."""

    def mean_over_tokens(params):
        kept = jnp.where(batch["valid"], token_losses(params, batch), 0.0)
        return jnp.sum(kept) / jnp.sum(batch["valid"].astype(jnp.float32))

    loss, grads = jax.value_and_grad(mean_over_tokens)(params)
    norm = jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(grads)))
    return (
        loss,
        grads,
        jax.grad(mean_over_tokens)(jax.tree.map(lambda p, g: p + 0.1 * g / norm, params, grads)),
    )


@pytest.mark.parametrize("name", over(METHODS))
def test_weights_by_tokens_give_the_mean_over_all_tokens_whatever_padding_holds(name):
    method, params = METHODS[name], make_params()

    @jax.jit
    def step(batch):
        state = method.init(params)
        num_tokens = jnp.asarray(LENGTHS, jnp.float32)
        (loss, seen), grads, oracle = method.value_and_grad(of_sequences, has_aux=True)(
            params, batch, state=state, weights=num_tokens, indices=jnp.arange(BATCH)
        )
        descent, state = method.update(grads, state, params, oracle=oracle, perturb=True)
        return (loss, grads, descent), seen, state

    got, (point, seen), state = step(make_batch())
    if name == "ausam":
        assert seen["valid"].shape == (BATCH // 2, LENGTH) and np.all(seen["valid"].any(axis=1))
    wanted = by_hand(point if name == "tsam" else params, seen if name == "ausam" else make_batch())
    assert_trees_close(got, wanted, rtol=2e-5, atol=1e-6)

    for other in (make_batch(padding=1), make_batch(padding=1, frames_of_padding=np.nan)):
        same, _, same_state = step(other)
        assert_trees_equal((same, same_state), (got, state))


def test_sequences_count_the_same_without_weights():
    """So that the two means differ on these lengths."""
    losses = np.asarray(jax.jit(of_sequences)(make_params(), make_batch())[0])[:6]
    weighted = np.sum(losses * LENGTHS[:6]) / LENGTHS.sum()
    np.testing.assert_allclose(weighted, by_hand(make_params(), make_batch())[0], rtol=1e-6)
    assert abs(np.mean(losses) - weighted) > 0.01


def test_losses_that_were_not_reduced_are_refused():
    sam, params = optax_sam.sam(), make_params()
    wanted = (
        r"shape \[8, 7\] for a batch of 8 examples: return one loss per example.*the valid positions alone"
    )
    with pytest.raises(ValueError, match=wanted):
        sam.value_and_grad(token_losses)(params, make_batch(), state=sam.init(params))
