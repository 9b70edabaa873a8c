"""Gradient-norm penalty, GNP."""

from optax_sam.engine.assembly import SharpnessAware, sharpness_aware
from optax_sam.engine.hyperparameters import Number, Radius
from optax_sam.pieces.ascents import to_radius
from optax_sam.pieces.combinations import mix


def gradient_norm_penalty(rho: Radius = 0.1, alpha: Number = 0.8) -> SharpnessAware:
    """GNP: a penalty on the norm of the gradient, by one more gradient nearby.

    The gradient of `||grad L||` is a Hessian-vector product along the gradient. The difference of two
    gradients gives it.

    `g' = grad L(w + rho g / ||g||)`; descent `(1 - alpha) g + alpha g'`, to first order the gradient
    of `L + alpha rho ||grad L||`.

    Args:
      rho: distance of the second gradient, in the L2 norm. A number or a schedule of the step.
      alpha: weight of the second gradient. A number or a schedule of the step.

    Returns:
      A `SharpnessAware` transformation, to stand first in an `optax.chain`.

    Raises:
      ValueError: `rho` is negative.

    Cost:
      2 gradients per step; no parameter-sized buffer.

    Guarantees:
      `alpha=1` is SAM, `alpha=0` the base optimizer.

    Example:
      >>> import optax, optax_sam
      >>> tx = optax.chain(optax_sam.gradient_norm_penalty(0.1), optax.sgd(0.1, momentum=0.9))

    References:
      Yang Zhao, Hao Zhang, Xiuyuan Hu, `Penalizing Gradient Norm for Efficiently Improving
      Generalization in Deep Learning <https://arxiv.org/abs/2202.03599>`_, 2022; code
      github.com/zhaoyang-0204/gnp.

    Deviations:
      By default the authors' code mixes with `g / ||g||`. The formula of the paper is followed here.
    """
    return sharpness_aware(to_radius(rho), combination=mix(alpha))
