"""What every training loop shares: the base optimizer, schedules, and the record of a run."""

from collections.abc import Callable
from typing import Any

import numpy as np

from .trees import Tree, norm, scale, tree_map, zeros_like

Record = dict[str, list]
Schedule = float | Callable[[int], float]


class MomentumSGD:
    """v <- mu v + (grad + wd w);  w <- w - lr v."""

    def __init__(self, params: Tree, lr: Schedule, momentum: float, weight_decay: float):
        self.lr, self.momentum, self.weight_decay = lr, momentum, weight_decay
        self.velocity, self.count = zeros_like(params), 0

    def step(self, params: Tree, grads: Tree) -> Tree:
        """Returns the new parameters."""
        decayed = tree_map(lambda g, w: g + self.weight_decay * w, grads, params)
        self.velocity = tree_map(lambda v, d: self.momentum * v + d, self.velocity, decayed)
        update = scale(value_at(self.lr, self.count), self.velocity)
        self.count += 1
        return tree_map(np.subtract, params, update)


def value_at(value: Schedule, step: int) -> float:
    """The value of a number or of a schedule at a step."""
    return float(value(step)) if callable(value) else float(value)


def weights_at(weights: list | None, step: int) -> np.ndarray | None:
    """The example weights of a step; None stands for ones."""
    return None if weights is None else weights[step]


def weighted_mean(values: np.ndarray, weights: np.ndarray | None = None) -> float:
    """sum(w l) / sum(w) over the rows of nonzero weight; 0 if there are none."""
    if weights is None:
        weights = np.ones(len(values))
    kept = weights != 0
    return float(np.sum(weights[kept] * values[kept]) / np.sum(weights[kept])) if kept.any() else 0.0


def note(record: Record, **values: Any) -> None:
    """Appends one value to each named list of the record."""
    for name, value in values.items():
        record.setdefault(name, []).append(value)


def measured(
    model: Any, params: Tree, batch: dict, weights: np.ndarray | None, grads: Tree
) -> dict[str, Any]:
    """What a step without a second gradient measures; the rest is NaN."""
    return {
        "perturbed": False,
        "loss": weighted_mean(model.losses(params, batch), weights),
        "perturbed_loss": np.nan,
        "grad_norm": norm(grads),
        "perturbed_grad_norm": np.nan,
        "perturbation_norm": np.nan,
    }


def measured_twice(
    model: Any,
    params: Tree,
    batch: dict,
    weights: np.ndarray | None,
    grads: Tree,
    perturbation: Tree,
    perturbed_grads: Tree,
) -> dict[str, Any]:
    """What a step with a gradient at `params` and one at `params + perturbation` measures."""
    there = tree_map(np.add, params, perturbation)
    return {
        "perturbed": True,
        "loss": weighted_mean(model.losses(params, batch), weights),
        "perturbed_loss": weighted_mean(model.losses(there, batch), weights),
        "grad_norm": norm(grads),
        "perturbed_grad_norm": norm(perturbed_grads),
        "perturbation_norm": norm(perturbation),
    }
