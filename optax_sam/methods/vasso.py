"""VaSSO, variance-suppressed SAM."""

from optax_sam.engine import checks
from optax_sam.engine.assembly import SharpnessAware, sharpness_aware
from optax_sam.engine.hyperparameters import FixedProbability, Radius
from optax_sam.pieces.ascents import to_radius
from optax_sam.pieces.directions import running_mean


def vasso(rho: Radius = 0.05, theta: FixedProbability = 0.9) -> SharpnessAware:
    """VaSSO: climbs along a running mean of the gradients, which is less noisy than one batch's.

    The gradient of one batch is a noisy guess of where the loss of all data rises. A running mean has
    less variance, and a steadier adversary.

    `d = (1 - theta) d + theta g`, at first `g`; `e = rho d / ||d||`; descent `g' = grad L(w + e)`.

    Args:
      rho: radius, in the L2 norm over all parameters. A number or a schedule of the step.
      theta: weight of the present gradient, from 0 to 1.

    Returns:
      A `SharpnessAware` transformation, to stand first in an `optax.chain`.

    Raises:
      ValueError: `rho` is negative, or `theta` outside [0, 1].

    Cost:
      2 gradients per step; one parameter-sized buffer.

    Guarantees:
      `theta=1` is SAM.

    Example:
      >>> import optax, optax_sam
      >>> tx = optax.chain(optax_sam.vasso(0.1, theta=0.4), optax.sgd(0.1, momentum=0.9))

    References:
      Bingcong Li, Georgios B. Giannakis, `Enhancing Sharpness-Aware Optimization Through Variance
      Suppression <https://arxiv.org/abs/2309.15639>`_, 2023; code github.com/BingcongLi/VaSSO.

    Deviations:
      None known. `theta=0.9` is the code's default. The paper has 0.4 and 0.9.
    """
    checks.number("theta", theta, low=0, high=1)
    return sharpness_aware(to_radius(rho), direction=running_mean(1 - theta))
