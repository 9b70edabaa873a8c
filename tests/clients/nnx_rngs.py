"""Like Flax's NNX example of MNIST: an optimizer, metrics and random streams beside the model."""

import functools

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import optax_sam
import optax_sam.flax
from tests.clients.common import cross_entropy, image_batches, sam_by_hand

METHODS = {
    "sam": optax_sam.sam,
    "vsam": functools.partial(optax_sam.vsam, window=4, slices=2, tail=2, warmup_steps=1),
    "looksam": functools.partial(optax_sam.looksam, every_k=2),
    "asam": optax_sam.asam,
    "momentum_sam": optax_sam.momentum_sam,
}
FAST, CHANGED = "looksam", (5, 5)


class Net(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(5, 16, rngs=rngs)
        self.drop = nnx.Dropout(0.1)
        self.last = nnx.Linear(16, 3, rngs=rngs)

    def __call__(self, x, rngs):
        return self.last(self.drop(nnx.relu(self.first(x)), rngs=rngs))


def train(batches):
    model, rngs = Net(nnx.Rngs(0)), nnx.Rngs(1)
    tx = optax.adamw(0.02, 0.9)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    metrics = nnx.MultiMetric(accuracy=nnx.metrics.Accuracy(), loss=nnx.metrics.Average("loss"))

    def loss_fn(model, rngs, batch):
        logits = model(batch["image"], rngs)
        return cross_entropy(logits, batch["label"]), logits

    @nnx.jit
    def train_step(model, optimizer, metrics, rngs, batch):
        grad_fn = nnx.value_and_grad(loss_fn, has_aux=True)
        (loss, logits), grads = grad_fn(model, rngs, batch)
        metrics.update(loss=loss, logits=logits, labels=batch["label"])
        optimizer.update(model, grads)

    states, losses = [], []
    for batch in batches:
        train_step(model, optimizer, metrics, rngs, batch)
        states.append(nnx.as_pure(nnx.state(model)))
        losses.append(metrics.compute()["loss"])
        metrics.reset()
    return states, losses


def train_with_sam(sam, batches):
    model, rngs = Net(nnx.Rngs(0)), nnx.Rngs(1)
    tx = optax.chain(sam, optax.adamw(0.02, 0.9))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    metrics = nnx.MultiMetric(accuracy=nnx.metrics.Accuracy(), loss=nnx.metrics.Average("loss"))

    def loss_fn(model, batch, rngs):
        logits = model(batch["image"], rngs)
        return cross_entropy(logits, batch["label"]), logits

    @nnx.jit
    def train_step(model, optimizer, metrics, rngs, batch):
        grad_fn = optax_sam.flax.nnx_value_and_grad(sam, loss_fn, has_aux=True)
        (loss, logits), grads, oracle = grad_fn(model, batch, rngs, optimizer=optimizer)
        metrics.update(loss=loss, logits=logits, labels=batch["label"])
        optimizer.update(model, grads, oracle=oracle)

    states, losses = [], []
    for batch in batches:
        train_step(model, optimizer, metrics, rngs, batch)
        states.append(nnx.as_pure(nnx.state(model)))
        losses.append(metrics.compute()["loss"])
        metrics.reset()
    return states, losses


def params_of(states):
    return [dict(state) for state in states]


def by_hand():
    """Without Flax: the key of a step is that of the streams with the number of the step."""

    def loss(params, argument):
        batch, key = argument
        first, last = params["first"], params["last"]
        hidden = jax.nn.relu(batch["image"] @ first["kernel"] + first["bias"])
        hidden = jnp.where(jax.random.bernoulli(key, 0.9, hidden.shape), hidden / 0.9, 0.0)
        return cross_entropy(hidden @ last["kernel"] + last["bias"], batch["label"])

    keys = [jax.random.fold_in(jax.random.key(1), number) for number in range(len(image_batches()))]
    start = dict(nnx.as_pure(nnx.state(Net(nnx.Rngs(0)))))
    return sam_by_hand(loss, start, optax.adamw(0.02, 0.9), list(zip(image_batches(), keys, strict=True)))
