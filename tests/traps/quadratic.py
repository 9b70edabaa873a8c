"""A quadratic of three numbers, the mean of four examples: small enough to be worked out by hand."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optax_sam
from tests.registry import VARIANTS

CURVATURE = np.array([1.0, 4.0, 9.0], np.float32)
START = np.array([1.0, -2.0, 3.0], np.float32)
ROWS = np.array([[0.3, 0.1, -0.2], [-0.1, 0.2, 0.4], [0.2, -0.4, 0.1], [-0.4, 0.1, -0.3]], np.float32)
INDICES = np.arange(4, dtype=np.int32)


def losses(params: jax.Array, rows: jax.Array) -> jax.Array:
    """One loss per example; as the rows sum to 0, the gradient of their mean is `CURVATURE * params`."""
    return 0.5 * jnp.sum(CURVATURE[None] * (params[None] - rows) ** 2, axis=1)


def gradient(params: Any) -> Any:
    """The gradient of the mean loss, by hand."""
    return CURVATURE * params


class Step(NamedTuple):
    """One training step as the loss function and the caller saw it.

    Attributes:
      params: what the caller holds before the step.
      points: where losses were asked for, in any order.
      due: whether the step was announced as perturbed.
      loss: what `value_and_grad` returned.
      info: what `info` told after the step.
    """

    params: np.ndarray
    points: list[np.ndarray]
    due: bool
    loss: float
    info: dict[str, Any]


def with_radius(name: str, rho: Any) -> optax_sam.SharpnessAware:
    """A method at a radius, without a random start."""
    case = VARIANTS[name]
    if name == "pugd":
        return case.make(radius=rho)
    return case.make(rho=rho, radius=0.0) if name.startswith("tsam") else case.make(rho=rho)


def length(name: str, perturbation: np.ndarray, params: np.ndarray) -> float:
    """The size of a perturbation in the norm of the method."""
    return float(np.linalg.norm(perturbation / (np.abs(params) + 0.01 if name == "asam" else 1.0)))


@functools.cache
def watched(name: str, steps: int = 12) -> list[Step]:
    """Some training steps by plain SGD, with the radius `0.02, 0.04, 0.06, ...`."""
    method = with_radius(name, lambda step: 0.02 * (step + 1.0))
    tx = optax.chain(method, optax.sgd(0.05))
    points: list[np.ndarray] = []

    def look(params, rows):
        jax.debug.callback(lambda p: points.append(np.array(p)), params)
        return losses(params, rows)

    @jax.jit
    def step(params, state):
        loss, grads, oracle = method.value_and_grad(look)(params, ROWS, state=state, indices=INDICES)
        updates, state = tx.update(grads, state, params, oracle=oracle)
        return optax.apply_updates(params, updates), state, loss

    params, state, seen = jnp.asarray(START), tx.init(START), []
    for _ in range(steps):
        before, due = np.asarray(params), bool(method.due(state))
        points.clear()
        params, state, loss = step(params, state)
        jax.effects_barrier()
        seen.append(Step(before, list(points), due, float(loss), optax_sam.info(state)))
    return seen
