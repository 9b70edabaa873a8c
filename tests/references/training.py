"""A training run under way: what the loops of the references share beside their equations."""

from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any, TypedDict

import numpy as np

from . import network
from .trajectory import MomentumSGD, Record, Schedule, measured, note, weighted_mean, weights_at
from .trees import Tree, add, norm, tree_map

Model = ModuleType | SimpleNamespace
WHOLE = slice(None)


class Base(TypedDict, total=False):
    """The arguments that every reference takes beside its own: `Training` has their defaults."""

    lr: Schedule
    momentum: float
    weight_decay: float
    weights: list | None
    model: Model


class Training:
    """Iterates over the steps; every step measures once and ends with `descend`.

    Between the two, `params`, `batch` and `w` (the example weights) are those of the step.
    Perturbations are named `e`: None stands for the parameters as they are. `rows` are positions
    in the batch.
    """

    def __init__(
        self,
        params: Tree,
        batches: list[dict],
        *,
        lr: Schedule = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        weights: list | None = None,
        model: Model = network,
    ):
        self.params, self.batches, self.weights, self.model = params, batches, weights, model
        self.base = MomentumSGD(params, lr, momentum, weight_decay)
        self.record: Record = {}
        self.batch: dict = {}
        self.w: np.ndarray | None = None

    def __iter__(self) -> Iterator[int]:
        for t, batch in enumerate(self.batches):
            self.batch, self.w = batch, weights_at(self.weights, t)
            yield t

    def __len__(self) -> int:
        return len(next(iter(self.batch.values())))

    def real(self) -> np.ndarray:
        """Which rows of the batch are examples, not padding."""
        return np.ones(len(self), bool) if self.w is None else np.asarray(self.w) != 0

    def point(self, e: Tree | None) -> Tree:
        """The parameters, moved by `e`."""
        return self.params if e is None else add(self.params, e)

    def part(self, rows: Any) -> tuple[dict, np.ndarray | None]:
        """Some rows of the batch, and their weights."""
        return {k: leaf[rows] for k, leaf in self.batch.items()}, None if self.w is None else self.w[rows]

    def gradient(self, e: Tree | None = None, rows: Any = WHOLE, model: Model | None = None) -> Tree:
        """The gradient of the mean loss."""
        return (model or self.model).gradient(self.point(e), *self.part(rows))

    def losses(self, e: Tree | None = None, rows: Any = WHOLE, model: Model | None = None) -> np.ndarray:
        """The loss of every example."""
        return (model or self.model).losses(self.point(e), self.part(rows)[0])

    def loss(self, e: Tree | None = None, rows: Any = WHOLE, model: Model | None = None) -> float:
        """The mean loss."""
        return weighted_mean(self.losses(e, rows, model), self.part(rows)[1])

    def measure_plain(self, g: Tree, **others: Any) -> None:
        """A step that took no second gradient and perturbed nothing."""
        values = measured(self.model, self.params, self.batch, self.w, g)
        values |= {"grads": g, "perturbation": tree_map(lambda leaf: np.full_like(leaf, np.nan), g)}
        note(self.record, **(values | others))

    def measure_pair(self, g: Tree, e: Tree, gs: Tree, rows: Any = WHOLE, **others: Any) -> None:
        """A step with the gradient `g` at the parameters and `gs` at `e`; `others` overrule."""
        values = {"perturbed": True, "grads": g, "perturbation": e}
        values |= {"loss": self.loss(rows=rows), "perturbed_loss": self.loss(e, rows)}
        values |= {"grad_norm": norm(g), "perturbed_grad_norm": norm(gs), "perturbation_norm": norm(e)}
        note(self.record, **(values | others))

    def measure_ahead(self, e: Tree, g: Tree, **others: Any) -> None:
        """A step whose one gradient `g` is at `e`."""
        values = {"perturbed": True, "grads": g, "perturbation": e}
        values |= {"loss": self.loss(e), "perturbed_loss": np.nan}
        values |= {"grad_norm": norm(g), "perturbed_grad_norm": np.nan, "perturbation_norm": norm(e)}
        note(self.record, **(values | others))

    def descend(self, descent: Tree, **others: Any) -> None:
        """The step of the base optimizer; `others` go into the record."""
        self.params = self.base.step(self.params, descent)
        note(self.record, params=self.params, descent=descent, **others)
