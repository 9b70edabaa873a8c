"""GSAM, surrogate gap guided SAM."""

from optax_sam.engine.assembly import SharpnessAware, sharpness_aware
from optax_sam.engine.hyperparameters import Number, Radius
from optax_sam.pieces.ascents import to_radius
from optax_sam.pieces.combinations import surrogate_gap


def gsam(rho: Radius = 0.05, alpha: Number = 0.4, minimize_clean: bool = False) -> SharpnessAware:
    """GSAM: SAM that also closes the gap between the perturbed loss and the loss.

    A low perturbed loss alone does not make a flat region. The gap between both losses does. GSAM lowers it
    by a step against the part of the clean gradient that is orthogonal to the perturbed one. The perturbed
    loss does not rise by this.

    `g' = grad L(w + rho g / ||g||)`, `g_o = g - (<g, g'> / ||g'||^2) g'`; descent `g' - alpha g_o`.

    Args:
      rho: radius, in the L2 norm over all parameters. A number or a schedule of the step. The authors
        let it follow the learning rate, `rho_min + (rho_max - rho_min) (lr - lr_min) / (lr_max - lr_min)`.
      alpha: a number, or a schedule of the step.
      minimize_clean: descends along `g + alpha g'_o` instead, with `g'_o` the part of `g'` orthogonal to `g`.
        This is steadier.

    Returns:
      A `SharpnessAware` transformation, to stand first in an `optax.chain`.

    Raises:
      ValueError: `rho` is negative.
      TypeError: `minimize_clean` is no Python bool.

    Cost:
      2 gradients per step; no parameter-sized buffer.

    Guarantees:
      `alpha=0` is SAM (with `minimize_clean`, the base optimizer).

    Example:
      >>> import optax, optax_sam
      >>> learning_rate = optax.cosine_decay_schedule(0.1, 1000)
      >>> rho = lambda step: 0.02 + 0.02 * learning_rate(step) / 0.1
      >>> tx = optax.chain(optax_sam.gsam(rho, alpha=0.01), optax.sgd(learning_rate, momentum=0.9))

    References:
      Juntang Zhuang, Boqing Gong, Liangzhe Yuan, Yin Cui, Hartwig Adam, Nicha Dvornek, Sekhar
      Tatikonda, James Duncan, Ting Liu, `Surrogate Gap Minimization Improves Sharpness-Aware Training
      <https://arxiv.org/abs/2203.08065>`_, 2022; code github.com/google-research/big_vision.

    Deviations:
      On several devices the authors decompose per device, then average. Write `per_device(gsam())` for that.
    """
    return sharpness_aware(to_radius(rho), combination=surrogate_gap(alpha, minimize_clean))
