"""SAM, sharpness-aware minimization."""

from optax_sam.engine.assembly import SharpnessAware, sharpness_aware
from optax_sam.engine.hyperparameters import Radius
from optax_sam.pieces.ascents import to_radius


def sam(rho: Radius = 0.05) -> SharpnessAware:
    """SAM: the gradient at the worst point of a small ball.

    A minimum is flat if no point near it has a high loss. SAM climbs to the highest point of a ball
    around the parameters, to first order, and descends along the gradient there.

    `e = rho g / ||g||`, descent `g' = grad L(w + e)`, with `g = grad L(w)` and the norm over all
    parameters.

    Args:
      rho: radius of the ball, in the L2 norm over all parameters. A number or a schedule of the step.

    Returns:
      A `SharpnessAware` transformation, to stand first in an `optax.chain`.

    Raises:
      ValueError: `rho` is negative.

    Cost:
      2 gradients per step; no parameter-sized buffer between steps.

    Guarantees:
      The perturbation has norm `rho`, and is zero for a zero gradient. `rho=0` is the base optimizer.

    Example:
      >>> import optax, optax_sam
      >>> tx = optax.chain(optax_sam.sam(rho=0.05), optax.sgd(0.1, momentum=0.9))

    References:
      Pierre Foret, Ariel Kleiner, Hossein Mobahi, Behnam Neyshabur, `Sharpness-Aware Minimization for
      Efficiently Improving Generalization <https://arxiv.org/abs/2010.01412>`_, 2020.

    Deviations:
      Under `jit` with a sharded batch the perturbation is that of the global batch. The authors' code
      perturbs per device by default. `per_microbatch` gives every slice of the batch its own perturbation.
      Weight decay behind the transformation is not perturbed. An L2 term inside the loss is perturbed, as in
      the authors' code.
    """
    return sharpness_aware(to_radius(rho))
