"""Sparse SAM (SSAM-F and SSAM-D), and the Fisher-mask SAM of language models."""

from typing import Literal

from optax_sam.engine import checks
from optax_sam.engine.assembly import SharpnessAware, sharpness_aware
from optax_sam.engine.hyperparameters import Count, FixedProbability, Radius, Seed, Share
from optax_sam.pieces.ascents import chained, to_radius
from optax_sam.pieces.masks import check_pattern, dynamic_mask, fisher_mask


def sparse_sam(
    rho: Radius = 0.05,
    sparsity: Share = 0.2,
    mask: Literal["fisher", "dynamic"] = "fisher",
    refresh_steps: Count = 2000,
    num_samples: Count = 1024,
    pattern: str = "unstructured",
    outputs_first: bool = False,
    drop_rate: FixedProbability = 0.5,
    total_steps: Count | None = None,
    seed: Seed = 0,
) -> SharpnessAware:
    """Sparse SAM: perturbs a part of the weights, chosen by a mask.

    Half of the perturbation is as good as all of it, if it is the right half. The mask follows the Fisher
    information of the weights. Or it drops entries with small gradients and takes in random ones, as in
    sparse training.

    `e = m rho g / ||g||`, the norm over all parameters; descent `g' = grad L(w + e)`. Every
    `refresh_steps` steps, behind the perturbation: "fisher" keeps the `(1 - sparsity) N` entries with the
    largest mean of squared gradients of single examples; "dynamic" replaces the part
    `drop_rate (1 + cos(pi t / total_steps)) / 2` of the entries, smallest `|g|` out, random ones in. After
    `total_steps` the mask stays.

    Args:
      rho: radius before the mask, in the L2 norm. A number or a schedule of the step.
      sparsity: the part of the entries that is not perturbed, from 0 to 1.
      mask: "fisher" (SSAM-F) or "dynamic" (SSAM-D).
      refresh_steps: steps between renewals.
      num_samples: examples of a Fisher renewal, the first of the
        batch that are not padding, at most all of it.
      pattern: of the Fisher mask. "unstructured" chooses entries. "structured" chooses whole leaves by their
        mean. N:M, such as "2:4", chooses the N largest of every M inputs of a matrix, whatever `sparsity`
        says.
      outputs_first: whether the first axis of a kernel counts its outputs, as in Equinox. Otherwise the last
        axis does, as in Flax. It matters for N:M alone.
      drop_rate: of the dynamic mask, from 0 to 1.
      total_steps: of the training, for the dynamic mask. It stays afterwards.
      seed: of the dynamic mask. An integer, or an integer array.

    Returns:
      A `SharpnessAware` transformation, to stand first in an `optax.chain`. It needs losses
      of single examples with the Fisher mask.

    Raises:
      ValueError: a number is outside its range. `mask` or `pattern` is unknown. `total_steps` is missing for
        `mask="dynamic"`. `grad_fn` comes with the Fisher mask.
      TypeError: an argument that shapes the program is an array. `outputs_first` is no Python bool.

    Cost:
      2 gradients per step, and `num_samples` gradients of single examples, one after the other, at a
      Fisher renewal; one bool per parameter. No step gets cheaper: dense arithmetic computes all
      entries.

    Guarantees:
      `sparsity=0` is SAM. With the Fisher mask it is SAM from the first renewal on, and nothing is perturbed
      before. That renewal is in the first step that is perturbed and whose gradient is finite. A later one
      that falls on another step is left out. A dynamic mask keeps its number of entries.

    Example:
      >>> import optax, optax_sam
      >>> sparse = optax_sam.sparse_sam(0.1, sparsity=0.5, refresh_steps=400, num_samples=128)
      >>> tx = optax.chain(sparse, optax.sgd(0.05, momentum=0.9))

    References:
      Peng Mi, Li Shen, Tianhe Ren, Yiyi Zhou, Xiaoshuai Sun, Rongrong Ji, Dacheng Tao, `Make
      Sharpness-Aware Minimization Stronger: A Sparsified Perturbation Approach
      <https://arxiv.org/abs/2210.05177>`_, 2022; Peng Mi, Li Shen, Tianhe Ren, Yiyi Zhou, Tianshuo Xu,
      Xiaoshuai Sun, Tongliang Liu, Rongrong Ji, Dacheng Tao, `Systematic Investigation of Sparse
      Perturbed Sharpness-Aware Minimization Optimizer <https://arxiv.org/abs/2306.17504>`_, 2023.

    Deviations:
      The Fisher mask is made from the batch at hand, at the parameters before the step. The authors draw
      examples anew and take the parameters after it. The first mask is all zeros, as in their code. For a
      sparsity below `drop_rate / (1 + drop_rate)`, the dynamic mask finds fewer entries to take in than it
      drops. There their mask shrinks. Here only as many entries go as come.
    """
    checks.one_of("mask", mask, ("fisher", "dynamic"))
    if mask == "dynamic" and total_steps is None:
        raise ValueError('total_steps=None, but mask="dynamic" needs the number of steps: pass it.')
    checks.number("drop_rate", drop_rate, low=0, high=1)
    if total_steps is not None:
        checks.integer("total_steps", total_steps, low=1)
    checks.integer("num_samples", num_samples, low=1)
    check_pattern(pattern)
    checks.boolean("outputs_first", outputs_first)
    if mask == "fisher":
        kept = fisher_mask(sparsity, refresh_steps, num_samples, pattern, outputs_first)
    else:
        kept = dynamic_mask(sparsity, refresh_steps, drop_rate, total_steps or 1, seed)
    return sharpness_aware(chained(to_radius(rho), kept), seed=seed)


def fisher_mask_sam(
    rho: Radius = 0.05, sparsity: Share = 0.5, refresh_steps: Count = 100, num_samples: Count = 128
) -> SharpnessAware:
    """Fisher-mask SAM: sparse SAM for the fine-tuning of language models.

    Most parameters of a large model hardly matter for a small task. Their Fisher information tells which ones
    do. Perturbing those generalizes better than perturbing all.

    `e = m rho g / ||g||`, `m` the `(1 - sparsity) N` entries with the largest mean of squared gradients
    of single examples, renewed every `refresh_steps` steps; descent `g' = grad L(w + e)`.

    Args:
      rho: radius before the mask, in the L2 norm. A number or a schedule of the step.
      sparsity: the part of the entries that is not perturbed, from 0 to 1.
      refresh_steps: steps between renewals.
      num_samples: examples of a renewal, the first of the batch that are not padding, at most all of it.

    Returns:
      A `SharpnessAware` transformation, to stand first in an `optax.chain`. It needs losses of
      single examples.

    Raises:
      ValueError: a number is outside its range. `grad_fn` comes in place of an oracle.
      TypeError: an argument that shapes the program is an array.

    Cost:
      2 gradients per step, and `num_samples` gradients of single examples at a renewal; one bool per
      parameter.

    Guarantees:
      It is another name for `sparse_sam` with `mask="fisher"`, and has the same guarantees.

    Example:
      >>> import optax, optax_sam
      >>> tx = optax.chain(optax_sam.fisher_mask_sam(0.05), optax.adamw(2e-5))

    References:
      Qihuang Zhong, Liang Ding, Li Shen, Peng Mi, Juhua Liu, Bo Du, Dacheng Tao, `Improving
      Sharpness-Aware Minimization with Fisher Mask for Better Generalization on Language Models
      <https://arxiv.org/abs/2210.05497>`_, 2022.

    Deviations:
      The numbers of samples and of steps between renewals are not published. They are inferred.
    """
    return sparse_sam(rho, sparsity, "fisher", refresh_steps, num_samples)
