"""Like Equinox's examples: filtered transformations of a model that holds more than its parameters."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

import optax_sam
from tests.clients.common import cross_entropy, image_batches, sam_by_hand

# The fewest lines are those of a gradient function.
METHODS = {
    "sam": optax_sam.sam,
    "vsam": functools.partial(optax_sam.vsam, window=4, slices=2, tail=2, warmup_steps=1),
    "looksam": functools.partial(optax_sam.looksam, every_k=2),
    "asam": optax_sam.asam,
    "friendly_sam": optax_sam.friendly_sam,
}
FAST, CHANGED = "friendly_sam", (4, 2)


class Net(eqx.Module):
    first: eqx.nn.Linear
    drop: eqx.nn.Dropout
    last: eqx.nn.MLP

    def __init__(self, key):
        first, last = jax.random.split(key)
        self.first = eqx.nn.Linear(5, 16, key=first)
        self.drop = eqx.nn.Dropout(0.1)
        self.last = eqx.nn.MLP(16, 3, 8, 1, activation=jnp.tanh, key=last)

    def __call__(self, x, key):
        return self.last(self.drop(jax.nn.relu(self.first(x)), key=key))


def loss_fn(model, x, y, key):
    keys = jax.random.split(key, y.size)
    return cross_entropy(jax.vmap(model)(x, keys), y)


def train(batches):
    optim = optax.adam(0.02)
    model = Net(jax.random.key(0))
    opt_state = optim.init(eqx.filter(model, eqx.is_inexact_array))

    @eqx.filter_jit
    def make_step(model, opt_state, x, y, key):
        loss, grads = eqx.filter_value_and_grad(loss_fn)(model, x, y, key)
        updates, opt_state = optim.update(grads, opt_state, eqx.filter(model, eqx.is_inexact_array))
        return eqx.apply_updates(model, updates), opt_state, loss

    models, losses = [], []
    for number, batch in enumerate(batches):
        key = jax.random.key(number)
        model, opt_state, loss = make_step(model, opt_state, batch["image"], batch["label"], key)
        models.append(model)
        losses.append(loss)
    return models, losses


def train_with_sam(sam, batches):
    optim = optax.chain(sam, optax.adam(0.02))
    model = Net(jax.random.key(0))
    opt_state = optim.init(eqx.filter(model, eqx.is_inexact_array))

    @eqx.filter_jit
    def make_step(model, opt_state, x, y, key):
        loss, grads = eqx.filter_value_and_grad(loss_fn)(model, x, y, key)
        params = eqx.filter(model, eqx.is_inexact_array)
        grad_fn = lambda params: eqx.filter_grad(loss_fn)(eqx.combine(params, model), x, y, key)
        updates, opt_state = optim.update(grads, opt_state, params, grad_fn=grad_fn)
        return eqx.apply_updates(model, updates), opt_state, loss

    models, losses = [], []
    for number, batch in enumerate(batches):
        key = jax.random.key(number)
        model, opt_state, loss = make_step(model, opt_state, batch["image"], batch["label"], key)
        models.append(model)
        losses.append(loss)
    return models, losses


def params_of(models):
    return [[(x.weight, x.bias) for x in (model.first, *model.last.layers)] for model in models]


def by_hand():
    """Without Equinox."""

    def loss(params, argument):
        batch, key = argument
        (w, b), (v, c), (u, a) = params
        hidden = jax.nn.relu(batch["image"] @ w.T + b)
        keys = jax.random.split(key, batch["label"].size)
        kept = jax.vmap(lambda key: jax.random.bernoulli(key, 0.9, b.shape))(keys)
        hidden = jnp.where(kept, hidden / 0.9, 0.0)
        return cross_entropy(jnp.tanh(hidden @ v.T + c) @ u.T + a, batch["label"])

    keys = [jax.random.key(number) for number in range(len(image_batches()))]
    (start,) = params_of([Net(jax.random.key(0))])
    return sam_by_hand(loss, start, optax.adam(0.02), list(zip(image_batches(), keys, strict=True)))
