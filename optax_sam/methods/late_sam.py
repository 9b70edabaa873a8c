"""Late SAM: SAM in the last part of training alone."""

from optax_sam.engine.assembly import SharpnessAware, sharpness_aware
from optax_sam.engine.hyperparameters import FixedNotNegative, Radius
from optax_sam.pieces.ascents import to_radius
from optax_sam.pieces.gates import after


def late_sam(start_step: FixedNotNegative, rho: Radius = 0.05) -> SharpnessAware:
    """Late SAM: plain steps first, SAM from `start_step` on.

    SAM leaves sharp minima fast, whenever it begins. A few epochs of SAM at the end find nearly what SAM
    finds in all epochs.

    Descent `grad L(w)` in steps `t < start_step`, then `grad L(w + rho g / ||g||)`.

    Args:
      start_step: the first perturbed step, counted from 0.
      rho: radius, in the L2 norm over all parameters. A number or a schedule of the step.

    Returns:
      A `SharpnessAware` transformation, to stand first in an `optax.chain`.

    Raises:
      ValueError: `start_step` or `rho` is negative, or `start_step` is no whole number of steps, such as 0.8.

    Cost:
      1 gradient per step, then 2; no parameter-sized buffer.

    Guarantees:
      `start_step=0` is SAM.

    Example:
      >>> import optax, optax_sam
      >>> tx = optax.chain(optax_sam.late_sam(start_step=9_000), optax.sgd(0.1, momentum=0.9))

    References:
      Zhanpeng Zhou, Mingze Wang, Yuchen Mao, Bingrui Li, Junchi Yan, `Sharpness-Aware Minimization
      Efficiently Selects Flatter Minima Late in Training <https://arxiv.org/abs/2410.10373>`_, 2024.

    Deviations:
      None known. You choose how late it starts.
    """
    return sharpness_aware(to_radius(rho), gate=after(start_step))
