"""How the two gradients become one."""

import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp
import optax

from optax_sam import checks, trees
from optax_sam.hyperparameters import ScalarOrSchedule, at_step
from optax_sam.pieces.protocols import Context


def perturbed(grads: Any, perturbed_grads: Any, context: Context) -> Any:
    """`g'`, the gradient at the perturbed point."""
    del grads, context
    return perturbed_grads


def unit(grads: Any, perturbed_grads: Any, context: Context) -> Any:
    """`g' / ||g'||`; zero where `g'` is zero."""
    del grads, context
    return trees.divide(perturbed_grads, trees.norm(perturbed_grads))


def unit_sum(grads: Any, perturbed_grads: Any, context: Context) -> Any:
    """`(g + g') / ||g + g'||`; zero where the sum is zero."""
    total = trees.map_inexact(jnp.add, trees.widen(grads), trees.widen(perturbed_grads))
    return unit(grads, total, context)


@dataclasses.dataclass(frozen=True)
class Mix:
    """See `mix`."""

    alpha: ScalarOrSchedule

    def __call__(self, grads: Any, perturbed_grads: Any, context: Context) -> Any:
        alpha = at_step(self.alpha, context.step)

        def on_leaf(g, p):
            return trees.times(1 - alpha, g) + trees.times(alpha, p)

        return trees.map_wide(on_leaf, grads, perturbed_grads)


def mix(alpha: ScalarOrSchedule) -> Mix:
    """`(1 - alpha) g + alpha g'`; above 1 it extrapolates.

    Args:
      alpha: a number, or a schedule of the step count.
    """
    checks.number_or_schedule("alpha", alpha)
    return Mix(alpha)


@dataclasses.dataclass(frozen=True)
class Plus:
    """See `plus`."""

    weight: ScalarOrSchedule

    def __call__(self, grads: Any, perturbed_grads: Any, context: Context) -> Any:
        weight = at_step(self.weight, context.step)
        return trees.map_wide(lambda g, p: trees.times(weight, g) + p, grads, perturbed_grads)


def plus(weight: ScalarOrSchedule) -> Plus:
    """`g' + weight g` (FGSAM).

    Args:
      weight: a number, or a schedule of the step count.
    """
    checks.number_or_schedule("weight", weight)
    return Plus(weight)


@dataclasses.dataclass(frozen=True)
class SurrogateGap:
    """See `surrogate_gap`."""

    alpha: ScalarOrSchedule
    minimize_clean: bool

    def __call__(self, grads: Any, perturbed_grads: Any, context: Context) -> Any:
        alpha = at_step(self.alpha, context.step)
        if self.minimize_clean:
            beyond = trees.perpendicular(perturbed_grads, to=grads)
            return trees.map_wide(lambda g, x: g + trees.times(alpha, x), grads, beyond)
        beyond = trees.perpendicular(grads, to=perturbed_grads)
        return trees.map_wide(lambda p, x: p - trees.times(alpha, x), perturbed_grads, beyond)


def surrogate_gap(alpha: ScalarOrSchedule, minimize_clean: bool = False) -> SurrogateGap:
    """`g' - alpha g_o`, `g_o` the part of `g` orthogonal to `g'` (GSAM).

    The surrogate gap `L(w + e) - L(w)` falls along `-g_o` while the perturbed loss stays, to first
    order.

    Args:
      alpha: a number, or a schedule of the step count.
      minimize_clean: instead `g + alpha g'_o`, `g'_o` the part of `g'` orthogonal to `g`.
    """
    checks.number_or_schedule("alpha", alpha)
    checks.boolean("minimize_clean", minimize_clean)
    return SurrogateGap(alpha, bool(minimize_clean))


@dataclasses.dataclass(frozen=True)
class Bilateral:
    """See `bilateral`."""

    lower_rho: ScalarOrSchedule

    evaluations: ClassVar[int] = 1

    def __call__(self, grads: Any, perturbed_grads: Any, context: Context) -> Any:
        rho = at_step(self.lower_rho, context.step)
        unit = trees.divide(optax.tree.conj(grads), trees.norm(grads))
        down = trees.map_wide(lambda u: trees.times(-rho, u), unit)
        below = context.oracle.evaluate_moved(down, context.params).grads
        ratio = trees.divide(trees.norm(perturbed_grads), trees.norm(below))

        def on_leaf(g, p, b):
            return p + g - trees.times(ratio, b)

        return trees.map_wide(on_leaf, grads, perturbed_grads, below)


def bilateral(lower_rho: ScalarOrSchedule) -> Bilateral:
    """`g' + g - (||g'|| / ||g-||) g-`, `g-` the gradient at `w - lower_rho g / ||g||` (BSAM).

    Args:
      lower_rho: 0 or more; a number, or a schedule of the step count.
    """
    checks.number_or_schedule("lower_rho", lower_rho, low=0)
    return Bilateral(lower_rho)
