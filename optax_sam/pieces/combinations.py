"""How the two gradients become one."""

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp

from optax_sam.arithmetic import trees
from optax_sam.engine import checks
from optax_sam.engine.aliases import Batch, Grads
from optax_sam.engine.hyperparameters import Cap, Number, Radius, ScalarOrSchedule, at_step
from optax_sam.pieces.bases import Combination, Step

__all__ = [
    "bilateral",
    "mix",
    "perturbed",
    "plus",
    "plus_emphasized_rise",
    "polyak",
    "surrogate_gap",
    "unit",
    "unit_sum",
]


@dataclasses.dataclass(frozen=True)
class Perturbed(Combination):
    """See `perturbed`."""

    asks_anew: ClassVar[bool] = False

    def combine(self, step: Step) -> Grads:
        return step.perturbed_grads


def perturbed() -> Perturbed:
    """`g'`, the gradient at the perturbed point."""
    return Perturbed()


@dataclasses.dataclass(frozen=True)
class Unit(Combination):
    """See `unit`."""

    asks_anew: ClassVar[bool] = False

    def combine(self, step: Step) -> Grads:
        return trees.divide(step.perturbed_grads, step.perturbed.norm)


def unit() -> Unit:
    """`g' / ||g'||`, and zero where `g'` is zero."""
    return Unit()


@dataclasses.dataclass(frozen=True)
class UnitSum(Combination):
    """See `unit_sum`."""

    asks_anew: ClassVar[bool] = False

    def combine(self, step: Step) -> Grads:
        total = trees.map_inexact(jnp.add, trees.widen(step.grads), trees.widen(step.perturbed_grads))
        return trees.divide(total, trees.norm(total))


def unit_sum() -> UnitSum:
    """`(g + g') / ||g + g'||`, and zero where the sum is zero."""
    return UnitSum()


@dataclasses.dataclass(frozen=True)
class Mix(Combination):
    """See `mix`."""

    alpha: ScalarOrSchedule

    asks_anew: ClassVar[bool] = False

    def combine(self, step: Step) -> Grads:
        alpha = at_step(self.alpha, step.count)

        def on_leaf(g, p):
            return trees.times(1 - alpha, g) + trees.times(alpha, p)

        return trees.map_wide(on_leaf, step.grads, step.perturbed_grads)


def mix(alpha: Number) -> Mix:
    """`(1 - alpha) g + alpha g'`. An `alpha` above 1 extrapolates.

    Args:
      alpha: a number, or a schedule of the step count.
    """
    checks.number_or_schedule("alpha", alpha)
    return Mix(alpha)


@dataclasses.dataclass(frozen=True)
class Plus(Combination):
    """See `plus`."""

    weight: ScalarOrSchedule

    asks_anew: ClassVar[bool] = False

    def combine(self, step: Step) -> Grads:
        weight = at_step(self.weight, step.count)
        return trees.map_wide(lambda g, p: trees.times(weight, g) + p, step.grads, step.perturbed_grads)


def plus(weight: Number) -> Plus:
    """`g' + weight g` (FGSAM).

    Args:
      weight: a number, or a schedule of the step count.
    """
    checks.number_or_schedule("weight", weight)
    return Plus(weight)


@dataclasses.dataclass(frozen=True)
class SurrogateGap(Combination):
    """See `surrogate_gap`."""

    alpha: ScalarOrSchedule
    minimize_clean: bool

    asks_anew: ClassVar[bool] = False

    def combine(self, step: Step) -> Grads:
        alpha, grads, perturbed_grads = at_step(self.alpha, step.count), step.grads, step.perturbed_grads
        if self.minimize_clean:
            beyond = trees.perpendicular(perturbed_grads, to=grads)
            return trees.map_wide(lambda g, x: g + trees.times(alpha, x), grads, beyond)
        beyond = trees.perpendicular(grads, to=perturbed_grads)
        return trees.map_wide(lambda p, x: p - trees.times(alpha, x), perturbed_grads, beyond)


def surrogate_gap(alpha: Number, minimize_clean: bool = False) -> SurrogateGap:
    """`g' - alpha g_o`, `g_o` the part of `g` orthogonal to `g'` (GSAM).

    The surrogate gap `L(w + e) - L(w)` falls along `-g_o` while the perturbed loss stays, to first
    order.

    Args:
      alpha: a number, or a schedule of the step count.
      minimize_clean: returns `g + alpha g'_o` instead, with `g'_o` the part of `g'` orthogonal to `g`.
    """
    checks.number_or_schedule("alpha", alpha)
    checks.boolean("minimize_clean", minimize_clean)
    return SurrogateGap(alpha, bool(minimize_clean))


@dataclasses.dataclass(frozen=True)
class Bilateral(Combination):
    """See `bilateral`."""

    lower_rho: ScalarOrSchedule

    asks_anew: ClassVar[bool] = False

    def combine(self, step: Step) -> Grads:
        rho = at_step(self.lower_rho, step.count)
        unit = trees.divide(trees.conjugate(step.grads), step.first.norm)
        down = trees.map_wide(lambda u: trees.times(-rho, u), unit)
        below = step.oracle.evaluate_moved(down)
        ratio = trees.divide(step.perturbed.norm, below.norm)

        def on_leaf(g, p, b):
            return p + g - trees.times(ratio, b)

        return trees.map_wide(on_leaf, step.grads, step.perturbed_grads, below.grads)


def bilateral(lower_rho: Radius) -> Bilateral:
    """`g' + g - (||g'|| / ||g-||) g-`, `g-` the gradient at `w - lower_rho g / ||g||` (BSAM).

    Args:
      lower_rho: 0 or more. A number, or a schedule of the step count.
    """
    checks.number_or_schedule("lower_rho", lower_rho, low=0)
    return Bilateral(lower_rho)


@dataclasses.dataclass(frozen=True)
class PlusEmphasizedRise(Combination):
    """See `plus_emphasized_rise`."""

    emphasis: Callable[[Batch], jax.Array]

    needs_oracle: ClassVar[bool] = True
    asks_anew: ClassVar[bool] = False

    def combine(self, step: Step) -> Grads:
        share = step.oracle.mean(self.emphasis(step.oracle.batch))

        def on_leaf(g, d, p):
            return g + trees.times(share, p - d)

        return trees.map_wide(on_leaf, step.grads, step.direction, step.perturbed_grads)


def plus_emphasized_rise(emphasis: Callable[[Batch], jax.Array]) -> PlusEmphasizedRise:
    """`g + mean(c) (g'_c - d)`: the loss, and the rise of the emphasized one (Focal-SAM).

    `d` is the direction, `directions.emphasized(emphasis)`, and `g'_c` the second gradient, on
    `selections.emphasized(emphasis)`. The mean is over the examples, by their weights.

    Args:
      emphasis: `emphasis(batch) -> float[batch]`, `c`, 0 or more.
    """
    checks.function("emphasis", emphasis, "emphasis(batch) -> float[batch]")
    return PlusEmphasizedRise(emphasis)


@dataclasses.dataclass(frozen=True)
class Polyak(Combination):
    """See `polyak`."""

    max_step: ScalarOrSchedule
    lower_bound: ScalarOrSchedule

    needs_oracle: ClassVar[bool] = True
    asks_anew: ClassVar[bool] = False
    reads_loss: ClassVar[bool] = True

    def combine(self, step: Step) -> Grads:
        norm = step.perturbed.norm
        max_step, bound, loss = (
            jnp.asarray(x).astype(norm.dtype)
            for x in (
                at_step(self.max_step, step.count, infinite_too=True),
                at_step(self.lower_bound, step.count),
                step.perturbed.loss,
            )
        )
        unit = trees.divide(trees.widen(step.perturbed_grads), norm)
        rise = norm * trees.inner(trees.conjugate(unit), step.perturbation).astype(norm.dtype)
        # Squares of norms overflow and underflow: the length of the descent is bounded in their place.
        longest = jnp.where(norm == 0, 0.0, max_step * norm)  # the bound may be infinite
        length = jnp.clip(trees.divide(loss - bound - rise, norm), 0, longest)
        return trees.map_wide(lambda u: trees.times(length, u), unit)


def polyak(max_step: Cap = 1.0, lower_bound: Number = 0.0) -> Polyak:
    """`gamma g'`, `gamma = clip((L(w + e) - lower_bound - <g', e>) / ||g'||^2, 0, max_step)` (SAM-SPS).

    This is Polyak's step along the perturbed gradient. It goes down to where the tangent at the perturbed
    point, drawn back to the parameters, meets the lower bound. `optax.sgd(1.0)` behind the method takes it as
    it is.

    It is a combination, and no transformation behind the method in the chain. Such a transformation gets the
    descent alone, neither the perturbation nor the loss at its end. Here all three are of the same examples.
    In slices and draws, each has a step of its own, and the descent is the mean of these. A gradient that is
    not that of its loss is refused (`selections.emphasized`, `starts.reweighted`). With `starts.at_random`
    the tangent is drawn back to the random start. A step that a gate leaves unperturbed descends along the
    gradient as it is.

    Args:
      max_step: 0 or more. A number, or a schedule of the step count.
      lower_bound: of the loss of any batch, 0 for losses that may vanish. A number, or a schedule of the step
        count.
    """
    checks.number_or_schedule("max_step", max_step, low=0, infinite_too=True)
    checks.number_or_schedule("lower_bound", lower_bound)
    return Polyak(max_step, lower_bound)
