"""K-SAM: SAM on the examples with the highest losses."""

from optax_sam.engine.assembly import SharpnessAware, sharpness_aware
from optax_sam.engine.hyperparameters import Count, Fraction, Radius
from optax_sam.pieces.ascents import to_radius
from optax_sam.pieces.starts import on_highest_loss


def ksam(rho: Radius = 0.05, fraction: Fraction = 0.5, strata: Count = 1) -> SharpnessAware:
    """K-SAM: both gradients on the examples with the highest losses alone.

    Few examples carry most of a gradient late in training. A forward pass tells which. SAM on those costs
    about what SGD costs on all.

    `S` the `K = int(fraction B)` examples of largest `l_i(w)`, `g = grad mean_S l_i(w)`; descent
    `grad mean_S l_i(w + rho g / ||g||)`.

    Args:
      rho: radius, in the L2 norm over all parameters. A number or a schedule of the step.
      fraction: of the batch, above 0. 1 is all of it, without the forward pass.
      strata: contiguous parts of the batch from which examples are chosen separately. A multiple of the
        number of devices keeps every example on its device.

    Returns:
      A `SharpnessAware` transformation, to stand first in an `optax.chain`. It needs losses of single
      examples.

    Raises:
      ValueError: `fraction` is outside (0, 1], or leaves no example. `strata` does not divide the batch.
      TypeError: `fraction` or `strata` is an array.

    Cost:
      2 fraction gradients and one forward pass per step; no parameter-sized buffer.

    Guarantees:
      `fraction=1` is SAM. Padding is chosen last. `loss` is the mean over the chosen examples.

    Example:
      >>> import optax, optax_sam
      >>> tx = optax.chain(optax_sam.ksam(0.05, fraction=0.5), optax.sgd(0.1, momentum=0.9))

    References:
      Renkun Ni, Ping-yeh Chiang, Jonas Geiping, Micah Goldblum, Andrew Gordon Wilson, Tom Goldstein,
      `K-SAM: Sharpness-Aware Minimization at the Speed of SGD <https://arxiv.org/abs/2210.12864>`_,
      2022.

    Deviations:
      `fraction=0.5` is inferred from the speed that the abstract claims.
    """
    return sharpness_aware(to_radius(rho), start=on_highest_loss(fraction, strata))
