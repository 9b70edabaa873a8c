"""TSAM, tilted sharpness-aware minimization."""

from typing import Literal

from optax_sam.engine import checks
from optax_sam.engine.assembly import SharpnessAware, sharpness_aware
from optax_sam.engine.hyperparameters import Count, FixedNotNegative, Number, Radius, Seed
from optax_sam.pieces.ascents import to_radius
from optax_sam.pieces.starts import at_random
from optax_sam.wrappers.over_draws import over_draws, tilted


def tsam(
    rho: Radius = 0.05,
    tilt: Number = 1.0,
    num_samples: Count = 3,
    radius: FixedNotNegative = 1.0,
    noise_scale: FixedNotNegative = 1.0,
    noise: Literal["gaussian", "uniform"] = "gaussian",
    seed: Seed = 0,
) -> SharpnessAware:
    """TSAM: the mean over many perturbed points, the worse ones counting more.

    SAM looks at one bad point in the neighbourhood. TSAM minimizes `(1/t) log E exp(t L(w + e))`, between the
    mean (`t = 0`) and the worst (`t` infinite) of all points. It samples some points, each from a random
    start by one ascent step. A softmax of their losses weights their gradients.

    For `j = 1..s`: `n_j` random (see `at_random`), `e_j = n_j + rho g_j / ||g_j||` with
    `g_j = grad L(w + n_j)`. Descent `sum_j a_j grad L(w + e_j)`, `a = softmax(tilt L(w + e_j))`.

    Args:
      rho: length of the ascent step, in the L2 norm over all parameters. A number or a schedule.
      tilt: `t`. A number or a schedule of the step.
      num_samples: `s`.
      radius: bound on the norm of the random start, 0 or more.
      noise_scale: standard deviation of Gaussian noise, 0 or more.
      noise: "gaussian" (clipped to the ball) or "uniform" (in practice on its sphere).
      seed: of the noise. An integer, or an integer array.

    Returns:
      A `SharpnessAware` transformation, to stand first in an `optax.chain`. It needs an oracle.

    Raises:
      ValueError: a number is outside its range, or `noise` is unknown. `grad_fn` comes in place of an oracle.
      TypeError: `num_samples` is no Python integer. `seed` is no integer.

    Cost:
      2 num_samples gradients per step, one after the other; no parameter-sized buffer between steps,
      but two gradient trees in memory, however many samples.

    Guarantees:
      `tilt=0` is the plain mean. `num_samples=1` does not depend on `tilt`, and is SAM for `radius=0`.
      The loss that `value_and_grad` returns is that of the first sample's random start.

    Example:
      >>> import optax, optax_sam
      >>> tx = optax.chain(optax_sam.tsam(0.05, tilt=20.0), optax.sgd(0.1, momentum=0.9))

    References:
      Tian Li, Tianyi Zhou, Jeffrey A. Bilmes, `Tilted Sharpness-Aware Minimization
      <https://arxiv.org/abs/2410.22656>`_, 2024; its first version was called Reweighting Local Minima
      with Tilted SAM.

    Deviations:
      The paper samples by Hamiltonian dynamics. The authors' code, followed here, takes one normalized
      ascent step from random noise, always accepts it, and does not project. The code rounds losses
      and weights to float32.
    """
    checks.integer("num_samples", num_samples, low=1)
    sample = sharpness_aware(to_radius(rho), start=at_random(radius, noise_scale, noise), seed=seed)
    return over_draws(sample, num_samples, log_weight=tilted(tilt))
