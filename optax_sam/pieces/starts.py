"""Where, and on which examples, the first gradient of a step is taken."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from jax import lax

from optax_sam.arithmetic import random_trees, sharding, trees
from optax_sam.engine import checks
from optax_sam.engine.aliases import Params
from optax_sam.engine.hyperparameters import (
    Count,
    CountOrZero,
    FixedNotNegative,
    Fraction,
    Number,
    PositiveNumber,
    Radius,
    Scalar,
    ScalarOrSchedule,
    at_step,
)
from optax_sam.pieces.bases import Began, Start, Step
from optax_sam.pieces.geometries import filter_norms
from optax_sam.pieces.scores import drawn_by_score
from optax_sam.pieces.selections import check_fraction, take_highest, take_part

__all__ = [
    "ahead",
    "at_params",
    "at_random",
    "at_random_per_filter",
    "drawn_by_score",
    "on_highest_loss",
    "on_part",
    "on_surrogate_between",
    "reweighted",
]

Climber = Callable[[], Any]
"""Perturbs before the first gradient is taken; returns the climb."""


@dataclasses.dataclass(frozen=True)
class AtParams(Start):
    """See `at_params`."""

    needs_oracle: ClassVar[bool] = False
    asks_anew: ClassVar[bool] = False
    is_clean: ClassVar[bool] = True

    def begin(self, state: Any, step: Step, climb: Climber) -> Began:
        del state, climb
        return Began(step.params, step.oracle)


def at_params() -> AtParams:
    """At the parameters, on the whole batch."""
    return AtParams()


@dataclasses.dataclass(frozen=True)
class AtRandom(Start):
    """See `at_random`."""

    radius: Scalar
    noise_scale: Scalar
    noise: str

    asks_anew: ClassVar[bool] = False
    perturbs: ClassVar[bool] = True

    def init(self, params: Params, key: jax.Array) -> Any:
        del key
        return trees.which_are_hidden(params)

    def begin(self, state: Any, step: Step, climb: Climber) -> Began:
        del climb
        normal, uniform = jax.random.split(step.key)
        z = trees.widen(random_trees.standard_normal(normal, trees.hidden_as_in(state, step.params)))
        norm = trees.norm(z)
        radius = jnp.asarray(self.radius).astype(norm.dtype)
        if self.noise == "gaussian":
            length = jnp.minimum(jnp.asarray(self.noise_scale).astype(norm.dtype) * norm, radius)
        else:
            length = radius * jax.random.uniform(uniform, dtype=norm.dtype) ** 1e-8
        unit = trees.divide(z, norm)
        noise = trees.map_inexact(lambda x: trees.times(length, x), unit)
        return Began(trees.add_perturbation(step.params, noise), step.oracle)


def at_random(
    radius: FixedNotNegative = 1.0,
    noise_scale: FixedNotNegative = 1.0,
    noise: Literal["gaussian", "uniform"] = "gaussian",
) -> AtRandom:
    """At `params + n`, `n` random: Gaussian and clipped to a ball, or uniform in a ball.

    Gaussian: `n = z min(||z||, R) / ||z||`, `z ~ N(0, noise_scale^2)` in every entry. Uniform:
    `n = R u^(1/1e8) z / ||z||`, `u ~ U(0, 1)`: the ball of a space of 1e8 dimensions, in practice the
    sphere. All norms are global L2 norms.

    Args:
      radius: `R`, 0 or more.
      noise_scale: standard deviation of the Gaussian, 0 or more.
      noise: "gaussian" or "uniform".
    """
    checks.number("radius", radius, low=0)
    checks.number("noise_scale", noise_scale, low=0)
    checks.one_of("noise", noise, ("gaussian", "uniform"))
    return AtRandom(radius, noise_scale, noise)


@dataclasses.dataclass(frozen=True)
class AtRandomPerFilter(Start):
    """See `at_random_per_filter`."""

    noise_scale: ScalarOrSchedule

    asks_anew: ClassVar[bool] = False
    perturbs: ClassVar[bool] = True

    def init(self, params: Params, key: jax.Array) -> Any:
        del key
        return trees.which_are_hidden(params)

    def begin(self, state: Any, step: Step, climb: Climber) -> Began:
        del climb
        visible = trees.hidden_as_in(state, step.params)
        scale = at_step(self.noise_scale, step.count)

        def on_leaf(z, w):
            norm, wide = filter_norms(z), filter_norms(w)
            safe = jnp.where(norm == 0, jnp.ones_like(norm), norm)
            return trees.times(scale, (wide / safe).astype(z.dtype) * z)

        noise = trees.widen(random_trees.standard_normal(step.key, visible))
        noise = trees.map_inexact(on_leaf, noise, visible)
        return Began(trees.add_perturbation(step.params, noise), step.oracle)


def at_random_per_filter(noise_scale: Radius) -> AtRandomPerFilter:
    """At `params + n`, `n_f = noise_scale ||w_f|| z / ||z||` in each output filter `f` (R-SAM).

    The last axis of a leaf counts its filters. A leaf with one axis or none is one filter.

    Args:
      noise_scale: 0 or more, in parts of the filter's norm. A number, or a schedule of the step count.
    """
    checks.number_or_schedule("noise_scale", noise_scale, low=0)
    return AtRandomPerFilter(noise_scale)


@dataclasses.dataclass(frozen=True)
class Ahead(Start):
    """See `ahead`."""

    asks_anew: ClassVar[bool] = False
    perturbs: ClassVar[bool] = True
    climbs: ClassVar[bool] = True

    def begin(self, state: Any, step: Step, climb: Climber) -> Began:
        del state
        climbed = climb()
        return Began(step.oracle.moved(climbed.perturbation), step.oracle, climbed)


def ahead() -> Ahead:
    """Already at the perturbed point. The gradient there is the only one of the step, and its descent.

    The direction must not need the gradient of the same step. Take `descent_momentum()`, `previous_descent()`
    or noise. The gate stays open, since there is nothing to save.
    """
    return Ahead()


@dataclasses.dataclass(frozen=True)
class OnHighestLoss(Start):
    """See `on_highest_loss`."""

    fraction: float
    strata: int

    asks_anew: ClassVar[bool] = False

    def begin(self, state: Any, step: Step, climb: Climber) -> Began:
        del state, climb
        oracle = step.oracle.with_losses()
        if self.fraction == 1 or oracle.whole_batch:
            return Began(step.params, oracle)
        losses = oracle.losses_at(step.params)
        return Began(step.params, take_highest(oracle, losses, self.fraction, self.strata))


def on_highest_loss(fraction: Fraction, strata: Count = 1) -> OnHighestLoss:
    """At the parameters, on the examples of the highest losses there (K-SAM).

    Costs one forward pass on the whole batch. Padding comes last.

    Args:
      fraction: `int(fraction B / strata)` examples of each stratum, 1 or more.
      strata: the number of contiguous parts of the batch. Each part is chosen from separately.
    """
    check_fraction(fraction)
    checks.integer("strata", strata, low=1)
    return OnHighestLoss(fraction, strata)


@dataclasses.dataclass(frozen=True)
class OnPart(Start):
    """See `on_part`."""

    part: int
    num_parts: int
    strata: int

    asks_anew: ClassVar[bool] = False

    def begin(self, state: Any, step: Step, climb: Climber) -> Began:
        del state, climb
        if step.oracle.whole_batch:
            return Began(step.params, step.oracle)
        return Began(step.params, take_part(step.oracle, self.part, self.num_parts, self.strata))


def on_part(part: CountOrZero, num_parts: Count, strata: Count = 1) -> OnPart:
    """At the parameters, on one of several equal parts of the batch (RWP). See `selections.on_part`."""
    checks.integer("num_parts", num_parts, low=1)
    checks.integer("part", part, low=0, high=num_parts - 1)
    checks.integer("strata", strata, low=1)
    return OnPart(part, num_parts, strata)


@dataclasses.dataclass(frozen=True)
class Reweighted(Start):
    """See `reweighted`."""

    weight: ScalarOrSchedule
    difference_step: ScalarOrSchedule

    asks_anew: ClassVar[bool] = False

    def init(self, params: Params, key: jax.Array) -> Any:
        del key
        return trees.which_are_hidden(params)

    def begin(self, state: Any, step: Step, climb: Climber) -> Began:
        del climb
        oracle, visible = step.oracle.with_losses(), trees.hidden_as_in(state, step.params)
        weight, length = (at_step(x, step.count) for x in (self.weight, self.difference_step))
        moves = trees.map_wide(lambda z: trees.times(length, z), random_trees.signs(step.key, visible))
        there = oracle.losses_at(trees.add_perturbation(step.params, moves))
        slopes = jnp.abs(there - oracle.losses_at(step.params)) / jnp.asarray(length).astype(there.dtype)
        slopes = jnp.nan_to_num(trees.times(weight, slopes))
        real = True if oracle.weights is None else oracle.weights != 0
        largest = lax.stop_gradient(jnp.max(jnp.where(real, slopes, -jnp.inf)))
        largest = sharding.pmax_over_replicas(largest, step.params)
        return Began(step.params, oracle.emphasized(jnp.exp(slopes - largest)))


def reweighted(weight: Number, difference_step: PositiveNumber) -> Reweighted:
    """At the parameters, where examples with large gradients count more (RW-SAM).

    Example `i` counts `p_i`, proportional to `exp(weight n_i)` and to its own weight, where
    `n_i = |l_i(w + difference_step z) - l_i(w)| / difference_step` estimates the norm of its gradient
    along random signs `z`. Costs two forward passes.

    Args:
      weight: of the norms. 0 is the plain mean. A number, or a schedule of the step count.
      difference_step: of the finite difference, above 0. A number, or a schedule of the step count.
    """
    checks.number_or_schedule("weight", weight)
    checks.number_or_schedule("difference_step", difference_step, low=0)
    if checks.equals(difference_step, 0):
        raise ValueError("difference_step=0 gives no difference: pass a number above 0.")
    return Reweighted(weight, difference_step)


@dataclasses.dataclass(frozen=True)
class OnSurrogateBetween(Start):
    """See `on_surrogate_between`."""

    surrogate_losses: Callable[[Any, Any], Any]

    asks_anew: ClassVar[bool] = False
    follows_gate: ClassVar[bool] = True

    def begin(self, state: Any, step: Step, climb: Climber) -> Began:
        del state, climb
        return Began(step.params, step.oracle.of_surrogate(self.surrogate_losses, when=~step.due))


def on_surrogate_between(surrogate_losses: Callable[[Any, Any], Any]) -> OnSurrogateBetween:
    """At the parameters, in unpaid steps with the gradient of a cheaper loss (FGSAM+).

    Args:
      surrogate_losses: takes and returns what the loss function of `value_and_grad` does.
    """
    checks.function("surrogate_losses", surrogate_losses, "surrogate_losses(params, batch) -> [batch]")
    return OnSurrogateBetween(surrogate_losses)
