"""Whether a step pays for a second gradient."""

import dataclasses
import math
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from optax_sam.arithmetic import trees
from optax_sam.engine import checks
from optax_sam.engine.aliases import Grads, Params
from optax_sam.engine.hyperparameters import (
    Count,
    FixedNotNegative,
    FixedProbability,
    Number,
    Probability,
    Scalar,
    ScalarOrSchedule,
    at_step,
)
from optax_sam.pieces.bases import Gate, Step
from optax_sam.pieces.variance_rate import with_variance_rate

__all__ = ["after", "always", "every", "when_gradient_is_large", "with_probability", "with_variance_rate"]


@dataclasses.dataclass(frozen=True)
class Always(Gate):
    """See `always`."""

    constant: ClassVar[bool | None] = True
    asks_anew: ClassVar[bool] = False

    def due(self, state: Any, step: Step) -> jax.Array:
        del state, step
        return jnp.ones([], bool)


def always() -> Always:
    """Perturb always: the program has no conditional."""
    return Always()


@dataclasses.dataclass(frozen=True)
class Every(Gate):
    """See `every`."""

    k: int
    asks_anew: ClassVar[bool] = False

    def due(self, state: Any, step: Step) -> jax.Array:
        del state
        return step.count % self.k == 0


def every(k: Count) -> Every:
    """Perturb every k-th step: the steps 0, `k`, `2 k` and so on."""
    checks.integer("k", k, low=1)
    return Every(k)


@dataclasses.dataclass(frozen=True)
class WithProbability(Gate):
    """See `with_probability`."""

    probability: ScalarOrSchedule
    asks_anew: ClassVar[bool] = False

    def due(self, state: Any, step: Step) -> jax.Array:
        del state
        probability = jnp.asarray(at_step(self.probability, step.count), jnp.float32)
        return jax.random.uniform(step.key, dtype=jnp.float32) < probability


def with_probability(probability: Probability) -> WithProbability:
    """Perturb with probability `p(t)`, drawn anew in each step: `U(0, 1) < p(t)`.

    Args:
      probability: from 0 (never) to 1 (always). A number, or a schedule of the step count.
    """
    checks.number_or_schedule("probability", probability, low=0, high=1)
    return WithProbability(probability)


@dataclasses.dataclass(frozen=True)
class After(Gate):
    """See `after`."""

    start_step: Scalar
    asks_anew: ClassVar[bool] = False

    def due(self, state: Any, step: Step) -> jax.Array:
        del state
        start, largest = self.start_step, jnp.iinfo(step.count.dtype).max
        start = min(math.ceil(start), largest) if checks.is_readable(start) else jnp.ceil(start)
        return step.count >= jnp.asarray(start).astype(step.count.dtype)


def after(start_step: FixedNotNegative) -> After:
    """Perturb after `start_step` steps that are not perturbed: the steps `start_step` and later."""
    checks.number("start_step", start_step, low=0)
    if checks.is_readable(start_step) and 0 < float(start_step) < 1:
        raise ValueError(
            f"start_step={start_step!r} is a part of a step: pass a number of steps, such as "
            "int(0.8 * total_steps)."
        )
    return After(start_step)


class LargeGradientState(NamedTuple):
    """State of `when_gradient_is_large`. Both change every step, and are in the units of the gradient.

    Attributes:
      root_mean: `float[]`, root of the running mean `mu` of the squared norm.
      root_deviation: `float[]`, root of its running standard deviation `sigma`.
    """

    root_mean: jax.Array
    root_deviation: jax.Array


@dataclasses.dataclass(frozen=True)
class WhenGradientIsLarge(Gate):
    """See `when_gradient_is_large`."""

    threshold: ScalarOrSchedule
    decay: Scalar

    needs_gradient: ClassVar[bool] = True
    asks_anew: ClassVar[bool] = False

    def init(self, params: Params, key: jax.Array) -> LargeGradientState:
        del params, key
        return LargeGradientState(jnp.zeros([], float), jnp.zeros([], float))

    def due(self, state: LargeGradientState, step: Step) -> jax.Array:
        _, square, mean, deviation = self._seen(state, step.grads)
        threshold = jnp.asarray(at_step(self.threshold, step.count)).astype(square.dtype)
        return square >= mean + threshold * deviation

    def update(self, state: LargeGradientState, step: Step) -> LargeGradientState:
        unit, _, mean, deviation = self._seen(state, step.grads)
        return LargeGradientState(unit * jnp.sqrt(mean), unit * jnp.sqrt(deviation))

    def _seen(self, state: LargeGradientState, grads: Grads) -> tuple[jax.Array, ...]:
        """A unit of the norm, and in its square: the squared norm, its mean and its standard deviation."""
        # The largest of them is the unit: a variance is a fourth power, which float32 does not hold for long.
        # Nothing is differentiated through a decision.
        found = jnp.stack([trees.norm(grads).astype(state.root_mean.dtype), *state])
        found = lax.stop_gradient(jnp.nan_to_num(found))
        unit = jnp.max(found)
        square, mean, deviation = jnp.square(trees.divide(found, unit))
        decay = jnp.asarray(self.decay).astype(square.dtype)
        mean = decay * mean + (1 - decay) * square
        deviation = jnp.hypot(jnp.sqrt(decay) * deviation, jnp.sqrt(1 - decay) * (square - mean))
        return unit, square, mean, deviation


def when_gradient_is_large(threshold: Number, decay: FixedProbability = 0.9) -> WhenGradientIsLarge:
    """Perturb when `||g||^2 >= mu + threshold sigma`: the gradient is large among the earlier ones (AE-SAM).

    `mu = decay mu + (1 - decay) ||g||^2` and
    `sigma^2 = decay sigma^2 + (1 - decay) (||g||^2 - mu)^2`, from 0, this step's gradient included. The
    decision cannot be known before the first gradient.

    Args:
      threshold: in standard deviations. A number, or a schedule of the step count.
      decay: from 0 to 1.
    """
    checks.number_or_schedule("threshold", threshold)
    checks.number("decay", decay, low=0, high=1)
    return WhenGradientIsLarge(threshold, decay)
