"""Like PureJaxRL: one program of scans over epochs and minibatches, for several seeds side by side."""

import functools

import haiku as hk
import jax
import jax.numpy as jnp
import optax

import optax_sam
from tests.clients.common import cross_entropy, image_batches, sam_by_hand

METHODS = {
    "sam": optax_sam.sam,
    "vsam": functools.partial(optax_sam.vsam, window=4, slices=2, tail=2, warmup_steps=1),
    "looksam": functools.partial(optax_sam.looksam, every_k=2),
    "asam": optax_sam.asam,
    "momentum_sam": optax_sam.momentum_sam,
}
FAST, CHANGED = "momentum_sam", (4, 4)
EPOCHS, MINIBATCHES, SEEDS = 4, 4, 2
net = hk.without_apply_rng(hk.transform(lambda x: hk.nets.MLP([16, 3], activation=jnp.tanh)(x)))


def loss_fn(params, batch):
    """With something to log beside the loss."""
    logits = net.apply(params, batch["image"])
    accuracy = jnp.mean(jnp.argmax(logits, -1) == batch["label"])
    return cross_entropy(logits, batch["label"]), accuracy


def shuffled(key, data):
    order = jax.random.permutation(key, data["label"].size)
    return jax.tree.map(lambda x: x[order].reshape(MINIBATCHES, -1, *x.shape[1:]), data)


def train(data):
    tx = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(0.02, eps=1e-5))

    def train_seed(key):
        key, key_init = jax.random.split(key)
        params = net.init(key_init, data["image"])
        opt_state = tx.init(params)

        def update_epoch(carry, _):
            def update_minibatch(carry, batch):
                params, opt_state = carry
                grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
                (loss, accuracy), grads = grad_fn(params, batch)
                updates, opt_state = tx.update(grads, opt_state, params)
                params = optax.apply_updates(params, updates)
                return (params, opt_state), (params, loss, accuracy)

            params, opt_state, key = carry
            key, key_order = jax.random.split(key)
            carry, log = jax.lax.scan(update_minibatch, (params, opt_state), shuffled(key_order, data))
            return (*carry, key), log

        _, log = jax.lax.scan(update_epoch, (params, opt_state, key), None, EPOCHS)
        return log

    params, losses, _ = jax.jit(jax.vmap(train_seed))(jax.random.split(jax.random.key(0), SEEDS))
    return params, list(losses[0].ravel())


def train_with_sam(sam, data):
    tx = optax.chain(sam, optax.clip_by_global_norm(0.5), optax.adam(0.02, eps=1e-5))

    def train_seed(key):
        key, key_init = jax.random.split(key)
        params = net.init(key_init, data["image"])
        opt_state = tx.init(params)

        def update_epoch(carry, _):
            def update_minibatch(carry, batch):
                params, opt_state = carry
                grad_fn = sam.value_and_grad(loss_fn, has_aux=True)
                (loss, accuracy), grads, oracle = grad_fn(params, batch, state=opt_state)
                updates, opt_state = tx.update(grads, opt_state, params, oracle=oracle)
                params = optax.apply_updates(params, updates)
                return (params, opt_state), (params, loss, accuracy)

            params, opt_state, key = carry
            key, key_order = jax.random.split(key)
            carry, log = jax.lax.scan(update_minibatch, (params, opt_state), shuffled(key_order, data))
            return (*carry, key), log

        _, log = jax.lax.scan(update_epoch, (params, opt_state, key), None, EPOCHS)
        return log

    params, losses, _ = jax.jit(jax.vmap(train_seed))(jax.random.split(jax.random.key(0), SEEDS))
    return params, list(losses[0].ravel())


def params_of(params):
    """Of the first seed; the second one is another."""
    one, other = (jax.tree.map(lambda x, n=n: x[n], params) for n in range(SEEDS))
    assert not jnp.array_equal(jax.tree.leaves(one)[-1], jax.tree.leaves(other)[-1])
    return [jax.tree.map(lambda x, i=i, j=j: x[i, j], one) for i in range(EPOCHS) for j in range(MINIBATCHES)]


def by_hand():
    """A loop of Python over the first seed."""
    data = image_batches()[0]
    key, key_init = jax.random.split(jax.random.split(jax.random.key(0), SEEDS)[0])
    batches = []
    for _ in range(EPOCHS):
        key, key_order = jax.random.split(key)
        parts = shuffled(key_order, data)
        batches += [jax.tree.map(lambda x, n=n, parts=parts: x[n], parts) for n in range(MINIBATCHES)]
    base = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(0.02, eps=1e-5))
    start = net.init(key_init, data["image"])
    return sam_by_hand(lambda params, batch: loss_fn(params, batch)[0], start, base, batches)
