"""Where, and on which examples, the first gradient of a step is taken."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import lax

from optax_sam import checks, random_trees, sharding, trees
from optax_sam.hyperparameters import Scalar, ScalarOrSchedule, at_step
from optax_sam.oracle import Evaluation, Oracle
from optax_sam.pieces.geometry import filter_norms
from optax_sam.pieces.protocols import Context
from optax_sam.pieces.selections import check_fraction, take_highest, take_part


@dataclasses.dataclass(frozen=True)
class AtParams:
    """See `at_params`."""

    needs_oracle: ClassVar[bool] = False
    perturbs: ClassVar[bool] = False
    follows_gate: ClassVar[bool] = False
    reweights: ClassVar[bool] = False

    @property
    def evaluations(self) -> int:
        return 0

    def init(self, params: Any) -> Any:
        del params
        return ()

    def begin(self, state: Any, context: Context) -> tuple[Any, Oracle]:
        del state
        return context.params, context.oracle

    def update(self, state: Any, here: Evaluation, there: Evaluation, context: Context) -> Any:
        del here, there, context
        return state


def at_params() -> AtParams:
    """At the parameters, on the whole batch."""
    return AtParams()


@dataclasses.dataclass(frozen=True)
class AtRandom(AtParams):
    """See `at_random`."""

    radius: Scalar
    noise_scale: Scalar
    noise: str

    needs_oracle: ClassVar[bool] = True
    perturbs: ClassVar[bool] = True

    def begin(self, state: Any, context: Context) -> tuple[Any, Oracle]:
        del state
        normal, uniform = jax.random.split(context.key)
        z = random_trees.standard_normal(normal, context.params)
        norm = trees.norm(z)
        radius = jnp.asarray(self.radius).astype(norm.dtype)
        if self.noise == "gaussian":
            length = jnp.minimum(jnp.asarray(self.noise_scale).astype(norm.dtype) * norm, radius)
        else:
            length = radius * jax.random.uniform(uniform, dtype=norm.dtype) ** 1e-8
        unit = trees.divide(z, norm)
        noise = trees.map_wide(lambda x: trees.times(length, x), unit)
        return trees.add_perturbation(context.params, noise), context.oracle


def at_random(radius: Scalar = 1.0, noise_scale: Scalar = 1.0, noise: str = "gaussian") -> AtRandom:
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
class AtRandomPerFilter(AtParams):
    """See `at_random_per_filter`."""

    noise_scale: ScalarOrSchedule

    needs_oracle: ClassVar[bool] = True
    perturbs: ClassVar[bool] = True

    def begin(self, state: Any, context: Context) -> tuple[Any, Oracle]:
        del state
        scale = at_step(self.noise_scale, context.step)

        def on_leaf(z, w):
            norm, wide = filter_norms(z), filter_norms(w)
            safe = jnp.where(norm == 0, jnp.ones_like(norm), norm)
            return trees.times(scale, (wide / safe).astype(z.dtype) * z)

        noise = trees.widen(random_trees.standard_normal(context.key, context.params))
        noise = trees.map_inexact(on_leaf, noise, context.params)
        return trees.add_perturbation(context.params, noise), context.oracle


def at_random_per_filter(noise_scale: ScalarOrSchedule) -> AtRandomPerFilter:
    """At `params + n`, `n_f = noise_scale ||w_f|| z / ||z||` in each output filter `f` (R-SAM).

    The last axis of a leaf counts its filters; a leaf with one axis or none is one filter.

    Args:
      noise_scale: 0 or more, in parts of the filter's norm; a number, or a schedule of the step count.
    """
    checks.number_or_schedule("noise_scale", noise_scale, low=0)
    return AtRandomPerFilter(noise_scale)


@dataclasses.dataclass(frozen=True)
class Ahead(AtParams):
    """See `ahead`."""

    needs_oracle: ClassVar[bool] = True
    perturbs: ClassVar[bool] = True


def ahead() -> Ahead:
    """Already at the perturbed point: its gradient is the only one of the step, and its descent.

    The direction must not need the gradient of the same step: `descent_momentum()`,
    `previous_descent()`, noise. The gate stays open, since there is nothing to save.
    """
    return Ahead()


@dataclasses.dataclass(frozen=True)
class OnHighestLoss(AtParams):
    """See `on_highest_loss`."""

    fraction: float
    strata: int

    needs_oracle: ClassVar[bool] = True

    def begin(self, state: Any, context: Context) -> tuple[Any, Oracle]:
        del state
        oracle = dataclasses.replace(context.oracle, needs_losses=True)
        if self.fraction == 1 or oracle.whole_batch:
            return context.params, oracle
        losses = oracle.losses_at(context.params)
        return context.params, take_highest(oracle, losses, self.fraction, self.strata)


def on_highest_loss(fraction: float, strata: int = 1) -> OnHighestLoss:
    """At the parameters, on the examples of the highest losses there (K-SAM).

    Costs one forward pass on the whole batch. Padding comes last.

    Args:
      fraction: `int(fraction B / strata)` examples of each stratum, 1 or more.
      strata: the number of contiguous parts of the batch from which is chosen separately.
    """
    check_fraction(fraction)
    checks.integer("strata", strata, low=1)
    return OnHighestLoss(fraction, strata)


@dataclasses.dataclass(frozen=True)
class AtParamsOnPart(AtParams):
    """See `at_params_on_part`."""

    part: int
    num_parts: int
    strata: int

    needs_oracle: ClassVar[bool] = True

    def begin(self, state: Any, context: Context) -> tuple[Any, Oracle]:
        del state
        if context.oracle.whole_batch:
            return context.params, context.oracle
        return context.params, take_part(context.oracle, self.part, self.num_parts, self.strata)


def at_params_on_part(part: int, num_parts: int, strata: int = 1) -> AtParamsOnPart:
    """At the parameters, on one of several equal parts of the batch; see `on_part` (RWP)."""
    checks.integer("num_parts", num_parts, low=1)
    checks.integer("part", part, low=0, high=num_parts - 1)
    checks.integer("strata", strata, low=1)
    return AtParamsOnPart(part, num_parts, strata)


@dataclasses.dataclass(frozen=True)
class Reweighted(AtParams):
    """See `reweighted`."""

    weight: ScalarOrSchedule
    difference_step: ScalarOrSchedule

    needs_oracle: ClassVar[bool] = True
    reweights: ClassVar[bool] = True

    def begin(self, state: Any, context: Context) -> tuple[Any, Oracle]:
        del state
        oracle = dataclasses.replace(context.oracle, needs_losses=True)
        weight, step = (at_step(x, context.step) for x in (self.weight, self.difference_step))
        moves = trees.map_wide(
            lambda z: trees.times(step, z), random_trees.signs(context.key, context.params)
        )
        there = oracle.losses_at(trees.add_perturbation(context.params, moves))
        slopes = jnp.abs(there - oracle.losses_at(context.params)) / jnp.asarray(step).astype(there.dtype)
        slopes = jnp.nan_to_num(trees.times(weight, slopes))
        real = jnp.ones_like(slopes) if oracle.weights is None else oracle.weights.astype(slopes.dtype)
        largest = lax.stop_gradient(jnp.max(jnp.where(real != 0, slopes, -jnp.inf)))
        largest = sharding.pmax_over_replicas(largest, context.params)
        least = jnp.finfo(slopes.dtype).tiny ** 0.5  # 0 would make the example padding
        chances = jnp.maximum(jnp.exp(slopes - largest), least)
        chances = jnp.where(real != 0, chances, jnp.zeros_like(slopes)) * real
        return context.params, dataclasses.replace(
            oracle, weights=chances, weight_before_draw=oracle.whole_weight
        )


def reweighted(weight: ScalarOrSchedule, difference_step: ScalarOrSchedule) -> Reweighted:
    """At the parameters, examples with large gradients counting more (RW-SAM).

    Example `i` counts `p_i`, proportional to `exp(weight n_i)` and to its own weight, where
    `n_i = |l_i(w + difference_step z) - l_i(w)| / difference_step` estimates the norm of its gradient
    along random signs `z`. Costs two forward passes.

    Args:
      weight: of the norms; 0 is the plain mean. A number, or a schedule of the step count.
      difference_step: of the finite difference, above 0; a number, or a schedule of the step count.
    """
    checks.number_or_schedule("weight", weight)
    checks.number_or_schedule("difference_step", difference_step, low=0)
    if isinstance(difference_step, int | float) and difference_step == 0:
        raise ValueError("difference_step=0 gives no difference: pass a number above 0.")
    return Reweighted(weight, difference_step)


@dataclasses.dataclass(frozen=True)
class OnSurrogateBetween(AtParams):
    """See `on_surrogate_between`."""

    surrogate_losses: Callable[[Any, Any], Any]

    needs_oracle: ClassVar[bool] = True
    follows_gate: ClassVar[bool] = True

    def begin(self, state: Any, context: Context) -> tuple[Any, Oracle]:
        del state
        full, cheap, due = context.oracle.losses, self.surrogate_losses, context.due

        def losses(*args):
            return lax.cond(due, full, cheap, *args)

        return context.params, dataclasses.replace(context.oracle, losses=losses)


def on_surrogate_between(surrogate_losses: Callable[[Any, Any], Any]) -> OnSurrogateBetween:
    """At the parameters; in unpaid steps the gradient is that of a cheaper loss (FGSAM+).

    Args:
      surrogate_losses: called and returning as the loss function of `value_and_grad`.
    """
    checks.function("surrogate_losses", surrogate_losses, "surrogate_losses(params, batch) -> [batch]")
    return OnSurrogateBetween(surrogate_losses)
