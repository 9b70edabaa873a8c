"""How sharp the training loss is where a run stands: at its end, and at chosen epochs on the way.

Batch norm runs as in evaluation, on its running statistics: the loss is then one fixed function of the
weights, whatever the batches. Weight decay and augmentation stay out.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import optax
from flax import linen as nn
from jax.tree_util import Partial
from scipy.stats import spearmanr

from experiments.inputs import Examples
from experiments.training import cross_entropy
from optax_sam import per_example, sharpness

# Examples per product with the Hessian, and the most that are used.
BATCH = 250
MAX_EXAMPLES = 5000

MEASURED = ("top_eigenvalue", "psf_norm", "surrogate_gap", "loss_change_rank")

# Radius at which every run is probed, whatever it was trained with.
RHO = 0.05


def top_eigenvalues(
    model: nn.Module, params: Any, batch_stats: Any, examples: Examples, k: int = 1
) -> sharpness.Eigenvalues:
    """Largest eigenvalues of the Hessian of the mean loss on the training examples (at most 5,000)."""
    loss = Partial(losses_of(model), batch_stats)
    return sharpness.top_eigenvalues(loss, params, list(batches(examples, BATCH)), k, max_products=200 * k)


def measured(
    model: nn.Module, params: Any, batch_stats: Any, examples: Examples, batch_size: int
) -> dict[str, float]:
    """What a run records at a chosen epoch, over batches as in training but for their order.

    Returns:
      `top_eigenvalue`; `psf_norm` and `surrogate_gap` at the radius 0.05; and `loss_change_rank`, the rank
      correlation between how much each example's loss changes there and the norm of its gradient. All NaN
      for a run that has diverged.
    """
    try:
        return _measured(model, params, batch_stats, examples, batch_size)
    except sharpness.NotFiniteError:
        return dict.fromkeys(MEASURED, float("nan"))


def _measured(
    model: nn.Module, params: Any, batch_stats: Any, examples: Examples, batch_size: int
) -> dict[str, float]:
    loss, parts = Partial(losses_of(model), batch_stats), list(batches(examples, batch_size))
    return {
        "top_eigenvalue": float(top_eigenvalues(model, params, batch_stats, examples).values[0]),
        "psf_norm": sharpness.psf_norm(loss, params, parts, RHO).value,
        "surrogate_gap": sharpness.surrogate_gap(loss, params, parts, RHO).value,
        "loss_change_rank": float(np.mean([_rank(loss, params, part) for part in _equal(parts)])),
    }


def batches(examples: Examples, size: int) -> Iterator[dict[str, jax.Array]]:
    """Training examples, standardized, in batches of about so many; the last may be smaller."""
    count = min(MAX_EXAMPLES, len(examples.train.label))
    for first in range(0, count, size):
        rows = slice(first, min(first + size, count))
        images = examples.standardized(examples.train.image[rows])
        yield {"image": images, "label": examples.train.label[rows]}


@functools.cache
def losses_of(model: nn.Module) -> Callable[..., jax.Array]:
    """The loss of every example of a batch, in evaluation; one function for each network."""

    def losses(batch_stats: Any, params: Any, batch: dict[str, jax.Array]) -> jax.Array:
        variables = {"params": params, "batch_stats": batch_stats}
        logits: Any = model.apply(variables, batch["image"], train=False)
        return cross_entropy(logits, batch["label"])

    return losses


def _equal(parts: list[dict[str, jax.Array]]) -> list[dict[str, jax.Array]]:
    """Those as large as the first: few examples have no ranks to speak of."""
    return [part for part in parts if len(part["label"]) == len(parts[0]["label"])]


def _rank(loss: Partial, params: Any, batch: dict[str, jax.Array]) -> float:
    norms, changes = _norms_and_changes(loss, params, batch)
    return spearmanr(norms, np.abs(changes)).statistic


@jax.jit
def _norms_and_changes(
    loss: Partial, params: Any, batch: dict[str, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """Each example's gradient norm, and the change of its loss at SAM's perturbation for the batch."""
    gradient = jax.grad(lambda params: loss(params, batch).mean())(params)
    length = RHO / optax.tree.norm(gradient)
    there = jax.tree.map(lambda w, g: w + length * g, params, gradient)
    return per_example.gradient_norms(loss, params, batch), loss(there, batch) - loss(params, batch)
