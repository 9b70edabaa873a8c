"""The methods that are compared, and where each of their numbers is searched."""

import dataclasses
from typing import Any

from experiments.data import with_defaults
from experiments.evidence.tasks import EvidenceTask

Point = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A method of the comparison.

    Attributes:
      title: in tables.
      method: its name on the command line.
      number: the setting that is searched beside the learning rate; None is the weight decay.
      values: where; empty is SAM's radii times `scale`.
      scale: of the radii, relative to SAM's: what is perturbed seldom or along a mean stands more.
      adaptive_scale: the same before Adam, if it differs.
      rate_scale: times the learning rates of the others: of a method whose descent has another length.
      passes: times the epochs of the others.
      of_adapters: whether it is for tasks that train adapters alone.
      of_wrong_labels: whether it is for tasks with wrong labels alone.
    """

    title: str
    method: str
    number: str | None = "rho"
    values: tuple[float, ...] = ()
    scale: float = 1.0
    adaptive_scale: float | None = None
    rate_scale: float = 1.0
    passes: int = 1
    of_adapters: bool = False
    of_wrong_labels: bool = False

    def grid(self, task: EvidenceTask) -> dict[str, tuple[float, ...]]:
        """The axes of the coarse grid."""
        if self.number is None:
            beyond = task.rates[-1] * (task.rates[-1] / task.rates[-2]) ** 0.5
            return {"learning_rate": (*task.rates, round(beyond, 5)), "weight_decay": task.decays}
        adaptive = self.scale if task.setup.optimizer == "sgd" else self.adaptive_scale
        scale = self.scale if adaptive is None else adaptive
        values = self.values or tuple(float(f"{radius * scale:.3g}") for radius in task.radii)
        rates = tuple(rate * self.rate_scale for rate in task.rates)
        return {"learning_rate": rates, self.number: values}


CANDIDATES = {
    "base": Candidate("base", "sgd", number=None),
    "sam": Candidate("SAM", "sam"),
    "momentum_sam": Candidate("Momentum SAM", "momentum_sam", scale=8.0, adaptive_scale=2.0),
    "twice": Candidate("base, twice the epochs", "sgd", number=None, passes=2),
    "averaged": Candidate("average of weights", "averaged", "average_steps", (10.0, 30.0, 100.0, 300.0)),
    "ham": Candidate("HAM", "ham", "mirror_strength", (2.0, 10.0, 50.0, 200.0)),
    "last_layer_l2": Candidate(
        "L2 of the last layer", "last_layer_l2", "penalty", (1e-3, 3e-3, 1e-2, 3e-2), of_wrong_labels=True
    ),
    "ausam": Candidate("AUSAM", "ausam"),
    "vsam": Candidate("vSAM", "vsam", scale=2.0),
    "rst": Candidate("RST", "rst", scale=1.5),
    "grst": Candidate("G-RST", "grst", scale=1.5),
    "drawn_vsam": Candidate("AUSAM + vSAM", "drawn_vsam", scale=1.5),
    "late_sam": Candidate("late SAM", "late_sam", scale=1.5),
    "friendly_looksam": Candidate("Friendly + LookSAM", "friendly_looksam", scale=0.5),
    "pugd": Candidate("PUGD", "pugd", "radius", (0.25, 1.0, 4.0, 16.0), rate_scale=0.25),
    "tsam": Candidate("TSAM", "tsam"),
    "flat_lora": Candidate(
        "Flat-LoRA", "flat_lora", "noise_scale", (0.025, 0.05, 0.1, 0.2), of_adapters=True
    ),
    "bi_lora": Candidate("Bi-LoRA", "bi_lora", of_adapters=True),
}


def candidates_of(task: EvidenceTask) -> tuple[str, ...]:
    """Those that a task can be trained with."""
    adapted = task.setup.adapter_rank is not None
    wrong = task.labels is not None or bool(with_defaults(task.setup).label_noise)
    return tuple(
        name
        for name, each in CANDIDATES.items()
        if adapted >= each.of_adapters and wrong >= each.of_wrong_labels
    )
