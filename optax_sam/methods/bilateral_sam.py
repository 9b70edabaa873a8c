"""Bilateral SAM, BSAM: flat above and below."""

from optax_sam.engine.assembly import SharpnessAware, sharpness_aware
from optax_sam.engine.hyperparameters import Radius
from optax_sam.pieces.ascents import to_radius
from optax_sam.pieces.combinations import bilateral


def bilateral_sam(rho: Radius = 0.05, lower_rho: Radius = 0.05) -> SharpnessAware:
    """Bilateral SAM: the loss should neither rise nor fall steeply around the parameters.

    SAM looks at the highest point of the neighbourhood only. A point far below is a sign of a steep slope
    too. Its gradient is taken away.

    `g+ = grad L(w + rho g / ||g||)`, `g- = grad L(w - lower_rho g / ||g||)`; descent
    `g+ + g - (||g+|| / ||g-||) g-`.

    Args:
      rho: radius of the climb, in the L2 norm over all parameters. A number or a schedule of the step.
      lower_rho: radius of the way down, in the same norm. A number or a schedule of the step. The authors let
        it follow the learning rate to 0.

    Returns:
      A `SharpnessAware` transformation, to stand first in an `optax.chain`.

    Raises:
      ValueError: a radius is negative.

    Cost:
      3 gradients per step; no parameter-sized buffer.

    Guarantees:
      `lower_rho=0` descends along `g' + (1 - ||g'|| / ||g||) g`. With `rho=0` too, it descends along `g`.

    Example:
      >>> import optax, optax_sam
      >>> lower = optax.linear_schedule(0.05, 0.0, 1000)
      >>> tx = optax.chain(optax_sam.bilateral_sam(0.05, lower), optax.sgd(0.05, momentum=0.9))

    References:
      Jiaxin Deng, Junbiao Pang, Baochang Zhang, Qingming Huang, `Bilateral Sharpness-Aware Minimization
      for Flatter Minima <https://arxiv.org/abs/2409.13173>`_, 2024; code github.com/ajiaaa/BSAM.

    Deviations:
      The authors' code has two names for one tensor, and so steps from the lower point instead of from `w`.
      The equations are followed here.
    """
    return sharpness_aware(to_radius(rho), combination=bilateral(lower_rho))
