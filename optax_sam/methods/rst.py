"""RST and G-RST, randomized sharpness-aware training."""

from optax_sam.engine.assembly import SharpnessAware, sharpness_aware
from optax_sam.engine.hyperparameters import Number, Probability, Radius, Reciprocal, Seed
from optax_sam.pieces.ascents import to_radius
from optax_sam.pieces.combinations import mix
from optax_sam.pieces.gates import with_probability


def rst(rho: Radius = 0.05, probability: Probability = 0.5, seed: Seed = 0) -> SharpnessAware:
    """RST: in each step a coin decides between SGD and SAM.

    Half of the perturbed gradients give most of the gain. The probability may follow a schedule. The paper's
    schedules are in `optax_sam.schedules`.

    `X_t ~ Bernoulli(p(t))`; descent `grad L(w + rho g / ||g||)` if `X_t = 1`, else `g = grad L(w)`.

    Args:
      rho: radius, in the L2 norm over all parameters. A number or a schedule of the step.
      probability: `p(t)`, from 0 to 1. A number or a schedule of the step.
      seed: of the draws. An integer, or an integer array.

    Returns:
      A `SharpnessAware` transformation, to stand first in an `optax.chain`.

    Raises:
      ValueError: `rho` is negative, or `probability` outside [0, 1].
      TypeError: `seed` is no integer.

    Cost:
      1 + p gradients per step; no parameter-sized buffer between steps.

    Guarantees:
      `probability=1` is SAM and `probability=0` the base optimizer, bit for bit. `due(state)` tells
      the next draw.

    Example:
      >>> import optax, optax_sam
      >>> rising = optax_sam.schedules.increasing(0.5, total_steps=1000)
      >>> tx = optax.chain(optax_sam.rst(0.05, rising), optax.sgd(0.1, momentum=0.9))

    References:
      Yang Zhao, Hao Zhang, Xiuyuan Hu, `Randomized Sharpness-Aware Training for Boosting Computational
      Efficiency in Deep Learning <https://arxiv.org/abs/2203.09962>`_, 2022.

    Deviations:
      The authors' code puts L2 regularization into the loss, and clips the result to norm 5. Do the same to
      reproduce their runs. A zero gradient gives a zero perturbation instead of NaN.
    """
    return sharpness_aware(to_radius(rho), gate=with_probability(probability), seed=seed)


def grst(
    rho: Radius = 0.05,
    probability: Probability = 0.5,
    alpha: Number | None = None,
    seed: Seed = 0,
) -> SharpnessAware:
    """G-RST: RST whose perturbed steps make up for those that are not.

    In expectation RST regularizes sharpness less than SAM, by the factor `p`. Extrapolating from the first
    gradient through the perturbed one restores the strength.

    `X_t ~ Bernoulli(p(t))`; descent `(1 - alpha) g + alpha g'` if `X_t = 1`, else `g`, with
    `g' = grad L(w + rho g / ||g||)`.

    Args:
      rho: radius, in the L2 norm over all parameters. A number or a schedule of the step.
      probability: `p(t)`, from 0 to 1. A number or a schedule of the step.
      alpha: weight of the perturbed gradient, a number or a schedule of the step. None is
        `1 / p(t)`, the strength of SAM.
      seed: of the draws. An integer, or an integer array.

    Returns:
      A `SharpnessAware` transformation, to stand first in an `optax.chain`.

    Raises:
      ValueError: `rho` is negative, or `probability` outside [0, 1].
      TypeError: `seed` is no integer.

    Cost:
      1 + p gradients per step; no parameter-sized buffer between steps.

    Guarantees:
      `alpha=1` is RST, `alpha=0` the base optimizer. With the same seed the draws are RST's.

    Example:
      >>> import optax, optax_sam
      >>> tx = optax.chain(optax_sam.grst(0.05, probability=0.5), optax.sgd(0.1, momentum=0.9))

    References:
      Yang Zhao, Hao Zhang, Xiuyuan Hu, `Randomized Sharpness-Aware Training for Boosting Computational
      Efficiency in Deep Learning <https://arxiv.org/abs/2203.09962>`_, 2022.

    Deviations:
      By default the authors' code mixes with `g / ||g||`, and their formula with `g`. The formula is followed
      here. The default `1 / p(t)` is inferred from the expectation.
    """
    strength = Reciprocal(probability) if alpha is None else alpha
    gate = with_probability(probability)
    return sharpness_aware(to_radius(rho), gate=gate, combination=mix(strength), seed=seed)
