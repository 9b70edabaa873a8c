"""ZSharp, SAM whose perturbation keeps the entries with a large z-score."""

from optax_sam.engine.assembly import SharpnessAware, sharpness_aware
from optax_sam.engine.hyperparameters import FixedProbability, Radius
from optax_sam.pieces.ascents import chained, keep_outliers, to_radius


def zsharp(rho: Radius = 0.05, quantile: FixedProbability = 0.95) -> SharpnessAware:
    """ZSharp: perturbs along the entries of the gradient that stand out in their layer.

    Most entries of a gradient are small, and noise. The perturbation follows only those whose z-score is
    large in their layer.

    `e = rho m g / ||m g||`, the norm over all parameters; descent `g' = grad L(w + e)`. `m` keeps the
    entries with `|z| > q`, `z = (g - mean(g)) / std(g)` over the leaf, and `q` the quantile of its `|z|`.
    Leaves with one axis or none are kept whole.

    Args:
      rho: radius, in the L2 norm over all parameters. A number or a schedule of the step.
      quantile: the part of the entries of a leaf that is not perturbed, from 0 to 1.

    Returns:
      A `SharpnessAware` transformation, to stand first in an `optax.chain`.

    Raises:
      ValueError: `rho` is negative, or `quantile` outside [0, 1].

    Cost:
      2 gradients per step; no parameter-sized buffer. The entries of every leaf are sorted.

    Guarantees:
      The perturbation has norm `rho`, and is zero where nothing is kept. `rho=0` is the base optimizer.

    Example:
      >>> import optax, optax_sam
      >>> tx = optax.chain(optax_sam.zsharp(0.05, quantile=0.95), optax.sgd(0.1, momentum=0.9))

    References:
      Vincent-Daniel Yun, `Sharpness-Aware Minimization with Z-Score Gradient Filtering
      <https://arxiv.org/abs/2505.02369>`_, 2025.

    Deviations:
      The authors' code gives each tensor a perturbation of norm `rho`. Here the norm is over all parameters.
    """
    return sharpness_aware(chained(keep_outliers(quantile), to_radius(rho)))
