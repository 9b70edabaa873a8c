"""WSAM, weighted sharpness as a regularization term."""

from optax_sam.engine import checks
from optax_sam.engine.assembly import SharpnessAware, sharpness_aware
from optax_sam.engine.hyperparameters import FixedBelowOne, Radius
from optax_sam.pieces.ascents import to_radius
from optax_sam.pieces.combinations import mix


def wsam(rho: Radius = 0.05, gamma: FixedBelowOne = 0.9) -> SharpnessAware:
    """WSAM: sharpness as a regularizer with a weight of its own.

    SAM minimizes loss plus sharpness, one to one. Here the sharpness has a weight, which may be larger.

    `L + a (L(w + e) - L)`, `a = gamma / (1 - gamma)`, `e = rho g / ||g||`; descent
    `(1 - a) g + a g'`, `g' = grad L(w + e)`. `decoupled(wsam(...), base, learning_rate)` is the form
    that the authors prefer, in which the sharpness part `a (g' - g)` bypasses the base optimizer.

    Args:
      rho: radius, in the L2 norm over all parameters. A number or a schedule of the step.
      gamma: from 0 to below 1: 0 is the base optimizer, 0.5 is SAM, the authors' range 0.8 to 0.95.

    Returns:
      A `SharpnessAware` transformation, to stand first in an `optax.chain`.

    Raises:
      ValueError: `rho` is negative, or `gamma` outside [0, 1).

    Cost:
      2 gradients per step; no parameter-sized buffer.

    Guarantees:
      `gamma=0.5` is SAM, `gamma=0` the base optimizer.

    Example:
      >>> import optax, optax_sam
      >>> coupled = optax.chain(optax_sam.wsam(0.05), optax.adam(1e-3))
      >>> separate = optax_sam.decoupled(optax_sam.wsam(0.05), optax.adam(1e-3), learning_rate=1e-3)

    References:
      Yun Yue, Jiadi Jiang, Zhiling Ye, Ning Gao, Yongchao Liu, Ke Zhang, `Sharpness-Aware Minimization
      Revisited: Weighted Sharpness as a Regularization Term <https://arxiv.org/abs/2305.15817>`_, 2023;
      code github.com/intelligent-machine-learning/atorch.

    Deviations:
      On several devices the authors perturb per device. Write `per_device(wsam())` for that.
    """
    checks.number("gamma", gamma, low=0, high=1)
    if checks.equals(gamma, 1):
        raise ValueError(f"gamma={gamma!r} is an infinite weight: pass a number below 1.")
    return sharpness_aware(to_radius(rho), combination=mix(gamma / (1 - gamma)))
