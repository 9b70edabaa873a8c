"""The protocol: which runs a candidate needs, and which numbers are chosen.

Learning rate and radius (of the base, learning rate and decay) are searched on validation examples: a coarse
grid of twelve points, up to six around its best, the best one with the base's decay, and more, up to 24,
while the best one lies at an edge. Where a run takes minutes, the coarse grid has nine points, and none
around its best follow. The base gets as many points as any method. The test part is measured once, with seeds
that the search has not seen, the same for every candidate.
"""

import dataclasses
import itertools
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.evidence.candidates import CANDIDATES, Candidate, Point
from experiments.evidence.rules import RULES
from experiments.evidence.tasks import EvidenceTask
from experiments.running.scores import score_of
from experiments.settings import Settings, SettingsError
from experiments.settings.defaults import resolved
from experiments.settings.of_method import MethodSettings

FIRST_TEST_SEED = 100
MOST_POINTS = 24

OF_METHOD = {field.name for field in dataclasses.fields(MethodSettings)}

Row = Mapping[str, Any]


def coarse(task: EvidenceTask, candidate: Candidate) -> list[Point]:
    """The product of the axes."""
    axes = candidate.grid(task)
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def refined(task: EvidenceTask, candidate: Candidate, best: Point) -> list[Point]:
    """Points around the best one: each number halfway to its neighbours, or beyond the edge.

    Whose grid has the decay already gets two points more, both numbers lower and both higher, so that every
    search has as many.
    """
    axes = candidate.grid(task)
    points = [best | {name: value} for name, values in axes.items() for value in around(best[name], values)]
    if "weight_decay" not in axes:
        low, _, high = task.decays
        return points + [best | {"weight_decay": decay} for decay in (low, high)]
    ends = ({name: around(best[name], values)[end] for name, values in axes.items()} for end in (0, -1))
    return points + [point for point in ends if point not in points]


def with_decay_of_base(task: EvidenceTask, rows: Sequence[Row], name: str) -> list[Point]:
    """A method's best point with the decay that the base has chosen, if that was not tried."""
    if not tried(task, rows, "base"):
        return []
    point = best_point(task, rows, name)
    other = point | {"weight_decay": number_of(best_point(task, rows, "base"), "weight_decay", task)}
    decays = {
        number_of(each, "weight_decay", task)
        for each, _ in tried(task, rows, name)
        if each | {"weight_decay": 0} == point | {"weight_decay": 0}
    }
    return [] if other["weight_decay"] in decays else [other]


def beyond(task: EvidenceTask, candidate: Candidate, tried: Sequence[Point], best: Point) -> list[Point]:
    """Points beyond the best one, for each of its numbers that lies at an edge of all that were tried."""
    found = []
    for name, values in (candidate.grid(task) | {"weight_decay": task.decays}).items():
        seen = [number_of(point, name, task) for point in tried]
        value = number_of(best, name, task)
        if value == max(seen):
            found.append(best | {name: float(f"{value * values[-1] / values[-2]:.3g}")})
        elif value == min(seen) and values[0] > 0:
            found.append(best | {name: float(f"{value * values[0] / values[1]:.3g}")})
    return found[: max(0, MOST_POINTS - len(tried))]


def finer(task: EvidenceTask, candidate: Candidate, tried: Sequence[Point], best: Point) -> list[Point]:
    """Points halfway from the best one to the next that were tried, number by number."""
    found = []
    for name in candidate.grid(task):
        values = sorted({number_of(point, name, task) for point in tried})
        for value in around(best[name], values):
            if values[0] < value < values[-1] and value not in values:
                found.append(best | {name: value})
    return found


def number_of(point: Point, name: str, task: EvidenceTask) -> float:
    """A point's number; the weight decay is the task's where the point has none."""
    return point.get(name, task.decays[1])


def around(value: float, values: Sequence[float]) -> list[float]:
    """Halfway to the values on both sides; beyond the edge, by the ratio of the last two values."""
    at = values.index(value)
    found = []
    for step in (-1, 1):
        other = at + step
        if 0 <= other < len(values):
            found.append(between(value, values[other]))
        elif values[at - step] > 0 and value > 0:
            found.append(value * value / values[at - step])
    return [float(f"{each:.3g}") for each in found]


def between(one: float, other: float) -> float:
    """The geometric mean, or half of what is above 0."""
    return math.sqrt(one * other) if one * other > 0 else (one + other) / 2


def settings_of(
    task: EvidenceTask, name: str, point: Point, seed: int, part: str, data: Path | None, out: Path
) -> Settings:
    """A run of a candidate with chosen numbers, judged on the test or on the validation part."""
    candidate, setup = (CANDIDATES | RULES)[name], task.with_data_in(data)
    label = "-".join([name, part, *(f"{key}{value}" for key, value in point.items()), f"seed{seed}"])
    own = {key: value for key, value in point.items() if key in OF_METHOD}
    epochs = setup.epochs * candidate.passes
    values: dict[str, Any] = vars(setup) | {"weight_decay": task.decays[1]}
    values |= {key: value for key, value in point.items() if key not in OF_METHOD}
    values |= {"epochs": epochs, "evaluate_every": epochs, "checkpoint_every": max(1, epochs // 4)}
    values |= {
        "evaluate_on": part,
        "method": candidate.method,
        "seed": seed,
        "out": out / label,
        "resume": True,
    }
    return resolved(Settings(**values, method_settings=MethodSettings(**own)))


def tried(task: EvidenceTask, rows: Iterable[Row], name: str) -> list[tuple[Point, float]]:
    """The points that were tried for a candidate, each with its mean score on the validation part."""
    found: dict[tuple[Any, ...], list[float | None]] = {}
    score = score_of(vars(task.setup))
    for row in rows:
        if row.get("candidate") == name and row["phase"] == "tune":
            found.setdefault(tuple(sorted(row["point"].items())), []).append(row["score"])
    return [(dict(point), statistics.mean(map(score.value, scores))) for point, scores in found.items()]


def best_point(task: EvidenceTask, rows: Iterable[Row], name: str) -> Point:
    """The point with the best mean score; of equals, the first that was tried.

    Raises:
      SettingsError: nothing was tried.
    """
    sign = score_of(vars(task.setup)).sign
    points = tried(task, rows, name)
    if not points:
        raise SettingsError(f"the results hold no search of {name}: give --phases tune first")
    return max(points, key=lambda pair: sign * pair[1])[0]
