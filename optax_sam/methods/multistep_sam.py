"""Multi-step SAM: several short steps uphill."""

from optax_sam.engine import checks
from optax_sam.engine.assembly import SharpnessAware, sharpness_aware
from optax_sam.engine.hyperparameters import Count, Radius, scaled
from optax_sam.pieces.ascents import repeated, to_radius


def multistep_sam(rho: Radius = 0.05, num_steps: Count = 2) -> SharpnessAware:
    """Multi-step SAM: climbs in several steps, each along the gradient where it stands.

    One step finds the worst point of the ball to first order only. More steps find a worse one. As far as is
    known they do not generalize better.

    `e_1 = (rho / n) g / ||g||`, `e_{k+1} = e_k + (rho / n) g_k / ||g_k||`, `g_k = grad L(w + e_k)`;
    descent `grad L(w + e_n)`.

    Args:
      rho: length of the whole way, in the L2 norm. A number or a schedule of the step.
      num_steps: `n`, 1 or more.

    Returns:
      A `SharpnessAware` transformation, to stand first in an `optax.chain`.

    Raises:
      ValueError: `rho` is negative, or `num_steps` below 1.
      TypeError: `num_steps` is no Python integer.

    Cost:
      num_steps + 1 gradients per step; no parameter-sized buffer.

    Guarantees:
      `num_steps=1` is SAM. The perturbation is no longer than `rho`.

    Example:
      >>> import optax, optax_sam
      >>> tx = optax.chain(optax_sam.multistep_sam(0.05, 3), optax.sgd(0.1, momentum=0.9))

    References:
      Maksym Andriushchenko, Nicolas Flammarion, `Towards Understanding Sharpness-Aware Minimization
      <https://arxiv.org/abs/2206.06232>`_, 2022.

    Deviations:
      None known.
    """
    checks.number_or_schedule("rho", rho, low=0)
    checks.integer("num_steps", num_steps, low=1)
    return sharpness_aware(repeated(to_radius(scaled(rho, 1 / num_steps)), num_steps))
