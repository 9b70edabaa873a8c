"""SAM-ON: only the normalization layers are perturbed."""

import re
from collections.abc import Callable
from typing import Any

from optax_sam.arithmetic.paths import names_on
from optax_sam.engine import checks
from optax_sam.engine.assembly import SharpnessAware, sharpness_aware
from optax_sam.engine.hyperparameters import FixedNotNegative, Radius
from optax_sam.pieces.ascents import chained, to_radius
from optax_sam.pieces.geometries import elementwise, signs
from optax_sam.pieces.masks import only


def sam_on(
    mask: Callable[[Any, Any], bool], rho: Radius = 10.0, eta: FixedNotNegative = 0.01, order: float = 2
) -> SharpnessAware:
    """SAM-ON: perturbs the scales and biases of normalization layers only, under one percent of the weights.

    In many networks this generalizes better than perturbing everything. The radius is larger, since few
    parameters carry it.

    `T = |w| + eta` in the leaves that `mask` chooses; `e = rho T^2 g / ||T g||` for `order=2`,
    `e = rho T sign(g)` for infinite order, zero in all other leaves; descent `g' = grad L(w + e)`.

    Args:
      mask: `mask(path, leaf) -> bool`, which leaves are perturbed. For Flax's names
        `optax_sam.is_normalization`.
      rho: radius, in the norm of that geometry over the chosen leaves. A number or a schedule.
      eta: floor under the size of a weight, 0 or more.
      order: 2, or `float("inf")`.

    Returns:
      A `SharpnessAware` transformation, to stand first in an `optax.chain`.

    Raises:
      ValueError: `rho` or `eta` is negative, `order` is neither 2 nor infinite, or no leaf is chosen.
      TypeError: `mask` is no function.

    Cost:
      2 gradients per step; no parameter-sized buffer.

    Guarantees:
      Every leaf descends along the perturbed gradient, also those that are not perturbed.

    Example:
      >>> import optax, optax_sam
      >>> tx = optax.chain(optax_sam.sam_on(optax_sam.is_normalization), optax.sgd(0.1, momentum=0.9))

    References:
      Maximilian Mueller, Tiffany Vlaar, David Rolnick, Matthias Hein, `Normalization Layers Are All
      That Sharpness-Aware Minimization Needs <https://arxiv.org/abs/2306.04226>`_, 2023; code
      github.com/mueller-mp/SAM-ON.

    Deviations:
      The authors' elementwise variants are here. Write the others as
      `sharpness_aware(chained(only(mask), to_radius(rho, geometry)))`.
    """
    checks.static_number("order", order, low=2, infinite_too=True)
    if order not in (2, float("inf")):
        raise ValueError(f'order={order!r} is neither 2 nor infinite: pass 2, or float("inf").')
    geometry = elementwise(eta, biases=True) if order == 2 else signs(eta)
    return sharpness_aware(chained(only(mask), to_radius(rho, geometry)))


def is_normalization(path: Any, leaf: Any) -> bool:
    """Whether a leaf belongs to a normalization layer, by its name or that of the module that holds it.

    One of the two has "norm" in it, a word that begins with "bn", or the word "ln". Words are divided by what
    is no letter, and by capitals: `bn1`, `conv_bn` and `expandBN` have one. Modules further out say nothing:
    a `PreNormBlock` holds dense layers, too.

    Args:
      path: keys, as `jax.tree.map_with_path` hands them.
      leaf: not read.

    Example:
      >>> import jax, optax_sam
      >>> params = {"BatchNorm_0": {"scale": 1.0}, "Dense_0": {"kernel": 2.0}}
      >>> jax.tree.map_with_path(optax_sam.is_normalization, params)
      {'BatchNorm_0': {'scale': True}, 'Dense_0': {'kernel': False}}
    """
    del leaf
    names = "/".join(names_on(path)[-2:])
    words = [word.lower() for word in re.split(r"[^a-zA-Z]+|(?<=[a-z])(?=[A-Z])", names)]
    return "norm" in names.lower() or any(word.startswith("bn") or word == "ln" for word in words)
