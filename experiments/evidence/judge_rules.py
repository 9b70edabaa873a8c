"""Trains the rules without a radius: `python -m experiments.evidence.judge_rules --help`.

A rule has the learning rate and the decay of the tuned SAM, so that the radius alone is judged. Its constant
is tried on the design tasks, and written by hand into `rules.py`. The judging tasks are then run once, in the
seeds in which the base and SAM were tested.
"""

import dataclasses
import itertools
from pathlib import Path
from typing import Literal

import tyro
from rich.progress import Progress

from experiments.evidence import plan
from experiments.evidence.__main__ import RESULTS, Book, EvidenceSettings, alone_with, train
from experiments.evidence.candidates import Point
from experiments.evidence.rules import DESIGN, JUDGING, RULES
from experiments.evidence.tasks import TASKS
from experiments.running import records
from experiments.running.progress import progress_bar
from experiments.running.scores import score_of
from experiments.settings import SettingsError, require
from experiments.settings.command_line import command_line, program


@dataclasses.dataclass(frozen=True)
class RulesSettings:
    """Try the rules' constants on a design task, or judge the frozen ones on any task.

    Every finished run is a line of the results. The same command continues after an interruption.
    """

    task: tyro.conf.Positional[str]
    """mnist1d or digits, the design tasks, or mnist1d_noise20, etth1_96, ..."""
    rules: tuple[str, ...] = tuple(RULES)
    """Which rules to try."""
    phases: tuple[Literal["choose", "judge"], ...] = ("judge",)
    """choose tries all constants, on a design task. judge takes the chosen ones."""
    numbers_of: Literal["sam", "base"] = "sam"
    """Whose learning rate and decay to use: those of the tuned SAM, or those of the tuned base."""
    seeds: int = 10
    """Runs of each constant."""
    data: Path | None = None
    """Folder that holds `ett`. None reads where experiments.train does."""
    results: Path = RESULTS
    """Folder of the JSON lines, with those of experiments.evidence."""
    out: Path = Path("runs/rules")
    """Folder of the runs that are not side by side."""


def main(args: list[str] | None = None) -> None:
    """The command line."""
    command_line(RulesSettings, rules, args, "the same command continues")


def rules(settings: RulesSettings) -> None:
    """Does what is not in the results yet."""
    for given, known in (((settings.task,), (*DESIGN, *JUDGING)), (settings.rules, RULES)):
        for name in given:
            if name not in known:
                raise SettingsError(f"{name} is not known: give {', '.join(known)}")
    require(settings.seeds >= 1, settings, "seeds", "give 1 or more")
    if "choose" in settings.phases and settings.task not in DESIGN:
        raise SettingsError(f"{settings.task} is a judging task: give --phases judge, or {DESIGN[0]}")
    numbers = reference(settings.task, settings.results)[settings.numbers_of]
    numbers = {name: numbers[name] for name in ("learning_rate", "weight_decay")}
    file = file_of(settings.task, settings.results)
    with alone_with(file), progress_bar() as bar:
        book = Book(file)
        for name in settings.rules:
            for phase in settings.phases:
                (choose if phase == "choose" else judge)(settings, name, numbers, book, bar)


def file_of(task: str, results: Path) -> Path:
    """Where the lines of a task are."""
    return results / f"rules_{task}.jsonl"


def judging_seeds(count: int) -> range:
    """The first of the evidence's test seeds."""
    return range(plan.FIRST_TEST_SEED, plan.FIRST_TEST_SEED + count)


def reference(name: str, results: Path) -> dict[str, Point]:
    """The numbers of the tuned base and of the tuned SAM, from the task's search or the one it shares."""
    task = TASKS[name]
    rows = records.read_metrics(results / f"{task.searched_on or name}.jsonl")
    decay = {"weight_decay": task.decays[1]}
    return {each: decay | plan.best_point(task, rows, each) for each in ("base", "sam")}


def choose(settings: RulesSettings, name: str, numbers: Point, book: Book, bar: Progress) -> None:
    """Tries the constants of a rule on a design task."""
    points = [numbers | {RULES[name].constant: value} for value in RULES[name].values]
    run(settings, name, [*itertools.product(points, range(settings.seeds))], book, bar)


def tried(task: str, name: str, results: Path) -> dict[float, float]:
    """The mean score of each constant that was tried on a design task; more is better."""
    score = score_of(vars(TASKS[task].setup))
    found: dict[float, list[float]] = {}
    for row in records.read_metrics(file_of(task, results)):
        if row.get("candidate") == name and row["seed"] < plan.FIRST_TEST_SEED:
            scores = found.setdefault(row["point"][RULES[name].constant], [])
            scores.append(score.sign * score.value(row["score"]))
    return {value: sum(scores) / len(scores) for value, scores in found.items()}


def judge(settings: RulesSettings, name: str, numbers: Point, book: Book, bar: Progress) -> None:
    """Tests a rule with its frozen constant."""
    rule = RULES[name]
    if rule.chosen is None:
        raise SettingsError(f"{name} has no constant yet: choose it on {' and '.join(DESIGN)} first")
    point = numbers | {rule.constant: rule.chosen}
    run(settings, name, [(point, seed) for seed in judging_seeds(settings.seeds)], book, bar)


def run(
    settings: RulesSettings, name: str, wanted: list[tuple[Point, int]], book: Book, bar: Progress
) -> None:
    """Trains what is not in the results yet."""
    task = EvidenceSettings(settings.task, data=settings.data, results=settings.results, out=settings.out)
    train(task, "test", name, wanted, book, bar, eigenvalues=False)


if __name__ == "__main__":
    program(main)
