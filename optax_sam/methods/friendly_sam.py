"""Friendly SAM, F-SAM: perturbing along what is particular to the batch."""

from optax_sam.engine.assembly import SharpnessAware, sharpness_aware
from optax_sam.engine.hyperparameters import FixedNumber, FixedProbability, Radius
from optax_sam.pieces.ascents import to_radius
from optax_sam.pieces.directions import batch_specific


def friendly_sam(
    rho: Radius = 0.1, sigma: FixedNumber = 1.0, decay: FixedProbability = 0.9
) -> SharpnessAware:
    """Friendly SAM: the perturbation without the part that all batches share.

    Climbing along the gradient of the full data set raises the loss of all batches, and hurts. The mean of
    the earlier gradients stands for that gradient, and is taken away. The noise of the batch remains.

    `d = g - sigma m`, then `m = decay m + (1 - decay) g`; `e = rho d / ||d||`; descent
    `g' = grad L(w + e)`. In the first step `d = m = g`.

    Args:
      rho: radius, in the L2 norm over all parameters. A number or a schedule of the step.
      sigma: how much of the mean is taken away.
      decay: of the mean, from 0 to 1.

    Returns:
      A `SharpnessAware` transformation, to stand first in an `optax.chain`.

    Raises:
      ValueError: `rho` is negative, or `decay` outside [0, 1].

    Cost:
      2 gradients per step; one parameter-sized buffer.

    Guarantees:
      `sigma=0` is SAM.

    Example:
      >>> import optax, optax_sam
      >>> tx = optax.chain(optax_sam.friendly_sam(0.1), optax.sgd(0.05, momentum=0.9))

    References:
      Tao Li, Pan Zhou, Zhengbao He, Xinwen Cheng, Xiaolin Huang, `Friendly Sharpness-Aware Minimization
      <https://arxiv.org/abs/2403.12350>`_, 2024; code github.com/nblt/F-SAM.

    Deviations:
      `d` uses the mean before this step's gradient, as in the authors' code. In the paper it uses the mean
      after. For `sigma=1` both directions are the same. Their scripts use `decay` 0.95 and 0.6.
    """
    return sharpness_aware(to_radius(rho), direction=batch_specific(sigma, decay))
