"""What else costs one gradient a step: to hold sharpness-aware methods against."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class AveragedState(NamedTuple):
    """State of `averaged`.

    Attributes:
      base: of the base optimizer.
      average: of the parameters, by which the network is judged.
      statistics: the same average of what batch norm keeps: the network's own belong to other parameters.
    """

    base: optax.OptState
    average: optax.Params
    statistics: Any = None


def averaged(
    base: optax.GradientTransformation, average_steps: Any = 100.0
) -> optax.GradientTransformationExtraArgs:
    """The base optimizer, and an exponential average of the parameters that it leads to.

    `a <- a + (w - a) / average_steps`, from the first parameters on; the training itself does not see it.
    `update` takes the statistics of batch norm as `batch_stats`, if the state was given first ones.
    """

    check_number("average_steps", average_steps, least=1)

    def init(params: optax.Params) -> AveragedState:
        return AveragedState(base.init(params), params)

    def update(
        updates: Any, state: Any, params: Any = None, batch_stats: Any = None, **_: Any
    ) -> tuple[Any, AveragedState]:
        updates, inner = base.update(updates, state.base, params)
        share = 1 / average_steps
        average = optax.incremental_update(optax.apply_updates(params, updates), state.average, share)
        statistics = optax.incremental_update(batch_stats, state.statistics, share)
        return updates, AveragedState(inner, average, statistics)

    return optax.GradientTransformationExtraArgs(init, update)


class HamState(NamedTuple):
    """State of `ham`.

    Attributes:
      base: of the base optimizer.
      count: steps taken, for the schedule.
    """

    base: optax.OptState
    count: jax.Array


def ham(
    base: optax.GradientTransformation,
    learning_rate: optax.Schedule,
    mirror_strength: Any = 200.0,
    mirror_decay: Any = 1e-3,
) -> optax.GradientTransformation:
    """Hyperbolic aware minimization (Jacobs et al., ICLR 2026, arXiv:2506.02630).

    After the base optimizer's step to `v`, weights become `w <- v exp(-lr (a sign(v) g + b))`, `g` being the
    gradient of the step; biases and scales stay where the base optimizer led them, as in the authors' code.
    """

    check_number("mirror_strength", mirror_strength, least=0)
    check_number("mirror_decay", mirror_decay, least=0)

    def init(params: optax.Params) -> HamState:
        return HamState(base.init(params), jnp.int32(0))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, HamState]:
        grads, rate = updates, jnp.asarray(learning_rate(state.count))
        updates, inner = base.update(grads, state.base, params)

        def mirrored(update: jax.Array, grad: jax.Array, param: jax.Array) -> jax.Array:
            if param.ndim < 2:
                return update
            there = param + update
            return there * jnp.exp(-rate * (mirror_strength * jnp.sign(there) * grad + mirror_decay)) - param

        updates = jax.tree.map(mirrored, updates, grads, params)
        return updates, HamState(inner, state.count + 1)

    return optax.GradientTransformation(init, update)


def check_number(name: str, value: Any, least: float) -> None:
    """Refuses a number outside its range; one that is traced has been checked before."""
    if not isinstance(value, jax.Array) and not least <= value < math.inf:
        raise ValueError(f"{name}={value} is no number of {least} or more: give one")
