"""LookSAM and Look-LayerSAM: the perturbed gradient every k steps, and its lasting part in between."""

from optax_sam.engine import checks
from optax_sam.engine.assembly import SharpnessAware, sharpness_aware
from optax_sam.engine.hyperparameters import Count, Number, Radius
from optax_sam.pieces.ascents import to_radius
from optax_sam.pieces.gates import every
from optax_sam.pieces.geometries import layerwise
from optax_sam.pieces.reuses import orthogonal_component


def looksam(rho: Radius = 0.05, every_k: Count = 5, alpha: Number = 0.7) -> SharpnessAware:
    """LookSAM: SAM every k-th step, reusing what changes slowly in between.

    The part of SAM's gradient that is orthogonal to the ordinary one leads to the flat region, and
    changes more slowly than the rest. LookSAM keeps it, scaled to the present gradient.

    In steps `t % k == 0`: descent `g' = grad L(w + rho g / ||g||)`, and
    `v = g' - (<g', g> / ||g||^2) g` is kept. In the others: descent `g + alpha (||g|| / ||v||) v`.

    Args:
      rho: radius, in the L2 norm over all parameters. A number or a schedule of the step.
      every_k: `k`, 1 or more.
      alpha: how much of the kept part is reused. A number or a schedule of the step.

    Returns:
      A `SharpnessAware` transformation, to stand first in an `optax.chain`.

    Raises:
      ValueError: `rho` is negative or `every_k` below 1.
      TypeError: `every_k` is no Python integer.

    Cost:
      1 + 1/k gradients per step; one parameter-sized buffer.

    Guarantees:
      `every_k=1` is SAM.

    Example:
      >>> import optax, optax_sam
      >>> tx = optax.chain(optax_sam.looksam(0.05, every_k=5), optax.sgd(0.1, momentum=0.9))

    References:
      Yong Liu, Siqi Mai, Xiangning Chen, Cho-Jui Hsieh, Yang You, `Towards Efficient and Scalable
      Sharpness-Aware Minimization <https://arxiv.org/abs/2203.02714>`_, 2022.

    Deviations:
      No code of the authors is known. Of the re-implementations, those with global norms match the equations,
      and are followed here. `alpha=0.7` is the paper's for ViT. Others report it to be unstable on CIFAR, and
      use 0.1.
    """
    checks.integer("every_k", every_k, low=1)
    return sharpness_aware(to_radius(rho), gate=every(every_k), reuse=orthogonal_component(alpha))


def look_layersam(rho: Radius = 0.1, every_k: Count = 5, alpha: Number = 0.7) -> SharpnessAware:
    """Look-LayerSAM: LookSAM with a perturbation in proportion to each layer's norm, for huge batches.

    With LAMB every layer moves by a part of its norm. Here the perturbation does too. The method is made for
    batches of 16,000 examples and more, with `optax.lamb` behind it.

    `e_l = rho (||w_l|| / ||g_l||) g_l` in each leaf `l`; the rest is LookSAM's.

    Args:
      rho: radius in each leaf, as a part of its norm. A number or a schedule of the step.
      every_k: `k`, 1 or more.
      alpha: how much of the kept part is reused. A number or a schedule of the step.

    Returns:
      A `SharpnessAware` transformation, to stand first in an `optax.chain`.

    Raises:
      ValueError: `rho` is negative or `every_k` below 1.
      TypeError: `every_k` is no Python integer.

    Cost:
      1 + 1/k gradients per step; one parameter-sized buffer.

    Guarantees:
      The perturbation of each leaf has the norm `rho ||w_l||`. That of a zero leaf is zero.

    Example:
      >>> import optax, optax_sam
      >>> tx = optax.chain(optax_sam.look_layersam(0.1), optax.lamb(1e-2, weight_decay=0.1))

    References:
      Yong Liu, Siqi Mai, Xiangning Chen, Cho-Jui Hsieh, Yang You, `Towards Efficient and Scalable
      Sharpness-Aware Minimization <https://arxiv.org/abs/2203.02714>`_, 2022.

    Deviations:
      A leaf of the parameters stands for a layer. The kept part is scaled by global norms.
    """
    checks.integer("every_k", every_k, low=1)
    ascent = to_radius(rho, layerwise())
    return sharpness_aware(ascent, gate=every(every_k), reuse=orthogonal_component(alpha))
