"""SAM in the spectral norm of each matrix."""

from optax_sam.engine.assembly import SharpnessAware, sharpness_aware
from optax_sam.engine.hyperparameters import Radius
from optax_sam.pieces.ascents import to_radius
from optax_sam.pieces.geometries import spectral


def spectral_sam(rho: Radius = 0.01, outputs_first: bool = False) -> SharpnessAware:
    """Spectral SAM: the steepest perturbation of each matrix in its spectral norm, Muon's step uphill.

    The largest singular value measures what a layer's perturbation does to its output. In that norm the
    perturbation follows all singular directions of the gradient alike, not the strongest alone.

    `e = rho sqrt(fan_out / fan_in) U V^T` in each leaf, `g = U S V^T`; descent `g' = grad L(w + e)`. Vectors
    have `fan_in = 1`: there `e = rho sqrt(n) g / ||g||`.

    Args:
      rho: radius of a layer: the most by which the entries of its output move, in proportion to those of its
        input. A number or a schedule of the step.
      outputs_first: whether the first axis of a kernel counts its outputs, as in Equinox. Otherwise the last
        axis does, as in Flax and Haiku.

    Returns:
      A `SharpnessAware` transformation, to stand first in an `optax.chain`.

    Raises:
      ValueError: `rho` is negative.
      TypeError: `outputs_first` is no Python bool.

    Cost:
      2 gradients per step; no parameter-sized buffer. Five Newton-Schulz steps for each matrix: of `m` by
      `n`, `m <= n`, `5 (4 m^2 n + 2 m^3)` FLOPs. In a dense layer the two gradients of `5 m / 3` to `5 m / 2`
      examples cost as much.

    Guarantees:
      The perturbation of each leaf has the spectral norm `rho sqrt(fan_out / fan_in)`, within a factor of 0.6
      to 1.2, and is zero for a zero gradient. `rho=0` is the base optimizer.

    Example:
      >>> import optax, optax_sam
      >>> tx = optax.chain(optax_sam.spectral_sam(0.01), optax.sgd(0.1, momentum=0.9))

    References:
      Jeremy Bernstein, Laker Newhouse, `Old Optimizer, New Norm: An Anthology
      <https://arxiv.org/abs/2409.20325>`_, 2024;
      Moritz Haas, Jin Xu, Volkan Cevher, Leena Chennuru Vankadara, `muP^2: Effective Sharpness Aware
      Minimization Requires Layerwise Perturbation Scaling <https://arxiv.org/abs/2411.00075>`_, 2024.

    Limits:
      A matrix that is split over devices is gathered on each of them. Kernels with several output axes,
      transposed convolutions, stacked layers and look-up tables: see `geometries.fan_scaled`.

    Deviations:
      No paper has this method. The step is Muon's. The scale of the layers is that of `fan_scaled_sam`, of
      whose paper only the abstract was read.
    """
    return sharpness_aware(to_radius(rho, spectral(outputs_first)))
