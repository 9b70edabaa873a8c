"""Like NumPyro's examples: stochastic variational inference, which owns the step and its loss."""

import functools

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import optax
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoNormal

import optax_sam
from tests.clients.common import STEPS, sam_by_hand

METHODS = {
    "sam": optax_sam.sam,
    "vsam": functools.partial(optax_sam.vsam, window=4, slices=2, tail=2, warmup_steps=1),
    "looksam": functools.partial(optax_sam.looksam, every_k=2),
    "asam": optax_sam.asam,
    "momentum_sam": optax_sam.momentum_sam,
}
FAST, CHANGED = "momentum_sam", (10, 1)


def model(x, y):
    slope = numpyro.sample("slope", dist.Normal(jnp.zeros(2), 1).to_event(1))
    noise = numpyro.sample("noise", dist.LogNormal(0.0, 1.0))
    with numpyro.plate("data", len(x)):
        numpyro.sample("y", dist.Normal(x @ slope, noise), obs=y)


def observations():
    """One set again and again: the ELBO is noisy enough."""
    x = jax.random.normal(jax.random.key(0), (64, 2))
    y = x @ jnp.array([1.0, -2.0]) + 0.1 * jax.random.normal(jax.random.key(1), (64,))
    return [(x, y)] * STEPS


def train(batches):
    optim = optax.adam(0.05)
    svi = SVI(model, AutoNormal(model), optim, Trace_ELBO())
    svi_state = svi.init(jax.random.key(2), *batches[0])
    step = jax.jit(svi.update)
    states, losses = [], []
    for x, y in batches:
        svi_state, loss = step(svi_state, x, y)
        states.append((svi, svi_state))
        losses.append(loss)
    return states, losses


def train_with_sam(sam, batches):
    tx = optax.chain(sam, optax.adam(0.05))

    def eval_and_update(fn, state, forward_mode_differentiation=False):
        number, (params, opt_state) = state
        train_step = optax_sam.step(tx, lambda params, batch: fn(params), has_aux=True)
        params, opt_state, loss_and_aux = train_step(params, opt_state, ())
        return loss_and_aux, (number + 1, (params, opt_state))

    optim = numpyro.optim.optax_to_numpyro(tx)
    optim.eval_and_update = eval_and_update
    svi = SVI(model, AutoNormal(model), optim, Trace_ELBO())
    svi_state = svi.init(jax.random.key(2), *batches[0])
    step = jax.jit(svi.update)
    states, losses = [], []
    for x, y in batches:
        svi_state, loss = step(svi_state, x, y)
        states.append((svi, svi_state))
        losses.append(loss)
    return states, losses


def params_of(states):
    return [svi.optim.get_params(state.optim_state) for svi, state in states]


def by_hand():
    """The ELBO is NumPyro's, the steps are not: a key for each, split off the one before."""
    svi = SVI(model, AutoNormal(model), optax.adam(0.05), Trace_ELBO())
    state = svi.init(jax.random.key(2), *observations()[0])
    keys, key = [], state.rng_key
    for _ in range(STEPS):
        key, key_of_step = jax.random.split(key)
        keys.append(key_of_step)

    def loss(params, argument):
        key, (x, y) = argument
        return svi.loss.loss(key, svi.constrain_fn(params), svi.model, svi.guide, x, y)

    (start,) = params_of([(svi, state)])
    arguments = list(zip(keys, observations(), strict=True))
    return sam_by_hand(loss, start, optax.adam(0.05), arguments)
