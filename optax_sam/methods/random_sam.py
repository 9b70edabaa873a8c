"""R-SAM, random SAM: noise, then SAM from there."""

from optax_sam.engine.assembly import SharpnessAware, sharpness_aware
from optax_sam.engine.hyperparameters import Radius, Seed
from optax_sam.pieces.ascents import to_radius
from optax_sam.pieces.starts import at_random_per_filter


def random_sam(rho: Radius = 0.05, noise_scale: Radius = 0.1, seed: Seed = 0) -> SharpnessAware:
    """R-SAM: SAM from a random point nearby, where the gradient is smoother.

    The loss may be rough, so that its gradient at the parameters points anywhere. Noise smooths it first.

    `n_f = noise_scale ||w_f|| z / ||z||`, `z ~ N(0, I)`, in each output filter `f`;
    `e = n + rho g / ||g||`, `g = grad L(w + n)`; descent `grad L(w + e)`.

    Args:
      rho: radius of the climb, in the L2 norm over all parameters. A number or a schedule of the step.
      noise_scale: of the noise, in parts of the filter's norm. A number or a schedule of the step.
      seed: of the noise. An integer, or an integer array.

    Returns:
      A `SharpnessAware` transformation, to stand first in an `optax.chain`. It needs an oracle.

    Raises:
      ValueError: `rho` or `noise_scale` is negative. `grad_fn` comes in place of an oracle.

    Cost:
      2 gradients per step; no parameter-sized buffer.

    Guarantees:
      `noise_scale=0` is SAM. `loss` and `perturbation_norm` are seen from the random point.

    Example:
      >>> import optax, optax_sam
      >>> tx = optax.chain(optax_sam.random_sam(0.05), optax.sgd(0.1, momentum=0.9))

    References:
      Yong Liu, Siqi Mai, Minhao Cheng, Xiangning Chen, Cho-Jui Hsieh, Yang You, `Random Sharpness-Aware
      Minimization <https://openreview.net/forum?id=htUvh7xPoa>`_, NeurIPS 2022.

    Deviations:
      Noise is scaled filter by filter, as the abstract says. Code by others scales it by tensor.
    """
    return sharpness_aware(to_radius(rho), start=at_random_per_filter(noise_scale), seed=seed)
