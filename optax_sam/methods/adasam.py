"""AdaSAM: SAM with AMSGrad behind it."""

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_sam.arithmetic import trees
from optax_sam.engine import checks
from optax_sam.engine.assembly import SharpnessAware
from optax_sam.engine.hyperparameters import (
    FixedPositive,
    FixedProbability,
    NotNegative,
    Radius,
    Scalar,
    scaled,
)
from optax_sam.methods.sam import sam
from optax_sam.pieces.ascents import chained, in_proportion
from optax_sam.pieces.bases import Ascent, transformation
from optax_sam.wrappers.with_base import followed_by


class ScaleByAdaSAMState(NamedTuple):
    """State of `scale_by_adasam`: trees like the parameters, which change in every step that is finite.

    Attributes:
      first_moment: `m`.
      second_moment: `v`.
      maximum: the square root of the largest `v` of all steps, at first `epsilon`.
    """

    first_moment: Any
    second_moment: Any
    maximum: Any


def scale_by_adasam(
    b1: FixedProbability = 0.9, b2: FixedProbability = 0.999, epsilon: FixedPositive = 1e-8
) -> optax.GradientTransformationExtraArgs:
    """`m / sqrt(max v)`, the maximum over all steps started at `epsilon^2`: AMSGrad as AdaSAM has it.

    `m = b1 m + (1 - b1) g`, `v = b2 v + (1 - b2) |g|^2`, without correction of the bias.
    `optax.scale_by_amsgrad` adds a number to the denominator. This one starts the maximum above zero.

    Args:
      b1: decay of the first moment, from 0 to 1.
      b2: decay of the second moment, from 0 to 1.
      epsilon: above 0. The square root of the first maximum.
    """
    checks.long_decay("b1", b1)
    checks.long_decay("b2", b2)
    checks.positive("epsilon", epsilon)
    return transformation(ScaleByAdaSAM(b1, b2, epsilon))


@dataclasses.dataclass(frozen=True)
class ScaleByAdaSAM(Ascent):
    """See `scale_by_adasam`."""

    b1: Scalar
    b2: Scalar
    epsilon: Scalar

    asks_anew: ClassVar[bool] = False

    def init(self, params: Any) -> ScaleByAdaSAMState:
        zeros = jax.tree.map(lambda x: trees.zeros_like(x, jnp.result_type(x)), params)
        real = trees.map_inexact(lambda x: jnp.real(trees.widen(x)), zeros)
        floor = trees.map_inexact(lambda x: jnp.full_like(x, self.epsilon), real)
        # The square of 1e-8 is kept as its root: it would vanish in half precision and lose digits.
        return ScaleByAdaSAMState(zeros, real, floor)

    def update(self, updates: Any, state: ScaleByAdaSAMState, params: Any = None, **extra_args: Any):
        del params, extra_args

        def first(m, g):
            return trees.times(self.b1, m) + trees.times(1 - jnp.asarray(self.b1), g)

        def second(v, g):
            square = jnp.real(g * jnp.conj(g))
            return trees.times(self.b2, v) + trees.times(1 - jnp.asarray(self.b2), square)

        moment = trees.map_wide(first, state.first_moment, updates)
        square = trees.map_inexact(second, state.second_moment, trees.widen(updates))
        root = trees.map_inexact(lambda r, v: jnp.maximum(r, jnp.sqrt(v)), state.maximum, square)
        scaled = trees.map_wide(lambda m, r: m / r.astype(m.dtype), moment, root)
        new = trees.where(jnp.isfinite(trees.norm(updates)), ScaleByAdaSAMState(moment, square, root), state)
        return trees.cast_like(scaled, updates), new


@dataclasses.dataclass(frozen=True)
class Conjugated(Ascent):
    """JAX's gradient of a complex leaf is the conjugate of the uphill direction: updates are turned."""

    asks_anew: ClassVar[bool] = False

    def update(self, updates: Any, state: Any, params: Any = None, **extra_args: Any) -> tuple[Any, Any]:
        del params, extra_args
        return trees.conjugate(updates), state


def adasam(
    learning_rate: NotNegative,
    rho: Radius = 0.05,
    b1: FixedProbability = 0.9,
    b2: FixedProbability = 0.999,
    epsilon: FixedPositive = 1e-8,
) -> SharpnessAware:
    """AdaSAM: SAM's gradient in AMSGrad, a whole optimizer.

    The maximum of the second moment starts above zero, which keeps the first steps small. The authors need
    this for their proof of linear speed-up.

    `g' = grad L(w + rho g / ||g||)`; `m = b1 m + (1 - b1) g'`; `v = b2 v + (1 - b2) g'^2`;
    `v_max = max(v_max, v)`, at first `epsilon^2`; `w = w - learning_rate m / sqrt(v_max)`.

    Args:
      learning_rate: a number, or a schedule of the step.
      rho: radius, in the L2 norm over all parameters. A number or a schedule of the step.
      b1: decay of the first moment, from 0 to 1.
      b2: decay of the second moment, from 0 to 1.
      epsilon: above 0.

    Returns:
      A `SharpnessAware` that is a whole optimizer. Its updates are added to the parameters.

    Raises:
      ValueError: a number is outside its range.

    Cost:
      2 gradients per step; three parameter-sized buffers.

    Guarantees:
      It is `optax.chain(sam(rho), scale_by_adasam(b1, b2, epsilon), scale_by_learning_rate(...))`. To skip
      steps that are not finite, write that chain with `optax.apply_if_finite` around what follows `sam`.
      The updates of complex leaves are the conjugates of that chain's, and so go downhill.

    Example:
      >>> import optax_sam
      >>> tx = optax_sam.adasam(1e-3, rho=0.05)

    References:
      Hao Sun, Li Shen, Qihuang Zhong, Liang Ding, Shixiang Chen, Jingwei Sun, Jing Li, Guangzhong Sun,
      Dacheng Tao, `AdaSAM: Boosting Sharpness-Aware Minimization with Adaptive Learning Rate and
      Momentum for Training Deep Neural Networks <https://arxiv.org/abs/2303.00565>`_, 2023.

    Deviations:
      The decays and `epsilon` are Adam's usual ones. Those of the paper could not be found.
    """
    checks.number_or_schedule("learning_rate", learning_rate, low=0)
    descent = in_proportion(scaled(learning_rate, -1))
    return followed_by(
        sam(rho), chained(scale_by_adasam(b1, b2, epsilon), descent, transformation(Conjugated()))
    )
