"""Reweighted SAM, RW-SAM: examples with large gradients count more in the climb."""

from optax_sam.engine.assembly import SharpnessAware, sharpness_aware
from optax_sam.engine.hyperparameters import Number, PositiveNumber, Radius, Seed
from optax_sam.pieces.ascents import to_radius
from optax_sam.pieces.selections import whole_batch
from optax_sam.pieces.starts import reweighted


def reweighted_sam(
    rho: Radius = 0.05,
    *,
    weight: Number,
    difference_step: PositiveNumber,
    seed: Seed = 0,
) -> SharpnessAware:
    """RW-SAM: climbs for the examples whose gradients are large, descends for all.

    m-sharpness works by counting examples with large gradients more. Weights do the same at the cost of a
    forward pass. The pass estimates each gradient's norm by one random difference.

    `n_i = |l_i(w + delta z) - l_i(w)| / delta`, `z` random signs; `p_i` proportional to
    `exp(weight n_i)`; `g = sum_i p_i grad l_i(w)`; descent `grad L(w + rho g / ||g||)`.

    Args:
      rho: radius, in the L2 norm over all parameters. A number or a schedule of the step.
      weight: of the norms. 0 is SAM. A number or a schedule of the step. No value is published.
      difference_step: `delta`, above 0. A number or a schedule of the step.
      seed: of the signs. An integer, or an integer array.

    Returns:
      A `SharpnessAware` transformation, to stand first in an `optax.chain`. It needs losses of single
      examples.

    Raises:
      ValueError: `rho` is negative, or `difference_step` is not above 0. `grad_fn` comes in place of an
        oracle.

    Cost:
      2 gradients and two forward passes per step; no parameter-sized buffer.

    Guarantees:
      `weight=0` is SAM. `loss` is the plain mean. `grad_norm` is that of the weighted gradient.

    Example:
      >>> import optax, optax_sam
      >>> method = optax_sam.reweighted_sam(0.05, weight=0.5, difference_step=1e-3)
      >>> tx = optax.chain(method, optax.sgd(0.1, momentum=0.9))

    References:
      Haocheng Luo, Mehrtash Harandi, Dinh Phung, Trung Le, `Unveiling m-Sharpness Through the Structure
      of Stochastic Gradient Noise <https://arxiv.org/abs/2509.18001>`_, 2025.

    Deviations:
      Written from a summary. The authors' code was not read.
    """
    start = reweighted(weight, difference_step)
    return sharpness_aware(to_radius(rho), start=start, selection=whole_batch(), seed=seed)
