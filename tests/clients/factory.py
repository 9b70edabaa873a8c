"""A configuration and a factory of the optimizer, which is called where an optimizer is needed."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import optax

import optax_sam
from tests.clients.common import RHO, cross_entropy, image_batches, sam_by_hand

METHODS = {
    "sam": optax_sam.sam,
    "vsam": functools.partial(optax_sam.vsam, window=4, slices=2, tail=2, warmup_steps=1),
    "looksam": functools.partial(optax_sam.looksam, every_k=2),
    "asam": optax_sam.asam,
    "momentum_sam": optax_sam.momentum_sam,
}
FAST, CHANGED = "momentum_sam", (4, 3)


@dataclasses.dataclass(frozen=True)
class Config:
    learning_rate: float = 0.02
    clip: float = 1.0
    steps: int = 8
    rho: float = RHO


def schedule(config):
    return optax.cosine_decay_schedule(config.learning_rate, 4 * config.steps)


def init_params(key):
    first, last = jax.random.split(key)
    return {"w": jax.random.normal(first, (5, 16)) / 2, "v": jax.random.normal(last, (16, 3)) / 4}


def loss_fn(params, batch):
    return cross_entropy(jnp.tanh(batch["image"] @ params["w"]) @ params["v"], batch["label"])


def train(batches, config=Config()):  # noqa: B008
    def optimiser():
        return optax.chain(optax.clip_by_global_norm(config.clip), optax.adamw(schedule(config)))

    @jax.jit
    def train_step(params, opt_state, batch):
        loss, grads = jax.value_and_grad(loss_fn)(params, batch)
        updates, opt_state = optimiser().update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    params = init_params(jax.random.key(0))
    opt_state = optimiser().init(params)
    trajectory, losses = [], []
    for batch in batches:
        params, opt_state, loss = train_step(params, opt_state, batch)
        trajectory.append(params)
        losses.append(loss)
    return trajectory, losses


def train_with_sam(method, batches, config=Config()):  # noqa: B008
    def optimiser():
        base = optax.chain(optax.clip_by_global_norm(config.clip), optax.adamw(schedule(config)))
        return optax.chain(method(config.rho), base)

    @jax.jit
    def train_step(params, opt_state, batch):
        loss, grads, oracle = method(config.rho).value_and_grad(loss_fn)(params, batch, state=opt_state)
        updates, opt_state = optimiser().update(grads, opt_state, params, oracle=oracle)
        return optax.apply_updates(params, updates), opt_state, loss

    params = init_params(jax.random.key(0))
    opt_state = optimiser().init(params)
    trajectory, losses = [], []
    for batch in batches:
        params, opt_state, loss = train_step(params, opt_state, batch)
        trajectory.append(params)
        losses.append(loss)
    return trajectory, losses


def params_of(trajectory):
    return trajectory


def by_hand():
    base = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule(Config())))
    return sam_by_hand(loss_fn, init_params(jax.random.key(0)), base, image_batches())
