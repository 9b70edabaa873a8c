"""Fisher SAM: the ball of information geometry."""

from optax_sam.engine.assembly import SharpnessAware, sharpness_aware
from optax_sam.engine.hyperparameters import FixedNotNegative, Radius
from optax_sam.pieces.ascents import to_radius
from optax_sam.pieces.geometries import fisher


def fisher_sam(rho: Radius = 0.1, eta: FixedNotNegative = 1.0) -> SharpnessAware:
    """Fisher SAM: SAM in a ball measured by the change of the model's predictions.

    Equal steps in parameters change predictions unequally. The Fisher information measures this. The squared
    gradient of the batch estimates its diagonal.

    `u = g / (1 + eta g^2)`, `e = rho u / sqrt(<g, u>)`; descent `g' = grad L(w + e)`.

    Args:
      rho: radius in the Fisher norm. A number or a schedule of the step.
      eta: 0 or more. What it does depends on the scale of the gradient.

    Returns:
      A `SharpnessAware` transformation, to stand first in an `optax.chain`.

    Raises:
      ValueError: `rho` or `eta` is negative.

    Cost:
      2 gradients per step; no parameter-sized buffer.

    Guarantees:
      `eta=0` is SAM.

    Example:
      >>> import optax, optax_sam
      >>> tx = optax.chain(optax_sam.fisher_sam(0.1), optax.sgd(0.1, momentum=0.9))

    References:
      Minyoung Kim, Da Li, Shell Xu Hu, Timothy M. Hospedales, `Fisher SAM: Information Geometry and
      Sharpness Aware Minimisation <https://arxiv.org/abs/2206.04920>`_, 2022.

    Deviations:
      Some re-implementations divide by `||u||`. The norm of the paper is followed here.
    """
    return sharpness_aware(to_radius(rho, fisher(eta)))
