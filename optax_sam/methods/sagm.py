"""SAGM, sharpness-aware gradient matching."""

from optax_sam.engine.assembly import SharpnessAware, sharpness_aware
from optax_sam.engine.hyperparameters import Number, Radius
from optax_sam.pieces.ascents import to_radius_less
from optax_sam.pieces.combinations import plus


def sagm(rho: Radius = 0.05, alpha: Number = 0.001) -> SharpnessAware:
    """SAGM: the loss, the perturbed loss and the gap between them, all at once.

    A small gap helps only where both losses are small. It closes where their gradients have the same
    direction. A perturbation that is shortened in proportion to the gradient asks for all three.

    `e = (rho / ||g|| - alpha) g`, the norm over all parameters; descent `g + g'`, `g' = grad L(w + e)`.

    Args:
      rho: radius, in the L2 norm over all parameters. A number or a schedule of the step.
      alpha: part of the gradient that is taken from the perturbation. A number or a schedule of the step.

    Returns:
      A `SharpnessAware` transformation, to stand first in an `optax.chain`.

    Raises:
      ValueError: `rho` is negative.

    Cost:
      2 gradients per step; no parameter-sized buffer.

    Guarantees:
      `alpha=0` perturbs as SAM does. `rho=0` with `alpha=0` is the base optimizer with twice the gradient.

    Example:
      >>> import optax, optax_sam
      >>> tx = optax.chain(optax_sam.sagm(0.05, alpha=0.001), optax.adam(5e-5))

    References:
      Pengfei Wang, Zhaoxiang Zhang, Zhen Lei, Lei Zhang, `Sharpness-Aware Gradient Matching for Domain
      Generalization <https://arxiv.org/abs/2303.10353>`_, 2023; code github.com/Wang-pengfei/SAGM.

    Deviations:
      The authors' code descends along half of the sum. Halve the learning rate if the base optimizer reads
      the length of the gradient.
    """
    return sharpness_aware(to_radius_less(rho, alpha), combination=plus(1.0))
