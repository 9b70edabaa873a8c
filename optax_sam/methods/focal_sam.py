"""Focal-SAM: sharpness counts for rare classes."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from optax_sam.engine import checks
from optax_sam.engine.aliases import Batch
from optax_sam.engine.assembly import SharpnessAware, sharpness_aware
from optax_sam.engine.hyperparameters import AtLeastZero, Radius
from optax_sam.pieces import combinations, directions, selections
from optax_sam.pieces.ascents import to_radius


@dataclasses.dataclass(frozen=True)
class OfRareClasses:
    """`weight (1 - pi_class)^gamma` of each example of a batch."""

    shares: tuple[float, ...]
    labels: Callable[[Batch], jax.Array]
    weight: float
    gamma: float

    def __call__(self, batch: Batch) -> jax.Array:
        labels = jnp.asarray(self.labels(batch))
        if labels.ndim != 1 or not jnp.issubdtype(labels.dtype, jnp.integer):
            raise ValueError(
                f"labels returned the shape {labels.shape} and the dtype {labels.dtype}: return the class of "
                "each example, int[batch]."
            )
        if labels.dtype.itemsize < 4:  # 256 classes are no number of 8 bits
            labels = labels.astype(jnp.int32)
        of_class = self.weight * (1 - jnp.asarray(self.shares)) ** self.gamma
        found = of_class.at[labels].get(out_sharding=jax.typeof(labels).sharding)
        known = (labels >= 0) & (labels < len(self.shares))
        return jnp.where(known, found, jnp.full_like(found, jnp.nan))


def focal_sam(
    class_frequencies: Sequence[float],
    labels: Callable[[Batch], jax.Array],
    *,
    weight: AtLeastZero,
    gamma: AtLeastZero,
    rho: Radius = 0.05,
) -> SharpnessAware:
    """Focal-SAM: the sharpness of rare classes counts more, the loss of all classes counts alike.

    With long-tailed classes, SAM flattens the loss of the frequent ones. Here examples of rare classes have
    more weight in the sharpness, and only there.

    `c_i = weight (1 - pi_{y_i})^gamma` with the class's share `pi` of the data; `d = grad mean(c l)(w)`,
    `e = rho d / ||d||`; descent `grad L(w) + grad mean(c l)(w + e) - d`.

    Args:
      class_frequencies: how often each class is seen, as counts or shares. One number for each class.
      labels: `labels(batch) -> int[batch]`, the classes of the examples from 0 on, such as
        `lambda batch: batch["label"]`.
      weight: of the sharpness, 0 or more.
      gamma: how much more a rare class counts, 0 or more. 0 counts all alike.
      rho: radius, in the L2 norm over all parameters. A number or a schedule of the step.

    Returns:
      A `SharpnessAware` transformation, to stand first in an `optax.chain`. It needs an oracle.

    Raises:
      ValueError: `rho`, `weight` or `gamma` is negative. `class_frequencies` is empty or has a negative
        entry.
      TypeError: `labels` is no function.

    Cost:
      3 gradients per step; no parameter-sized buffer.

    Guarantees:
      `rho=0` and `weight=0` are the base optimizer. `gamma=0, weight=1` is SAM.

    Example:
      >>> import optax, optax_sam
      >>> method = optax_sam.focal_sam([900, 90, 10], lambda batch: batch["label"], weight=0.8, gamma=2.0)
      >>> tx = optax.chain(method, optax.sgd(0.1, momentum=0.9))

    References:
      Sicong Li, Qianqian Xu, Zhiyong Yang, Zitai Wang, Linchao Zhang, Xiaochun Cao, Qingming Huang,
      `Focal-SAM: Focal Sharpness-Aware Minimization for Long-Tailed Classification
      <https://arxiv.org/abs/2505.01660>`_, 2025; code github.com/scongl/Focal-SAM.

    Deviations:
      The code takes `grad mean((1 - c) l)` in one backward pass and `grad mean(c l)` in another. Here the
      first is the difference of the gradients of all examples and of `c`. `weight` and `gamma` have no
      default, since the authors tune them for each data set.
    """
    checks.static_number("weight", weight, low=0)
    checks.static_number("gamma", gamma, low=0)
    checks.function("labels", labels, 'labels(batch) -> int[batch], such as lambda batch: batch["label"]')
    frequencies = checks.frequencies("class_frequencies", class_frequencies)
    shares = tuple(float(f) / sum(frequencies) for f in frequencies)
    of_rare_classes = OfRareClasses(shares, labels, weight, gamma)
    return sharpness_aware(
        to_radius(rho),
        direction=directions.emphasized(of_rare_classes),
        selection=selections.emphasized(of_rare_classes),
        combination=combinations.plus_emphasized_rise(of_rare_classes),
    )
