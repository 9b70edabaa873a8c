"""How the two gradients become one."""

import dataclasses
from typing import Any

import jax.numpy as jnp

from optax_sam import checks, trees
from optax_sam.hyperparameters import ScalarOrSchedule, at_step
from optax_sam.pieces import Context


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
