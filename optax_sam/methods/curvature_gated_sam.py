"""Curvature-gated SAM: climbs along the gradient and its mean change, descends between two sides."""

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_sam.arithmetic import trees
from optax_sam.engine import checks
from optax_sam.engine.aliases import Grads, Params
from optax_sam.engine.assembly import SharpnessAware, sharpness_aware
from optax_sam.engine.hyperparameters import (
    FixedProbability,
    Number,
    Radius,
    Scalar,
    ScalarOrSchedule,
    at_step,
)
from optax_sam.pieces.ascents import to_radius
from optax_sam.pieces.bases import Combination, Direction, Step


class CurvatureState(NamedTuple):
    """State of `WithCurvature`.

    Attributes:
      mean: of the products, a tree like the parameters. Changes when it is renewed.
      perturbed: `int32[]`, how many steps were perturbed.
    """

    mean: Params
    perturbed: jax.Array


@dataclasses.dataclass(frozen=True)
class WithCurvature(Direction):
    """`g + beta h`, `h` the running mean of `H g / ||g||`, renewed in every second perturbed step."""

    beta: ScalarOrSchedule
    decay: Scalar

    asks_anew: ClassVar[bool] = False

    def init(self, params: Params, key: jax.Array) -> CurvatureState:
        del key
        return CurvatureState(trees.memory_like(params), jnp.zeros([], jnp.int32))

    def read(self, state: CurvatureState, step: Step) -> tuple[Grads, CurvatureState]:
        renew = state.perturbed % 2 == 0
        mean = step.oracle.cond(renew, lambda: self._renewed(state, step), lambda: state.mean)
        beta = at_step(self.beta, step.count)
        uphill = trees.map_wide(lambda g, h: g + trees.times(beta, h), step.grads, mean)
        return uphill, CurvatureState(mean, state.perturbed + 1)

    def _renewed(self, state: CurvatureState, step: Step) -> Params:
        unit = trees.divide(optax.tree.conj(step.grads), step.first.norm)
        product = step.oracle.hessian_product(unit)
        decay = jnp.where(state.perturbed == 0, 0.0, self.decay)

        def on_leaf(h, p):
            return trees.times(decay, h) + trees.times(1 - decay, p)

        return trees.saturated(trees.map_wide(on_leaf, state.mean, product))


@dataclasses.dataclass(frozen=True)
class MeanOfBothSides(Combination):
    """`(g' + g_minus) / 2`, `g_minus` the gradient at `w - e`."""

    asks_anew: ClassVar[bool] = False

    def combine(self, step: Step) -> Grads:
        down = trees.map_inexact(jnp.negative, step.perturbation)
        below = step.oracle.evaluate_moved(down).grads

        def on_leaf(p, b):
            return trees.times(0.5, p) + trees.times(0.5, b)

        return trees.map_wide(on_leaf, step.perturbed_grads, below)


def curvature_gated_sam(
    rho: Radius = 0.05, beta: Number = 0.5, decay: FixedProbability = 0.9
) -> SharpnessAware:
    """Curvature-gated SAM: climbs along the gradient and its mean change, descends between two sides.

    The gradient changes most where the loss is curved. That change is remembered, and points uphill with it.

    `e = rho d / ||d||`, `d = g + beta h`; in every second perturbed step, `h = decay h + (1 - decay) H u`,
    `u = g / ||g||`; descent `(grad L(w + e) + grad L(w - e)) / 2`.

    Args:
      rho: radius, in the L2 norm over all parameters; a number or a schedule of the step.
      beta: weight of the mean; a number or a schedule of the step.
      decay: of the mean, from 0 to 1.

    Returns:
      A `SharpnessAware` transformation, to stand first in an `optax.chain`.

    Raises:
      ValueError: `rho` is negative, or `decay` outside [0, 1].

    Cost:
      4 gradients per step; one parameter-sized buffer.

    Guarantees:
      `rho=0` is the base optimizer.

    Example:
      >>> import optax, optax_sam
      >>> tx = optax.chain(optax_sam.curvature_gated_sam(0.05), optax.sgd(0.1, momentum=0.9))

    References:
      Some One, `A Title <https://arxiv.org/abs/0000.00000>`_, 2025.

    Deviations:
      none known.
    """
    checks.number_or_schedule("beta", beta)
    checks.number("decay", decay, low=0, high=1)
    return sharpness_aware(
        to_radius(rho), direction=WithCurvature(beta, decay), combination=MeanOfBothSides()
    )
