"""How sharp the training loss is where a run stands: at its end, and at chosen epochs on the way.

Batch norm runs as in evaluation, on its running statistics: the loss is then one fixed function of the
weights, whatever the batches. Weight decay, augmentation and label smoothing stay out.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import optax
from jax.tree_util import Partial

from experiments import methods
from experiments.data.arrays import Batch, num_rows, rows
from experiments.models.adapted import completed
from experiments.models.network import Network
from experiments.running.inputs import Examples, Inputs
from experiments.running.training import Trainer, TrainState, judged
from experiments.tasks import Task
from optax_sam import ascents, per_example, sharpness

# Examples per product with the Hessian, and the most that are used.
BATCH = 250
MAX_EXAMPLES = 5000

MEASURED = (
    "top_eigenvalue",
    "psf_norm",
    "surrogate_gap",
    "loss_change_rank",
    "batch_sharpness",
    "critical_sharpness",
    "directional_sharpness",
)

# Radius at which every run is probed, whatever it was trained with.
RHO = 0.05


def top_eigenvalues(
    trainer: Trainer, params: Any, batch_stats: Any, examples: Examples, k: int = 1
) -> sharpness.Eigenvalues:
    """Largest eigenvalues of the Hessian of the mean loss on the training examples (at most 5,000)."""
    losses = losses_of(trainer.network, trainer.task)
    loss, parts = Partial(losses, examples.frozen, batch_stats), list(batches(trainer, examples, BATCH))
    return sharpness.top_eigenvalues(loss, params, parts, k, max_products=200 * k)


def measured(trainer: Trainer, state: TrainState, inputs: Inputs) -> dict[str, float]:
    """What a run records at a chosen epoch, over batches that are drawn as in training.

    Returns:
      `top_eigenvalue`; `psf_norm` and `surrogate_gap` at the radius 0.05; `loss_change_rank`, the rank
      correlation between how much each example's loss changes there and the norm of its gradient;
      `batch_sharpness`; `critical_sharpness` along the gradient, NaN where rounding hides it;
      `directional_sharpness` along the base optimizer's update for that gradient, NaN where there is none or
      the learning rate is 0. All NaN for a run that has diverged.
    """
    try:
        return _measured(trainer, state, inputs)
    except sharpness.NotFiniteError:
        return dict.fromkeys(MEASURED, float("nan"))


def _measured(trainer: Trainer, state: TrainState, inputs: Inputs) -> dict[str, float]:
    (params, batch_stats), examples = judged(state), inputs.examples
    loss = Partial(losses_of(trainer.network, trainer.task), examples.frozen, batch_stats)
    parts = list(batches(trainer, examples, trainer.settings.batch_size))
    at = (loss, params, parts)
    return {
        "top_eigenvalue": float(top_eigenvalues(trainer, params, batch_stats, examples).values[0]),
        "psf_norm": sharpness.psf_norm(*at, RHO).value,
        "surrogate_gap": sharpness.surrogate_gap(*at, RHO).value,
        "loss_change_rank": float(np.mean([_rank(loss, params, part) for part in _equal(parts)])),
        "batch_sharpness": sharpness.batch_sharpness(*at).value,
        "critical_sharpness": sharpness.critical_sharpness(
            *at, learning_rate=float(inputs.numbers["learning_rate"]) or 1.0
        ).value,
        "directional_sharpness": _along_the_base(trainer, state, inputs, *at),
    }


def _along_the_base(
    trainer: Trainer, state: TrainState, inputs: Inputs, loss: Partial, params: Any, parts: list[Batch]
) -> float:
    """Curvature along what the base optimizer would do with the gradient of the training examples."""
    name = trainer.settings.method
    if name in methods.BASELINES or name in methods.WHOLE_OPTIMIZERS:
        return float("nan")
    whole: Any = state.opt_state  # of the chain of the method and the base optimizer, or of the base alone
    base_state = whole if methods.METHODS[name] is None else whole[1]
    gradients = [_gradient(loss, params, part) for part in _equal(parts)]
    gradient = jax.tree.map(lambda *xs: sum(xs) / len(xs), *gradients)
    updates, _ = trainer.base(inputs)[1].update(gradient, base_state, params)
    if not float(optax.tree.norm(updates)):
        return float("nan")
    return sharpness.directional_sharpness(loss, params, parts, updates).value


def batches(trainer: Trainer, examples: Examples, size: int) -> Iterator[Batch]:
    """Training examples, prepared, in batches of about so many; the last may be smaller.

    The batches are drawn as in training, always the same ones: neighbours in a series are alike.
    """
    order = np.random.default_rng(0).permutation(num_rows(examples.train))[:MAX_EXAMPLES]
    for first in range(0, len(order), size):
        part = rows(examples.train, order[first : first + size])
        yield trainer.task.prepare(part, examples.constants, None)


@functools.cache
def losses_of(network: Network, task: Task) -> Callable[..., jax.Array]:
    """The loss of every example of a batch, in evaluation; one function, compiled once, for all methods."""

    def losses(frozen: Any, batch_stats: Any, params: Any, batch: Batch) -> jax.Array:
        outputs, _ = completed(network, frozen).apply(params, batch_stats, batch[task.inputs], None)
        return task.losses(outputs, batch)

    return losses


def _equal(parts: list[Batch]) -> list[Batch]:
    """Those as large as the first: few examples have no ranks to speak of."""
    return [part for part in parts if num_rows(part) == num_rows(parts[0])]


def _rank(loss: Partial, params: Any, batch: Batch) -> float:
    from scipy.stats import spearmanr  # here, because it takes a second to load

    norms, changes = _norms_and_changes(loss, params, batch)
    return spearmanr(norms, np.abs(changes)).statistic


@jax.jit
def _gradient(loss: Partial, params: Any, batch: Batch) -> Any:
    return jax.grad(lambda params: loss(params, batch).mean())(params)


@jax.jit
def _norms_and_changes(loss: Partial, params: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Each example's gradient norm, and the change of its loss at SAM's perturbation for the batch."""
    gradient = _gradient(loss, params, batch)
    ascent = ascents.to_radius(RHO)
    perturbation, _ = ascent.update(gradient, ascent.init(params), params)
    there = optax.tree.add(params, perturbation)
    return per_example.gradient_norms(loss, params, batch), loss(there, batch) - loss(params, batch)
