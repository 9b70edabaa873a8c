"""Random weight perturbation: RWP, m-RWP, ARWP, m-ARWP."""

from optax_sam.engine import checks
from optax_sam.engine.assembly import SharpnessAware, sharpness_aware
from optax_sam.engine.hyperparameters import FixedNotNegative, FixedProbability, Number, Radius, Seed, Share
from optax_sam.pieces import selections, starts
from optax_sam.pieces.ascents import in_proportion
from optax_sam.pieces.bases import Direction
from optax_sam.pieces.combinations import mix
from optax_sam.pieces.directions import damped_gaussian, gaussian
from optax_sam.pieces.starts import ahead, at_params


def random_perturbation(
    noise_scale: Radius = 0.01,
    alpha: Number = 0.5,
    split_batch: bool = True,
    seed: Seed = 0,
) -> SharpnessAware:
    """RWP: the gradient beside a noisy one, with noise in proportion to each filter.

    Noise finds flat regions as the worst case does, but needs no first gradient. Half of the batch sees the
    noise, half does not. The two gradients need not wait for each other.

    `e_f = noise_scale ||w_f|| z`, `z ~ N(0, I)`, in each output filter `f`; descent
    `alpha grad L_2(w + e) + (1 - alpha) grad L_1(w)`, `L_1`, `L_2` the halves of the batch.

    Args:
      noise_scale: standard deviation, in parts of the filter's norm. A number or a schedule.
      alpha: weight of the noisy gradient. A number or a schedule of the step.
      split_batch: whether each gradient sees its own half of the batch. Otherwise both see all of it.
      seed: of the noise. An integer, or an integer array.

    Returns:
      A `SharpnessAware` transformation, to stand first in an `optax.chain`. It needs an oracle if the
      batch is split.

    Raises:
      ValueError: the batch cannot be halved.
      TypeError: `split_batch` is no Python bool.

    Cost:
      2 gradients of half the batch per step, independent of each other (of the whole batch without
      `split_batch`); no parameter-sized buffer.

    Guarantees:
      `noise_scale=0` without `split_batch` is the base optimizer. `loss` is that of the first half.

    Example:
      >>> import optax, optax_sam
      >>> tx = optax.chain(optax_sam.random_perturbation(0.01), optax.sgd(0.1, momentum=0.9))

    References:
      Tao Li, Weihao Yan, Zehao Lei, Yingwen Wu, Kun Fang, Ming Yang, Xiaolin Huang, `Efficient
      Generalization Improvement Guided by Random Weight Perturbation
      <https://arxiv.org/abs/2211.11489>`_, 2022; code github.com/nblt/RWP; m-RWP, with
      `noise_scale=0.015`: Tao Li, Qinghua Tao, Weihao Yan, Zehao Lei, Yingwen Wu, Kun Fang, Mingzhen
      He, Xiaolin Huang, `Revisiting Random Weight Perturbation for Efficiently Improving
      Generalization <https://arxiv.org/abs/2404.00357>`_, 2024.

    Deviations:
      The authors take two whole batches a step, on two devices. Double the batch to do the same. The last
      axis of a leaf counts its filters. Leaves with one axis or none are one filter.
    """
    checks.number_or_schedule("noise_scale", noise_scale, low=0)
    checks.number_or_schedule("alpha", alpha)
    checks.boolean("split_batch", split_batch)
    return _mixed(gaussian(), noise_scale, alpha, split_batch, seed)


def adaptive_random_perturbation(
    noise_scale: Radius = 0.001,
    fisher_weight: FixedNotNegative = 0.1,
    fisher_decay: FixedProbability = 0.99,
    alpha: Share = 1.0,
    seed: Seed = 0,
) -> SharpnessAware:
    """ARWP and m-ARWP: noise that is weaker where gradients were large.

    Noise in sensitive weights destroys more than it explores. The history of squared gradients tells which
    weights are sensitive. With `alpha=1` the noisy gradient is the only one, at SGD's cost.

    `e_f = noise_scale ||w_f|| z / sqrt(1 + fisher_weight sum_f F)`, then
    `F = fisher_decay F + g_n^2` with the noisy gradient `g_n = grad L(w + e)`. Descent `g_n` for
    `alpha=1`; else `alpha g_n + (1 - alpha) grad L_1(w)`, the two on halves of the batch.

    Args:
      noise_scale: standard deviation, in parts of the filter's norm. A number or a schedule. The authors
        raise it along half a cosine to eleven times its value.
      fisher_weight: `eta`, 0 or more.
      fisher_decay: of `F`, from 0 to 1.
      alpha: weight of the noisy gradient, from 0 to 1. 1 is ARWP. 0.5 with `noise_scale=0.015` is m-ARWP.
      seed: of the noise. An integer, or an integer array.

    Returns:
      A `SharpnessAware` transformation, to stand first in an `optax.chain`. It needs an oracle.

    Raises:
      ValueError: a number is outside its range. The batch cannot be halved.
      TypeError: `alpha` is an array.

    Cost:
      1 gradient per step with `alpha=1`, else 2 of half the batch; one parameter-sized buffer.

    Guarantees:
      `noise_scale=0` with `alpha=1` is the base optimizer.

    Example:
      >>> import optax, optax_sam
      >>> tx = optax.chain(optax_sam.adaptive_random_perturbation(), optax.sgd(0.1, momentum=0.9))

    References:
      Tao Li, Qinghua Tao, Weihao Yan, Zehao Lei, Yingwen Wu, Kun Fang, Mingzhen He, Xiaolin Huang,
      `Revisiting Random Weight Perturbation for Efficiently Improving Generalization
      <https://arxiv.org/abs/2404.00357>`_, 2024; code github.com/nblt/mARWP.

    Deviations:
      The authors' code has `fisher_weight=1` and `fisher_decay=0.9` by default. Its scripts have 0.1 and
      0.99. There m-ARWP takes two batches a step. Here it takes halves of one.
    """
    checks.number_or_schedule("noise_scale", noise_scale, low=0)
    checks.static_number("alpha", alpha, low=0, high=1)
    checks.number("fisher_weight", fisher_weight, low=0)
    checks.number("fisher_decay", fisher_decay, low=0, high=1)
    noise = damped_gaussian(fisher_weight, fisher_decay)
    if alpha == 1:
        ascent = in_proportion(noise_scale, to_filters=True)
        return sharpness_aware(ascent, direction=noise, start=ahead(), seed=seed)
    return _mixed(noise, noise_scale, alpha, True, seed)


def _mixed(noise: Direction, noise_scale, alpha, split_batch, seed) -> SharpnessAware:
    return sharpness_aware(
        in_proportion(noise_scale, to_filters=True),
        start=starts.on_part(0, 2) if split_batch else at_params(),
        direction=noise,
        selection=selections.on_part(1, 2) if split_batch else selections.everything(),
        combination=mix(alpha),
        seed=seed,
    )
