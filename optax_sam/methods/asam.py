"""ASAM, adaptive sharpness-aware minimization."""

from optax_sam.engine.assembly import SharpnessAware, sharpness_aware
from optax_sam.engine.hyperparameters import FixedNotNegative, Radius
from optax_sam.pieces.ascents import to_radius
from optax_sam.pieces.geometries import elementwise


def asam(rho: Radius = 0.5, eta: FixedNotNegative = 0.01) -> SharpnessAware:
    """ASAM: SAM in a ball whose axes grow with the weights.

    Rescaling the weights of two layers against each other changes SAM's sharpness, but not the function. ASAM
    measures the radius relative to the weights, so that its sharpness does not change.

    `e = rho T^2 g / ||T g||` with `T = |w| + eta` (`T = 1` for biases), descent `g' = grad L(w + e)`.

    Args:
      rho: radius, in the norm `||T^-1 e||`. A number or a schedule of the step. Take about ten times SAM's.
      eta: 0 or more, in the units of the weights. It lets weights near zero move too.

    Returns:
      A `SharpnessAware` transformation, to stand first in an `optax.chain`.

    Raises:
      ValueError: `rho` or `eta` is negative.

    Cost:
      2 gradients per step; no parameter-sized buffer between steps.

    Guarantees:
      The perturbation has radius `rho` in its norm, and is zero for a zero gradient. `rho=0` is the
      base optimizer.

    Example:
      >>> import optax, optax_sam
      >>> tx = optax.chain(optax_sam.asam(rho=0.5), optax.sgd(0.1, momentum=0.9))

    References:
      Jungmin Kwon, Jeongseop Kim, Hyunseo Park, In Kwon Choi, `ASAM: Adaptive Sharpness-Aware
      Minimization for Scale-Invariant Learning of Deep Neural Networks
      <https://arxiv.org/abs/2102.11600>`_, 2021.

    Deviations:
      The authors' code scales the parameters whose name contains "weight". Flax has other names. Here a
      parameter is scaled unless its own name (not that of a box around it) contains "bias", or is "b", as in
      Haiku. This is the same set, except `offset` and `beta`, which are scaled here. A widespread PyTorch
      package scales biases too and has no `eta`. Its radii are not comparable.
    """
    return sharpness_aware(to_radius(rho, elementwise(eta)))
