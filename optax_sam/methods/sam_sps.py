"""SAM-SPS, SAM with Polyak's step size."""

from optax_sam.engine import checks
from optax_sam.engine.assembly import SharpnessAware, sharpness_aware
from optax_sam.engine.hyperparameters import Cap, FixedProbability, Number, Radius, scaled
from optax_sam.pieces.ascents import to_radius_less
from optax_sam.pieces.combinations import polyak


def sam_sps(
    rho: Radius = 0.1,
    normalization: FixedProbability = 1.0,
    max_step: Cap = 1.0,
    lower_bound: Number = 0.0,
) -> SharpnessAware:
    """SAM-SPS: SAM that chooses its step size, by the loss and the gradient at the perturbed point.

    Polyak's step goes as far as the tangent needs to fall to the lowest possible loss. Here it is the tangent
    at the perturbed point, drawn back to the parameters. You have no learning rate to tune.

    `e = rho (1 - normalization + normalization / ||g||) g`, `g' = grad L(w + e)`; descent `gamma g'` with
    `gamma = clip((L(w + e) - lower_bound - <g', e>) / ||g'||^2, 0, max_step)`.

    Args:
      rho: radius. A number or a schedule of the step.
      normalization: from 0, the perturbation `rho g` of USAM, to 1, that of SAM.
      max_step: largest step size, 0 or more. A number or a schedule of the step.
      lower_bound: of the loss of any batch: 0 for losses that may vanish. A number or a schedule of the step.

    Returns:
      A `SharpnessAware` transformation, to stand before `optax.sgd(1.0)`, which takes the step as it is. It
      needs an oracle.

    Raises:
      ValueError: `rho` or `max_step` is negative, or `normalization` outside [0, 1].

    Cost:
      2 gradients per step; no parameter-sized buffer.

    Guarantees:
      The descent is along `g'`, and at most `max_step` times as long. `rho=0` is the stochastic Polyak step.

    Example:
      >>> import optax, optax_sam
      >>> tx = optax.chain(optax_sam.sam_sps(rho=0.1), optax.sgd(1.0))

    References:
      Dimitris Oikonomou, Nicolas Loizou, `Adaptive Sharpness-Aware Minimization with a Polyak-type Step size:
      A Theory-Grounded Scheduler <https://arxiv.org/abs/2606.01827>`_, 2026; code
      github.com/dimitris-oik/sam_sps.

    Limits:
      A momentum or an adaptive optimizer behind it takes other steps than the computed ones.

    Deviations:
      The code was read, and the abstract of the paper. The code adds the weight decay to `g'` after the step
      size is known, so that `gamma` multiplies the decay too. Here you put decay into the loss, or behind the
      method with a rate of its own. The code takes 1e-12 for a smaller `||g'||^2`. Here any length counts,
      and zero gives no step.
    """
    checks.number_or_schedule("rho", rho, low=0)
    checks.number("normalization", normalization, low=0, high=1)
    ascent = to_radius_less(scaled(rho, normalization), alpha=scaled(rho, normalization - 1))
    return sharpness_aware(ascent, combination=polyak(max_step, lower_bound))
