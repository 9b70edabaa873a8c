"""vSAM, sampling and reusing the second part of SAM's gradient."""

from collections.abc import Callable
from typing import Any

from optax_sam.engine import checks
from optax_sam.engine.assembly import SharpnessAware, sharpness_aware
from optax_sam.engine.hyperparameters import Count, CountOrZero, FixedProbability, Radius, Seed, Share
from optax_sam.pieces.ascents import to_radius
from optax_sam.pieces.reuses import decayed_difference
from optax_sam.pieces.variance_rate import with_variance_rate


def vsam(
    rho: Radius = 0.05,
    window: Count = 50,
    slices: Count = 5,
    max_rate: Share = 0.8,
    rate_gain: tuple[float, float] = (0.13, 0.13),
    reuse_decay: FixedProbability = 0.7,
    reuse_steps: CountOrZero = 6,
    warmup_steps: CountOrZero = 0,
    tail: int | Callable[[Any], Any] = 10,
    seed: Seed = 0,
) -> SharpnessAware:
    """vSAM: takes the second gradient as often as it changes, and reuses it in between.

    SAM's gradient is the plain one plus the PSF, `g' - g`. The PSF changes slowly at first, and faster late
    in training. Each window of steps has a quota of perturbed steps, which follows these changes. The other
    steps add the last PSF, fading.

    Perturbed steps: `PSF = g' - g`, descent `g'`. The `j`-th step after one: descent
    `g + reuse_decay^j PSF` for `j <= reuse_steps`, then `g`. After each window of `K = window` steps
    `s <- clip(s (1 + a1 dR + a2 dV), 1, int(max_rate K))`, with `(a1, a2) = rate_gain`, `dR` and `dV`
    the mean relative changes, clipped to [-1, 1], of `||PSF|| / ||g||` and of the variance of
    `||PSF||` over the last `K` perturbed steps (the variance within `slices` equal slices of the
    sorted values, averaged). The next window perturbs exactly `int(s)` steps: drawn with probability
    `s / K`, and what is left at its end.

    Args:
      rho: radius, in the L2 norm over all parameters. A number or a schedule of the step.
      window: steps per window, a multiple of `slices`, at least twice it.
      slices: slices of the sorted norms.
      max_rate: the largest part of a window that is perturbed, from 1 / window to 1.
      rate_gain: `(a1, a2)`, how fast `s` follows the ratio and the variance.
      reuse_decay: from 0 to 1.
      reuse_steps: how many steps after a perturbed one reuse its PSF.
      warmup_steps: how many steps at the start are all perturbed (three epochs in the authors' code).
      tail: the two norms look at the last `tail` leaves of the parameters, or at all of them where there are
        fewer. The order is that of `jax.tree.leaves`, which sorts the keys of a dict. In a Flax model these
        need not be the last layers. Or a function from params to a tree of bools.
      seed: of the draws. An integer, or an integer array.

    Returns:
      A `SharpnessAware` transformation, to stand first in an `optax.chain`.

    Raises:
      ValueError: a number is outside its range. `window` is no multiple of `slices`.
      TypeError: an argument that shapes the program (`static_arguments(vsam)`) is an array.

    Cost:
      1 + s/window gradients per step, `s` from 1 to `int(max_rate window)`; one parameter-sized
      buffer (the PSF).

    Guarantees:
      A perturbed step is SAM's. `rho=0` is the base optimizer. `due(state)` tells the next decision.

    Example:
      >>> import optax, optax_sam
      >>> vsam = optax_sam.vsam(rho=0.05, warmup_steps=3 * 391)
      >>> tx = optax.chain(vsam, optax.sgd(0.05, momentum=0.9))

    References:
      Jiaxin Deng, Junbiao Pang, Baochang Zhang, Tian Wang, `Effective Gradient Sample Size via
      Variation Estimation for Accelerating Sharpness aware Minimization
      <https://arxiv.org/abs/2403.08821>`_, 2024. ARSAM, its successor, names the same three ideas;
      whether its equations are the same is not known.

    Deviations:
      The paper writes the PSF with a Hessian. The authors' code, followed here, takes the difference of two
      gradients. Defaults are those of their training script, not of their constructor. As in the code, the
      first window begins at its second step, and after a warm-up it perturbs no step at all. The code does
      not run without a warm-up. Here the first window then perturbs one step. The relative change of values
      that are not yet recorded counts as 0.
    """
    checks.number("reuse_decay", reuse_decay, low=0, high=1)
    checks.integer("reuse_steps", reuse_steps, low=0)
    return sharpness_aware(
        to_radius(rho),
        gate=with_variance_rate(window, slices, max_rate, rate_gain, warmup_steps, tail),
        reuse=decayed_difference(reuse_decay, reuse_steps),
        seed=seed,
    )
