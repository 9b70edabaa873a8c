"""AE-SAM and AE-LookSAM: SAM where the gradient is large."""

from optax_sam.engine import checks
from optax_sam.engine.assembly import SharpnessAware, sharpness_aware
from optax_sam.engine.hyperparameters import Count, FixedNumber, FixedProbability, Linear, Number, Radius
from optax_sam.pieces.ascents import to_radius
from optax_sam.pieces.gates import when_gradient_is_large
from optax_sam.pieces.reuses import orthogonal_component


def aesam(
    total_steps: Count,
    rho: Radius = 0.05,
    decay: FixedProbability = 0.9,
    start_threshold: FixedNumber = 1.0,
    end_threshold: FixedNumber = -1.0,
) -> SharpnessAware:
    """AE-SAM: perturbs a step if its gradient is large among the earlier ones.

    The region is sharp where gradients are large, and SAM is worth its price there. Running statistics tell
    what counts as large. The threshold falls during training, so that perturbed steps get more frequent.

    With `x = ||g||^2`: `mu = decay mu + (1 - decay) x`,
    `sigma^2 = decay sigma^2 + (1 - decay) (x - mu)^2`; a SAM step if `x >= mu + c sigma`, else descent
    `g`; `c` goes from `start_threshold` to `end_threshold` linearly within `total_steps`.

    Args:
      total_steps: of the training, 1 or more.
      rho: radius, in the L2 norm over all parameters. A number or a schedule of the step.
      decay: of the statistics, from 0 to 1.
      start_threshold: `c` at first, in standard deviations.
      end_threshold: `c` at last.

    Returns:
      A `SharpnessAware` transformation, to stand first in an `optax.chain`.

    Raises:
      ValueError: a number is outside its range.
      TypeError: `total_steps` is no Python integer.

    Cost:
      from 1 to 2 gradients per step, by the gate; no parameter-sized buffer.

    Guarantees:
      The gate must see the gradient: `due(state)` raises an error, `due(state, grads)` answers. Slices of
      `per_microbatch` decide each for itself. Thresholds far below zero are SAM.

    Example:
      >>> import optax, optax_sam
      >>> tx = optax.chain(optax_sam.aesam(total_steps=1000), optax.sgd(0.1, momentum=0.9))

    References:
      Weisen Jiang, Hansi Yang, Yu Zhang, James Kwok, `An Adaptive Policy to Employ Sharpness-Aware
      Minimization <https://arxiv.org/abs/2304.14647>`_, 2023.

    Deviations:
      The statistics start at zero. The thresholds are inferred from the reported share of SAM steps.
    """
    return sharpness_aware(to_radius(rho), gate=_gate(total_steps, decay, start_threshold, end_threshold))


def aelooksam(
    total_steps: Count,
    rho: Radius = 0.05,
    alpha: Number = 0.7,
    decay: FixedProbability = 0.9,
    start_threshold: FixedNumber = 1.0,
    end_threshold: FixedNumber = -1.0,
) -> SharpnessAware:
    """AE-LookSAM: AE-SAM that reuses LookSAM's lasting part in its plain steps.

    The gate is AE-SAM's. An unpaid step adds a part of the last perturbed gradient: the one that was
    orthogonal to the first gradient of that step.

    A SAM step if `||g||^2 >= mu + c sigma` (see `aesam`), which keeps
    `v = g' - (<g', g> / ||g||^2) g`; else descent `g + alpha (||g|| / ||v||) v`.

    Args:
      total_steps: of the training, 1 or more.
      rho: radius, in the L2 norm over all parameters. A number or a schedule of the step.
      alpha: how much of the kept part is reused. A number or a schedule of the step.
      decay: of the statistics, from 0 to 1.
      start_threshold: `c` at first, in standard deviations.
      end_threshold: `c` at last.

    Returns:
      A `SharpnessAware` transformation, to stand first in an `optax.chain`.

    Raises:
      ValueError: a number is outside its range.
      TypeError: `total_steps` is no Python integer.

    Cost:
      from 1 to 2 gradients per step, by the gate; one parameter-sized buffer.

    Guarantees:
      `alpha=0` is AE-SAM. `due(state)` raises an error, `due(state, grads)` answers.

    Example:
      >>> import optax, optax_sam
      >>> tx = optax.chain(optax_sam.aelooksam(total_steps=1000), optax.sgd(0.1, momentum=0.9))

    References:
      Weisen Jiang, Hansi Yang, Yu Zhang, James Kwok, `An Adaptive Policy to Employ Sharpness-Aware
      Minimization <https://arxiv.org/abs/2304.14647>`_, 2023.

    Deviations:
      The same as those of `aesam` and `looksam`.
    """
    gate = _gate(total_steps, decay, start_threshold, end_threshold)
    return sharpness_aware(to_radius(rho), gate=gate, reuse=orthogonal_component(alpha))


def _gate(total_steps, decay, start_threshold, end_threshold):
    checks.integer("total_steps", total_steps, low=1)
    checks.number("start_threshold", start_threshold)
    checks.number("end_threshold", end_threshold)
    return when_gradient_is_large(Linear(start_threshold, end_threshold, total_steps), decay)
