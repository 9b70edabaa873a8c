"""What runs are judged by: an accuracy, or a loss, on the test part or on the validation part."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from experiments.data.kinds import metric_of


class Score(NamedTuple):
    """A number of result.json by which runs are compared.

    Attributes:
      part: test or validation.
      metric: accuracy or loss.
    """

    part: str
    metric: str

    @property
    def name(self) -> str:
        """In result.json and metrics.jsonl."""
        return f"{self.part}_{self.metric}"

    @property
    def label(self) -> str:
        """In tables and pictures."""
        return f"{self.part} accuracy (%)" if self.metric == "accuracy" else f"{self.part} loss"

    @property
    def unit(self) -> float:
        """Times the number, in tables and pictures: accuracies are shares, and shown in percent."""
        return 100.0 if self.metric == "accuracy" else 1.0

    @property
    def sign(self) -> int:
        """1 where more is better, -1 where less is."""
        return 1 if self.metric == "accuracy" else -1

    @property
    def resolution(self) -> float:
        """A difference that a picture should show, in its unit."""
        return 1.0 if self.metric == "accuracy" else 0.01

    def value(self, recorded: float | None) -> float:
        """A score, where null (in a record) and NaN are those of a run that diverged: the worst there is."""
        return -self.sign * math.inf if recorded is None or math.isnan(recorded) else recorded

    def text(self, mean: float | None, spread: float | None = None) -> str:
        """A mean and its spread, in the unit; None is a number that is not finite, as in result.json."""
        if mean is None or not math.isfinite(mean):
            return "not finite"
        form = "{:.1f}" if self.metric == "accuracy" else "{:.4f}"
        numbers = [mean] if spread is None else [mean, spread]
        return " ± ".join(form.format(self.unit * number) for number in numbers)


def score_of(settings: Mapping[str, Any]) -> Score:
    """What a run with these settings is judged by."""
    return Score(settings.get("evaluate_on", "test"), metric_of(settings["data"]))
