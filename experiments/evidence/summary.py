"""From the lines of a task's results to what can be said of each candidate."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.evidence.candidates import CANDIDATES
from experiments.evidence.plan import best_point
from experiments.evidence.tasks import TASKS, EvidenceTask
from experiments.reports.intervals import margin, share
from experiments.running.records import read_metrics
from experiments.running.scores import Score, score_of
from experiments.running.timing import relative_time

# What the question asks of a method: so much of SAM's gain, in so many times the base's time.
ENOUGH, AS_CHEAP = 0.9, 1.1


class Interval(NamedTuple):
    """A mean, and half the width of its 95 % interval."""

    mean: float
    margin: float

    @property
    def beyond_zero(self) -> bool:
        """Whether the interval lies above 0."""
        return self.mean - self.margin > 0


class Kept(NamedTuple):
    """One candidate on one task.

    Attributes:
      name: of the candidate.
      point: the chosen numbers.
      score: on the test part, over seeds.
      gain: over the base, in the same seeds; more is better, for losses too.
      over_sam: over SAM, likewise.
      share: of SAM's gain, and its interval; None where SAM's own gain is within its interval.
      gradients: per step.
      time: of a training, relative to the base's, and the quartiles of its steps; None where it was not
        measured.
      eigenvalue: the largest, mean over the seeds in which it was measured.
      seeds: how many.
      cost: gradients that the search took, in runs of the base.
    """

    name: str
    point: dict[str, Any]
    score: Interval
    gain: Interval | None
    over_sam: Interval | None
    share: tuple[float, float, float] | None
    gradients: float
    time: tuple[float, float, float] | None
    eigenvalue: float | None
    seeds: int
    cost: float

    @property
    def answers(self) -> bool:
        """Whether it keeps enough of SAM's gain, and is as cheap as the base."""
        return (
            self.share is not None
            and self.share[0] >= ENOUGH
            and self.time is not None
            and self.time[0] <= AS_CHEAP
        )


class Summary(NamedTuple):
    """A task with all its candidates, in their order.

    Attributes:
      name: of the task.
      task: itself.
      score: what it is judged by.
      kept: the candidates that have been tested.
      environment: versions, machine, revision and command of the last process that has added to it.
    """

    name: str
    task: EvidenceTask
    score: Score
    kept: dict[str, Kept]
    environment: dict[str, Any]

    @property
    def gains(self) -> bool:
        """Whether SAM's gain over the base is beyond its interval."""
        gain = self.kept["sam"].gain if "sam" in self.kept else None
        return gain is not None and gain.beyond_zero


def read(folder: Path) -> list[Summary]:
    """The summaries of all tasks on which the base and SAM have been tested, in their order."""
    found = [summary(name, folder / f"{name}.jsonl") for name in TASKS if (folder / f"{name}.jsonl").exists()]
    return [each for each in found if {"base", "sam"} <= each.kept.keys()]


def summary(name: str, file: Path) -> Summary:
    """What the results of a task say."""
    task, rows = TASKS[name], read_metrics(file)
    search = rows if task.searched_on is None else read_metrics(file.with_name(f"{task.searched_on}.jsonl"))
    score = score_of(vars(task.setup))
    searched = {row["candidate"] for row in search if row["phase"] == "tune"}
    chosen = {
        candidate: best_point(task, search, candidate) for candidate in CANDIDATES if candidate in searched
    }
    tested = {candidate: scores_of(rows, candidate, point, score) for candidate, point in chosen.items()}
    whole = {candidate: scores for candidate, scores in tested.items() if len(scores) == task.seeds}
    kept = {name: kept_of(rows, search, name, chosen[name], whole, score) for name in whole}
    environments = [row for row in rows if row["phase"] == "environment"]
    return Summary(name, task, score, kept, environments[-1])


def scores_of(
    rows: Sequence[Mapping[str, Any]], name: str, point: Mapping[str, Any], score: Score
) -> dict[int, float]:
    """A candidate's scores on the test part by seed, at the chosen point, times -1 where less is better."""
    mine = tests_of(rows, name, point)
    return {row["seed"]: score.sign * score.value(row["score"]) for row in mine}


def tests_of(
    rows: Sequence[Mapping[str, Any]], name: str, point: Mapping[str, Any]
) -> list[Mapping[str, Any]]:
    """The tests of a candidate at a point."""
    return [
        row for row in rows if row["phase"] == "test" and row["candidate"] == name and row["point"] == point
    ]


def kept_of(
    rows: Sequence[Mapping[str, Any]],
    search: Sequence[Mapping[str, Any]],
    name: str,
    point: dict[str, Any],
    tested: Mapping[str, dict[int, float]],
    score: Score,
) -> Kept:
    """What there is to say of a candidate."""
    tests = tests_of(rows, name, point)
    trials = [row for row in search if row["phase"] == "tune" and row["candidate"] == name]
    scores, base, sam = tested[name], tested.get("base"), tested.get("sam")
    gain = None if base is None or name == "base" else difference(scores, base)
    of_sam = (
        share(paired(scores, base), paired(sam, base))
        if base and sam and name not in ("base", "sam")
        else None
    )
    eigenvalues = [row["top_eigenvalue"] for row in tests if row.get("top_eigenvalue") is not None]
    own = interval(list(scores.values()))
    return Kept(
        name,
        point,
        Interval(score.sign * own.mean, own.margin),
        gain,
        None if sam is None or name in ("base", "sam") else difference(scores, sam),
        of_sam,
        statistics.mean(row["gradients_per_step"] for row in tests) * CANDIDATES[name].passes,
        time_of(rows, name),
        statistics.mean(eigenvalues) if eigenvalues else None,
        len(scores),
        sum(row["gradients_per_step"] for row in trials) * CANDIDATES[name].passes,
    )


def interval(values: Sequence[float]) -> Interval:
    """The mean and Student's interval."""
    return Interval(float(np.mean(values)), float(margin(np.array(values))))


def paired(one: Mapping[int, float], other: Mapping[int, float]) -> list[float]:
    """Differences in the same seeds."""
    return [one[seed] - other[seed] for seed in sorted(set(one) & set(other))]


def difference(one: Mapping[int, float], other: Mapping[int, float]) -> Interval:
    """The paired difference."""
    return interval(paired(one, other))


def time_of(rows: Sequence[Mapping[str, Any]], name: str) -> tuple[float, float, float] | None:
    """A training's time relative to the base's, and the quartiles of its steps; twice the passes take two.

    Of several occasions on which it was timed the longest counts.
    """
    passes = float(CANDIDATES[name].passes)
    if passes > 1:
        return passes, passes, passes
    occasions, base = [], np.array([])
    for row in rows:
        if row["phase"] == "time":
            rounds = np.array(row["rounds"])
            base = rounds if row["candidate"] == "base" else base  # before those it is beside
            occasions += [(rounds, base)] if row["candidate"] == name else []
    if not occasions:
        return None
    low, high = np.percentile(np.concatenate([own / base for own, base in occasions]), (25, 75))
    return max(relative_time(*each) for each in occasions), float(low), float(high)


def answering(summaries: Sequence[Summary]) -> dict[str, list[str]]:
    """For each candidate the tasks on which it keeps enough of a gain that is there, at the base's time."""
    gaining = [each for each in summaries if each.gains]
    return {
        name: [each.name for each in gaining if name in each.kept and each.kept[name].answers]
        for name in CANDIDATES
    }
