"""Tunes, tests and times the candidates on a task: `python -m experiments.evidence --help`."""

import contextlib
import dataclasses
import functools
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import tyro
from filelock import FileLock, Timeout
from rich.progress import Progress

from experiments.data import Data, load
from experiments.evidence import plan
from experiments.evidence.candidates import CANDIDATES, Point, candidates_of
from experiments.evidence.tasks import TASKS, EvidenceTask
from experiments.running import records
from experiments.running.programs import compile_programs, structure
from experiments.running.progress import progress_bar
from experiments.running.run import run
from experiments.running.scores import score_of
from experiments.running.sharpness import top_eigenvalues
from experiments.running.side_by_side import compile_side_by_side, run_side_by_side
from experiments.running.timing import step_seconds
from experiments.running.training import judged
from experiments.settings import Settings, SettingsError, require
from experiments.settings.command_line import command_line, program
from optax_sam.sharpness import NotFiniteError

RESULTS = Path(__file__).parents[1] / "results"
MEASURED_SEEDS = 3
TIMED_ROUNDS = 30

Phase = Literal["tune", "test", "time"]


@dataclasses.dataclass(frozen=True)
class EvidenceSettings:
    """Compare the candidates on one task: search their numbers, test them, time their steps.

    Every finished run is a line of the results. The same command continues after an interruption.
    """

    task: tyro.conf.Positional[str]
    """mnist1d, etth1_96, trec, ... Any other word lists all."""
    candidates: tuple[str, ...] | None = None
    """Which candidates to compare. None takes all that the task can be trained with."""
    phases: tuple[Phase, ...] = ("tune", "test", "time")
    """What to do, in this order."""
    data: Path | None = None
    """Folder that holds `ett` and `tensorflow_datasets`. None reads where experiments.train does."""
    results: Path = RESULTS
    """Folder of the JSON lines."""
    out: Path = Path("runs/evidence")
    """Folder of the runs that are not side by side."""


def main(args: list[str] | None = None) -> None:
    """The command line."""
    command_line(EvidenceSettings, evidence, args, "the same command continues")


def evidence(settings: EvidenceSettings) -> None:
    """Does what is not in the results yet."""
    require(settings.candidates != (), settings, "candidates", "give some, or leave it out")
    check_known([settings.task], TASKS)
    task = TASKS[settings.task]
    candidates = candidates_of(task) if settings.candidates is None else settings.candidates
    check_known(candidates, CANDIDATES)
    for name in candidates:
        if name not in candidates_of(task):
            needed = "adapters" if CANDIDATES[name].of_adapters else "wrong labels"
            raise SettingsError(
                f"{name} is for tasks with {needed}, which {settings.task} has not: leave it out"
            )
    if settings.data is None and task.folder == "ett":
        raise SettingsError(f"{settings.task} reads files: give the folder of {task.folder}/ as --data")
    file = settings.results / f"{settings.task}.jsonl"
    with alone_with(file), progress_bar() as bar:
        book = Book(file)
        if "tune" in settings.phases and task.searched_on is None:
            for name in candidates:
                tune(settings, name, book, bar)
            if "base" in candidates:
                search_as_long(settings, book, bar)
        if "test" in settings.phases:
            for name in candidates:
                test(settings, name, book, bar)
        if "time" in settings.phases:
            time_steps(settings, candidates, book, bar)


def check_known(names: Iterable[str], known: Iterable[str]) -> None:
    """Refuses a name that is none of those that there are."""
    for name in names:
        if name not in known:
            raise SettingsError(f"{name} is not known: give {', '.join(known)}")


@contextlib.contextmanager
def alone_with(file: Path) -> Iterator[None]:
    """Keeps other processes from the same results: each would train what the other does."""
    with records.disk_errors(file.parent):
        file.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(FileLock(f"{file}.lock", blocking=False))
        except Timeout:
            raise SettingsError(f"another process adds to {file}: wait, or give another task") from None
        yield


class Book:
    """The results of a task: a file of JSON lines, each on the disk before the next run begins."""

    def __init__(self, file: Path):
        """Reads what is there; a torn last line is cut off."""
        self.file = file
        if file.exists() and not (text := file.read_bytes()).endswith(b"\n"):
            with records.disk_errors(file.parent):
                os.truncate(file, text.rfind(b"\n") + 1)
        self.rows = records.read_metrics(file)
        self.environment: dict[str, Any] | None = None

    def add(self, row: dict[str, Any]) -> None:
        """Adds a line, and before the first one what this process runs with."""
        with records.disk_errors(self.file.parent):
            with self.file.open("a") as stream:
                if self.environment is None:
                    self.environment = records.environment()
                    stream.write(json.dumps({"phase": "environment"} | self.environment) + "\n")
                stream.write(json.dumps(records.finite(row)) + "\n")
                stream.flush()
                os.fsync(stream.fileno())
        self.rows.append(row)

    def has(self, phase: str, name: str, point: Point, seed: int) -> bool:
        """Whether a run is finished."""
        wanted = {"phase": phase, "candidate": name, "point": point, "seed": seed}
        return any(wanted.items() <= row.items() for row in self.rows)


def tune(settings: EvidenceSettings, name: str, book: Book, bar: Progress) -> None:
    """Searches a candidate's numbers: the coarse grid, then around its best point."""
    task, candidate = TASKS[settings.task], CANDIDATES[name]
    coarse = plan.coarse(task, candidate)
    train(settings, "tune", name, [*itertools.product(coarse, range(task.trials))], book, bar)
    if task.refines:
        tried = [row for row in book.rows if row.get("point") in coarse]
        finer = plan.refined(task, candidate, plan.best_point(task, tried, name))
        train(settings, "tune", name, [*itertools.product(finer, range(task.trials))], book, bar)
    same = plan.with_decay_of_base(task, book.rows, name)
    train(settings, "tune", name, [*itertools.product(same, range(task.trials))], book, bar)
    while points := plan.beyond(task, candidate, *points_and_best(task, book, name)):
        train(settings, "tune", name, [*itertools.product(points, range(task.trials))], book, bar)


def search_as_long(settings: EvidenceSettings, book: Book, bar: Progress) -> None:
    """Gives the base as many points as the method that has most."""
    task = TASKS[settings.task]
    most = max(len(plan.tried(task, book.rows, name)) for name in CANDIDATES)
    finer = functools.partial(plan.finer, task, CANDIDATES["base"])
    while len(plan.tried(task, book.rows, "base")) < most:
        if not (points := finer(*points_and_best(task, book, "base"))):
            break
        train(settings, "tune", "base", [*itertools.product(points, range(task.trials))], book, bar)


def points_and_best(task: EvidenceTask, book: Book, name: str) -> tuple[list[Point], Point]:
    """All points that a search has tried, and the best of them."""
    return [point for point, _ in plan.tried(task, book.rows, name)], plan.best_point(task, book.rows, name)


def searched(settings: EvidenceSettings, book: Book) -> list[dict[str, Any]]:
    """The rows that hold a task's search: its own, or another's."""
    other = TASKS[settings.task].searched_on
    return book.rows if other is None else records.read_metrics(settings.results / f"{other}.jsonl")


def test(settings: EvidenceSettings, name: str, book: Book, bar: Progress) -> None:
    """Measures a candidate on the test part, with the numbers that were chosen."""
    task = TASKS[settings.task]
    point = plan.best_point(task, searched(settings, book), name)
    seeds = range(plan.FIRST_TEST_SEED, plan.FIRST_TEST_SEED + task.seeds)
    train(settings, "test", name, [(point, seed) for seed in seeds], book, bar)


def train(
    settings: EvidenceSettings,
    phase: Literal["tune", "test"],
    name: str,
    wanted: Sequence[tuple[Point, int]],
    book: Book,
    bar: Progress,
    eigenvalues: bool = True,
) -> None:
    """Trains what is not in the results yet, and adds it."""
    task, part = TASKS[settings.task], "validation" if phase == "tune" else "test"
    eigenvalues = eigenvalues and task.eigenvalue
    left = [(point, seed) for point, seed in wanted if not book.has(phase, name, point, seed)]
    runs = [
        plan.settings_of(task, name, point, seed, part, settings.data, settings.out / settings.task)
        for point, seed in left
    ]
    for numbers, group in alike(runs):
        data = load(group[0])
        several = task.side_by_side > 1
        results = (
            side_by_side(group, data, min(task.side_by_side, len(group)), bar, phase, eigenvalues)
            if several
            else one_by_one(group, data, bar, phase, eigenvalues)
        )
        for number, result in zip(numbers, results, strict=True):
            point, seed = left[number]
            book.add({"phase": phase, "candidate": name, "point": point, "seed": seed} | result)


def alike(runs: Sequence[Settings]) -> Iterator[tuple[list[int], list[Settings]]]:
    """The runs that share their programs, and their places among all."""
    key = functools.cache(lambda number: str(structure(runs[number])))
    for _, numbers in itertools.groupby(sorted(range(len(runs)), key=key), key=key):
        places = list(numbers)
        yield places, [runs[number] for number in places]


def side_by_side(
    runs: Sequence[Settings], data: Data, count: int, bar: Progress, phase: Phase, eigenvalues: bool
) -> Iterator[dict[str, Any]]:
    """Results of runs, so many at once."""
    programs = compile_side_by_side(runs[0], data, count)
    for first in range(0, len(runs), count):
        group = list(runs[first : first + count])
        filled = group + [group[-1]] * (count - len(group))
        task = bar.add_task(f"{phase} {runs[0].method}", total=runs[0].epochs * programs.steps_per_epoch)
        done = run_side_by_side(filled, data, programs, functools.partial(bar.update, task))
        bar.remove_task(task)
        for settings, (result, _, state) in zip(group, done, strict=False):
            yield kept(settings, result, data, programs, state, eigenvalues)


def one_by_one(
    runs: Sequence[Settings], data: Data, bar: Progress, phase: Phase, eigenvalues: bool
) -> Iterator[dict[str, Any]]:
    """Results of runs, each with its folder and checkpoints."""
    programs = compile_programs(runs[0], data)
    for settings in runs:
        task = bar.add_task(f"{phase} {settings.method}", total=settings.epochs * programs.steps_per_epoch)
        result, state = run(settings, data, programs, functools.partial(bar.update, task))
        bar.remove_task(task)
        yield kept(settings, result, data, programs, state, eigenvalues)


def kept(
    settings: Settings, result: dict[str, Any], data: Data, programs: Any, state: Any, eigenvalues: bool
) -> dict[str, Any]:
    """What the results keep of a run; the first test seeds' largest eigenvalue too."""
    score = score_of(vars(settings))
    names = ("train_loss", "gradients_per_step", "steps", "seconds", "side_by_side")
    row = {"score": result[score.name]} | {name: result[name] for name in names if name in result}
    if eigenvalues and score.part == "test" and settings.seed < plan.FIRST_TEST_SEED + MEASURED_SEEDS:
        examples = programs.inputs(settings, data).examples
        with contextlib.suppress(NotFiniteError):  # a run that has diverged has none
            values = top_eigenvalues(programs.trainer, *judged(state), examples).values
            row["top_eigenvalue"] = float(jax.device_get(values)[0])
    return row


def time_steps(settings: EvidenceSettings, candidates: Sequence[str], book: Book, bar: Progress) -> None:
    """Times the steps of all candidates in turns, each in a program of its own."""
    task = TASKS[settings.task]
    names = [name for name in candidates if CANDIDATES[name].passes == 1]
    runs = {
        name: plan.settings_of(
            task,
            name,
            plan.best_point(task, searched(settings, book), name),
            0,
            "test",
            settings.data,
            settings.out,
        )
        for name in dict.fromkeys(("base", *names))
    }
    data = load(runs["base"])
    programs = {name: compile_programs(each, data) for name, each in runs.items()}
    seconds = step_seconds(runs, data, programs, TIMED_ROUNDS, bar)
    for name, each in seconds.items():
        book.add({"phase": "time", "candidate": name, "rounds": [float(f"{one:.4g}") for one in each]})


if __name__ == "__main__":
    program(main)
