"""USAM, unnormalized SAM."""

from optax_sam.engine import checks
from optax_sam.engine.assembly import SharpnessAware, sharpness_aware
from optax_sam.engine.hyperparameters import Number
from optax_sam.pieces.ascents import in_proportion


def usam(rho: Number = 0.05) -> SharpnessAware:
    """USAM: a perturbation as long as the gradient says.

    Without the normalization the perturbation shrinks with the gradient, and the theory gets simpler.

    `e = rho g`; descent `g' = grad L(w + e)`.

    Args:
      rho: length of the perturbation per length of the gradient. A number or a schedule of the step.

    Returns:
      A `SharpnessAware` transformation, to stand first in an `optax.chain`.

    Cost:
      2 gradients per step; no parameter-sized buffer.

    Guarantees:
      `rho=0` is the base optimizer. A negative `rho` looks ahead downhill, as `extrapolation` does.

    Example:
      >>> import optax, optax_sam
      >>> tx = optax.chain(optax_sam.usam(0.05), optax.sgd(0.1, momentum=0.9))

    References:
      Maksym Andriushchenko, Nicolas Flammarion, `Towards Understanding Sharpness-Aware Minimization
      <https://arxiv.org/abs/2206.06232>`_, 2022.

    Deviations:
      None known.
    """
    checks.number_or_schedule("rho", rho)
    return sharpness_aware(in_proportion(rho))
