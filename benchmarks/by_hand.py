"""SAM and its kin as they are written by hand in plain JAX: what the compiled programs are compared with."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from benchmarks.cases import RHO, Case, Losses, Step, sgd

Built = tuple[Callable[[Any], Any], Step]


def sam(losses: Losses, base: optax.GradientTransformation) -> Built:
    """Two gradients, the second one uphill."""

    def step(params, stats, state, batch):
        gradient = _gradient(losses, stats, batch)
        (loss, stats), grads = gradient(params)
        grads = gradient(_moved(params, grads))[1]
        updates, state = base.update(grads, state, params)
        return optax.apply_updates(params, updates), stats, state, loss

    return base.init, step


def momentum_sam(losses: Losses, base: optax.GradientTransformation) -> Built:
    """One gradient, where the momentum of the base optimizer has come from."""

    def step(params, stats, state, batch):
        found = optax.tree.get(state, "trace")
        momentum = optax.tree.get(state, "mu") if found is None else found
        (loss, stats), grads = _gradient(losses, stats, batch)(_moved(params, momentum, -RHO))
        updates, state = base.update(grads, state, params)
        return optax.apply_updates(params, updates), stats, state, loss

    return base.init, step


def gate(losses: Losses, base: optax.GradientTransformation) -> Built:
    """SAM in steps that are drawn, by a conditional around the second gradient."""

    def init(params):
        return jnp.zeros([], jnp.int32), base.init(params)

    def step(params, stats, state, batch):
        number, state = state
        gradient = _gradient(losses, stats, batch)
        (loss, stats), grads = gradient(params)
        due = jax.random.bernoulli(jax.random.fold_in(jax.random.key(0), number))
        grads = lax.cond(due, lambda: gradient(_moved(params, grads))[1], lambda: grads)
        updates, state = base.update(grads, state, params)
        return optax.apply_updates(params, updates), stats, (number + 1, state), loss

    return init, step


def reuse(losses: Losses, base: optax.GradientTransformation) -> Built:
    """SAM in every second step, whose difference to the plain gradient the next step adds again."""

    def init(params):
        return jnp.zeros([], jnp.int32), jax.tree.map(jnp.zeros_like, params), base.init(params)

    def step(params, stats, state, batch):
        number, kept, state = state
        gradient = _gradient(losses, stats, batch)
        (loss, stats), grads = gradient(params)

        def paid():
            found = gradient(_moved(params, grads))[1]
            return found, jax.tree.map(jnp.subtract, found, grads)

        def unpaid():
            return jax.tree.map(lambda g, d: g + 0.5 * d, grads, kept), kept

        grads, kept = lax.cond(number % 2 == 0, paid, unpaid)
        updates, state = base.update(grads, state, params)
        return optax.apply_updates(params, updates), stats, (number + 1, kept, state), loss

    return init, step


BASE = "base alone"

CASES = (
    Case(BASE, sgd, 1),
    Case("sam, by hand", sam, 2),
    Case("momentum_sam, by hand", momentum_sam, 1),
    Case("gate, by hand", gate, None),
    Case("reuse, by hand", reuse, None),
)
"""The base optimizer, and what stands before it, by hand."""

LIKE = {
    "sam": "sam, by hand",
    "optax.contrib.sam, opaque": "sam, by hand",
    "momentum_sam": "momentum_sam, by hand",
    "rst": "gate, by hand",
    "vsam(window=10)": "reuse, by hand",
}
"""Which of them a method is to be as lean as."""


def _gradient(losses: Losses, stats: Any, batch: Any) -> Callable[[Any], Any]:
    def mean(params):
        found, new = losses(params, stats, batch)
        return found.mean(), new

    return jax.value_and_grad(mean, has_aux=True)


def _moved(params: Any, direction: Any, rho: float = RHO) -> Any:
    norm = optax.tree.norm(direction)
    return jax.tree.map(lambda w, g: w + rho * g / (norm + 1e-12), params, direction)
