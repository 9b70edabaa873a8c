"""ESAM, efficient SAM: a part of the weights, and the examples that matter."""

from optax_sam.engine import checks
from optax_sam.engine.assembly import SharpnessAware, sharpness_aware
from optax_sam.engine.hyperparameters import Count, Fraction, Radius, Seed
from optax_sam.pieces.ascents import chained, in_proportion, to_radius
from optax_sam.pieces.masks import keep_random_fraction
from optax_sam.pieces.selections import check_fraction, everything, largest_increase


def esam(
    rho: Radius = 0.05,
    weight_fraction: Fraction = 0.6,
    example_fraction: Fraction = 0.5,
    strata: Count = 1,
    seed: Seed = 0,
) -> SharpnessAware:
    """ESAM: perturbs some of the weights, and descends on the examples that this harms most.

    A perturbation of a random part of the weights is as good as one of all weights. The examples whose loss
    rises under it carry the sharpness. The others need no second gradient.

    `e = (rho / beta) m g / ||m g||`, `m` one coin for each leaf, heads with probability `beta`;
    descent `grad mean_S l_i(w + e)`, `S` the `gamma B` examples of largest `l_i(w + e) - l_i(w)`.

    Args:
      rho: radius, in the L2 norm over all parameters. A number or a schedule of the step.
      weight_fraction: `beta`, above 0. 1 perturbs all weights.
      example_fraction: `gamma`, above 0. 1 keeps all examples, and saves the forward pass.
      strata: contiguous parts of the batch from which examples are chosen separately. A multiple of the
        number of devices keeps every example on its device.
      seed: of the coins. An integer, or an integer array.

    Returns:
      A `SharpnessAware` transformation, to stand first in an `optax.chain`. It needs losses of single
      examples.

    Raises:
      ValueError: a fraction is outside (0, 1], or leaves no example. `strata` does not divide the batch.
      TypeError: a fraction is an array.

    Cost:
      1 + gamma gradients and one forward pass per step; no parameter-sized buffer. In one compiled
      program the coins save nothing: weights whose gradient is not used this time still have one.

    Guarantees:
      `esam(rho, 1.0, 1.0)` is SAM. Padding is chosen last. `sharpness` is NaN where the two gradients
      see different examples.

    Example:
      >>> import optax, optax_sam
      >>> tx = optax.chain(optax_sam.esam(0.05), optax.sgd(0.05, momentum=0.9))

    References:
      Jiawei Du, Hanshu Yan, Jiashi Feng, Joey Tianyi Zhou, Liangli Zhen, Rick Siow Mong Goh, Vincent Y.
      F. Tan, `Efficient Sharpness-aware Minimization for Improved Training of Neural Networks
      <https://arxiv.org/abs/2110.03141>`_, 2021; code github.com/dydjw9/Efficient_SAM.

    Deviations:
      The coins are per tensor, as in the authors' code (the paper: per weight). They are thrown for the same
      step, which does not skip their first gradients. The code keeps one example less (those strictly above
      the last one's value). It lets all three forward passes write batch statistics.
    """
    check_fraction(example_fraction, "example_fraction")
    checks.static_number("weight_fraction", weight_fraction, low=0, high=1)
    if weight_fraction == 0:
        raise ValueError("weight_fraction=0 perturbs nothing: pass a number above 0, up to 1.")
    ascent = to_radius(rho)
    if weight_fraction < 1:
        ascent = chained(keep_random_fraction(weight_fraction), ascent, in_proportion(1 / weight_fraction))
    chosen = largest_increase(example_fraction, strata)
    return sharpness_aware(ascent, selection=everything() if example_fraction == 1 else chosen, seed=seed)
