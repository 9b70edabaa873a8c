"""Runs read from their folders, and grouped by their data and all their settings but the seed."""

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.data.kinds import kind_of
from experiments.methods import NAMES
from experiments.methods.names import BASE_TITLES, title
from experiments.running import records
from experiments.running.queue import is_set_aside
from experiments.running.scores import Score, score_of
from experiments.settings import SettingsError, Setup
from experiments.settings.of_method import MethodSettings

# Numbers of the base optimizer. Tuned ones are filled in, and may be another method's others.
OF_BASE = ("learning_rate", "weight_decay")

# Settings that each method has its own values of; they tell runs of one method apart.
OWN = (*OF_BASE, *(field.name for field in dataclasses.fields(MethodSettings)))

# The others make another task, on which methods are compared.
TASK = tuple(
    field.name for field in dataclasses.fields(Setup) if field.name not in (*records.MAY_CHANGE, *OWN)
)


# The settings that decide the data, as long as no file of theirs is replaced.
OF_DATA = ("data", "horizon", "train_examples", "label_noise", "labels", "evaluate_on", "stream")


class Run(NamedTuple):
    """What a finished run has left.

    Attributes:
      folder: where.
      config: content of config.json.
      result: content of result.json.
      lines: of metrics.jsonl.
    """

    folder: Path
    config: dict[str, Any]
    result: dict[str, Any]
    lines: list[dict[str, Any]]

    @property
    def settings(self) -> dict[str, Any]:
        """All settings."""
        return self.config["settings"]

    @property
    def digest(self) -> str | None:
        """Digest of the data; None in a run of an earlier version."""
        return self.config.get(records.DIGEST)


class Group(NamedTuple):
    """Runs that differ in nothing but the seed.

    Attributes:
      label: what tells it from the other groups.
      runs: by seed.
    """

    label: str
    runs: dict[int, Run]

    @property
    def settings(self) -> dict[str, Any]:
        """Those of the first run."""
        return next(iter(self.runs.values())).settings

    @property
    def task(self) -> list[Any]:
        """What is the same where methods are compared: settings, and the data."""
        run = next(iter(self.runs.values()))
        return [*(run.settings.get(name) for name in TASK), run.digest]

    @property
    def score(self) -> Score:
        """What the runs are judged by."""
        return score_of(self.settings)

    def results(self, name: str) -> list[float]:
        """A number of every run's result; the worst score where a run diverged."""
        return [self.value(name, run.result[name]) for run in self.runs.values()]

    def curves(self, name: str) -> np.ndarray:
        """A number after every epoch with a look at the test part [runs, looks]."""
        looks = [evaluated(run.lines) for run in self.runs.values()]
        return np.array([[self.value(name, line[name]) for line in look] for look in looks], float)

    def value(self, name: str, recorded: float | None) -> float:
        """A number of a record, where null stands for what is not finite."""
        if name == self.score.name:
            return self.score.value(recorded)
        return math.inf if recorded is None else recorded

    def rises(self) -> np.ndarray:
        """How much the loss rose in the last step of every epoch, as a part of itself [runs, epochs]."""
        rows = [[line.get("relative_rise") for line in run.lines] for run in self.runs.values()]
        return np.array([[np.nan if rise is None else rise for rise in row] for row in rows], float)


# Every look has left some of these.
LOOKS = {f"{part}_{metric}" for part in ("test", "validation") for metric in ("accuracy", "loss")}


def evaluated(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those of the epochs after which the test part was looked at."""
    return [line for line in lines if not LOOKS.isdisjoint(line)]


def folders_of_runs(folders: Sequence[Path]) -> Iterator[Path]:
    """Folders that are runs or hold them, set aside ones left out."""
    for folder in folders:
        if not folder.is_dir():
            raise SettingsError(f"{folder} is no folder: give one with runs in it")
        for file in sorted(folder.rglob("config.json")):
            if file.parent == folder or not is_set_aside(file.parent):
                yield file.parent


def read_run(folder: Path) -> Run | None:
    """A run; None if it is not finished.

    Raises:
      SettingsError: a file is broken; it says which.
    """
    if not (folder / "result.json").exists():
        return None
    config, result = (records.read_json(folder / name) for name in ("config.json", "result.json"))
    lines, settings = records.read_metrics(folder / "metrics.jsonl"), config.get("settings")
    settings = settings if isinstance(settings, dict) else {}
    needed = {
        "config.json": ([settings], ("method", "data", "seed", "epochs")),
        "result.json": ([result], ("gradients_per_step", "step_seconds")),
        "metrics.jsonl": (lines or [{}], ("seconds", "gradients")),
    }
    for file, (contents, names) in needed.items():
        for name in names:
            if any(content.get(name) is None for content in contents):
                raise SettingsError(f"{folder / file} has no {name}: train the run again")
    if score_of(settings).name not in result:
        raise SettingsError(f"{folder / 'result.json'} has no {score_of(settings).name}: train the run again")
    if len(lines) != config["settings"]["epochs"] or not evaluated(lines[-1:]):
        raise SettingsError(f"{folder / 'metrics.jsonl'} has not all epochs: train the run again")
    return Run(folder, config, result, lines)


def grouped(found: Sequence[Run]) -> list[Group]:
    """The groups, each with its label; SGD and SAM first."""
    by_key: dict[str, dict[int, Run]] = {}
    for run in sorted(found, key=place):
        by_key.setdefault(key(run), {}).setdefault(run.settings["seed"], run)
    firsts = [next(iter(runs.values())) for runs in by_key.values()]
    labels = [label(each, firsts) for each in firsts]
    return [Group(text, runs) for text, runs in zip(labels, by_key.values(), strict=True)]


def key(run: Run) -> str:
    """The data and all settings that decide numbers, the seed aside; one that is missing is null."""
    decisive = {
        name: value
        for name, value in sorted(run.settings.items())
        if name not in (*records.MAY_CHANGE, "seed") and value is not None
    }
    return json.dumps([decisive, run.digest])


def place(run: Run) -> tuple[Any, ...]:
    """Where a run stands among others: by task, method, settings and seed."""
    values = run.settings
    method = NAMES.index(values["method"]) if values["method"] in NAMES else len(NAMES)
    others = [(str(type(values.get(name))), values.get(name)) for name in (*TASK, *OWN)]
    return (others[: len(TASK)], run.digest or "", method, others[len(TASK) :], values["seed"])


def label(run: Run, runs: Sequence[Run]) -> str:
    """A method's name, the settings in which its groups differ, those in which any do, and other data.

    Learning rate and decay are among these, where methods of one task have several.
    """
    settings, all_settings = run.settings, [each.settings for each in runs]
    same_method = [each for each in all_settings if each["method"] == settings["method"]]
    same_task = [each for each in all_settings if not any(differ(name, [each, settings]) for name in TASK)]
    names = [
        name for name in OWN if differ(name, same_method) or (name in OF_BASE and differ(name, same_task))
    ]
    names += [name for name in TASK if differ(name, all_settings)]
    parts = [f"{name.replace('_', ' ')} {shown(settings.get(name))}" for name in names]
    if len({each.digest for each in runs if same_data_asked(each.settings, settings)}) > 1:
        parts.append(f"data {(run.digest or 'unknown')[:8]}")
    alone = BASE_TITLES.get(settings.get("optimizer", "sgd"), "SGD")
    name = alone if settings["method"] == "sgd" else title(settings["method"])
    return ", ".join([name, *parts])


def same_data_asked(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether the settings say that two runs have the same data; each network may read text in its way."""
    names = (*OF_DATA, "model") if kind_of(one["data"]) == "text" else OF_DATA
    return all(one.get(name) == other.get(name) for name in names)


def differ(name: str, settings: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a setting has several values."""
    return len({json.dumps(each.get(name)) for each in settings}) > 1


def shown(value: Any) -> str:
    """A value of a setting as text."""
    words = value if isinstance(value, list) else [value]
    return "+".join("none" if word is None else str(word) for word in words) or "none"
