"""Like Flax's example of ImageNet: `pmap`, a `TrainState` with batch statistics, a dynamic loss scale."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import jax_utils
from flax.training import train_state
from flax.training.dynamic_scale import DynamicScale
from jax import lax

import optax_sam
import optax_sam.flax
from tests.clients.common import cross_entropy, image_batches, sam_by_hand
from tests.problem import assert_trees_equal

# `value_and_grad` takes no mean over the devices, so the door is a gradient function.
METHODS = {
    "sam": optax_sam.sam,
    "vsam": functools.partial(optax_sam.vsam, window=4, slices=2, tail=2, warmup_steps=1),
    "looksam": functools.partial(optax_sam.looksam, every_k=2),
    "asam": optax_sam.asam,
    "gsam": optax_sam.gsam,
}
FAST, CHANGED = "vsam", (6, 3)
NUM_DEVICES = 4
DEVICES = jax.devices()[:NUM_DEVICES]


class Net(nn.Module):
    dtype: Any

    @nn.compact
    def __call__(self, x, train=True):
        x = nn.Dense(16, dtype=self.dtype)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, dtype=self.dtype)(x))
        return jnp.asarray(nn.Dense(3, dtype=self.dtype)(x), jnp.float32)


class TrainState(train_state.TrainState):
    batch_stats: Any
    dynamic_scale: DynamicScale


def shard(batch):
    return jax.tree.map(lambda x: x.reshape(NUM_DEVICES, -1, *x.shape[1:]), batch)


def create(model, tx, scale):
    variables = model.init(jax.random.key(0), jnp.ones([1, 5]))
    return TrainState.create(
        apply_fn=model.apply, tx=tx, dynamic_scale=DynamicScale(scale=scale), **variables
    )


def train(batches, dtype=jnp.float16, scale=2.0**15):
    tx = optax.sgd(0.1, momentum=0.9, nesterov=True)
    state = jax_utils.replicate(create(Net(dtype), tx, scale), DEVICES)

    def train_step(state, batch):
        def loss_fn(params):
            variables = {"params": params, "batch_stats": state.batch_stats}
            logits, new_variables = state.apply_fn(variables, batch["image"], mutable=["batch_stats"])
            return cross_entropy(logits, batch["label"]), new_variables

        grad_fn = state.dynamic_scale.value_and_grad(loss_fn, has_aux=True, axis_name="batch")
        dynamic_scale, is_finite, (loss, new_variables), grads = grad_fn(state.params)
        new_state = state.apply_gradients(grads=grads, **new_variables)
        select = functools.partial(jnp.where, is_finite)
        new_state = new_state.replace(
            opt_state=jax.tree.map(select, new_state.opt_state, state.opt_state),
            params=jax.tree.map(select, new_state.params, state.params),
            dynamic_scale=dynamic_scale,
        )
        return new_state, lax.pmean(loss, "batch")

    p_train_step = jax.pmap(train_step, axis_name="batch", devices=DEVICES, donate_argnums=0)
    states, losses = [], []
    for batch in batches:
        state, loss = p_train_step(state, shard(batch))
        states.append(jax.device_get(state))
        losses.append(loss[0])
    return states, losses


def train_with_sam(sam, batches, dtype=jnp.float16, scale=2.0**15):
    tx = optax.chain(sam, optax.sgd(0.1, momentum=0.9, nesterov=True))
    state = jax_utils.replicate(create(Net(dtype), tx, scale), DEVICES)

    def train_step(state, batch):
        def loss_fn(params):
            variables = {"params": params, "batch_stats": state.batch_stats}
            logits, new_variables = state.apply_fn(variables, batch["image"], mutable=["batch_stats"])
            return cross_entropy(logits, batch["label"]), new_variables

        grad_fn = state.dynamic_scale.value_and_grad(loss_fn, has_aux=True, axis_name="batch")
        _, _, (loss, new_variables), grads = grad_fn(state.params)
        new = {"grad_fn": lambda params: grad_fn(params)[3], **new_variables}
        new_state = optax_sam.flax.apply_gradients(state, grads=grads, **new)
        verdict = jnp.where(optax_sam.finite(new_state.opt_state), 1.0, jnp.inf)
        dynamic_scale, is_finite, *_ = state.dynamic_scale.value_and_grad(lambda x: x * verdict)(1.0)
        select = functools.partial(jnp.where, is_finite)
        new_state = new_state.replace(
            opt_state=jax.tree.map(select, new_state.opt_state, state.opt_state),
            params=jax.tree.map(select, new_state.params, state.params),
            dynamic_scale=dynamic_scale,
        )
        return new_state, lax.pmean(loss, "batch")

    p_train_step = jax.pmap(train_step, axis_name="batch", devices=DEVICES, donate_argnums=0)
    states, losses = [], []
    for batch in batches:
        state, loss = p_train_step(state, shard(batch))
        states.append(jax.device_get(state))
        losses.append(loss[0])
    return states, losses


def params_of(states):
    """After each step; all replicas are alike, down to the last bit of the optimizer's state."""
    trajectory = []
    for state in states:
        shared = state.params, state.opt_state, state.dynamic_scale
        first, *others = (jax.tree.map(lambda x, n=n: x[n], shared) for n in range(NUM_DEVICES))
        for other in others:
            assert_trees_equal(first, other)
        trajectory.append(first[0])
    return trajectory


def by_hand():
    """Without devices and without a scale: every quarter of the batch has its own statistics."""

    def loss(params, batch):
        def of_one_device(image, label):
            x = image @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"]
            x = (x - x.mean(0)) / jnp.sqrt(x.var(0) + 1e-5)
            x = nn.relu(x * params["BatchNorm_0"]["scale"] + params["BatchNorm_0"]["bias"])
            return cross_entropy(x @ params["Dense_1"]["kernel"] + params["Dense_1"]["bias"], label)

        return jnp.mean(jax.vmap(of_one_device)(**shard(batch)))

    start = create(Net(jnp.float32), optax.identity(), 1.0).params
    return sam_by_hand(loss, start, optax.sgd(0.1, momentum=0.9, nesterov=True), image_batches())
