"""Judges the radius that the finder recommends: `python -m experiments.evidence.judge_finder --help`."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import tyro

from experiments.data import load
from experiments.evidence import plan
from experiments.evidence.__main__ import RESULTS, Book, alone_with
from experiments.evidence.judge_rules import reference
from experiments.evidence.tasks import TASKS
from experiments.running.programs import compile_programs
from experiments.running.progress import progress_bar
from experiments.running.run import train_epoch
from experiments.running.standing import standing_at
from experiments.settings import Settings, SettingsError, require
from experiments.settings.command_line import command_line, program
from optax_sam import sharpness

PART = 0.1
BATCHES = 10


@dataclasses.dataclass(frozen=True)
class FinderSettings:
    """Train the tuned base for a tenth of its epochs at a constant rate, and ask for a radius there."""

    task: tyro.conf.Positional[str]
    """mnist1d, etth1_96, ... Any other word lists all."""
    seeds: int = 3
    """Runs."""
    data: Path | None = None
    """Folder that holds `ett`. None reads where experiments.train does."""
    results: Path = RESULTS
    """Folder of the JSON lines, with those of experiments.evidence."""


def main(args: list[str] | None = None) -> None:
    """The command line."""
    command_line(FinderSettings, finder, args, "the same command continues")


def finder(settings: FinderSettings) -> None:
    """Does what is not in the results yet."""
    if settings.task not in TASKS:
        raise SettingsError(f"{settings.task} is not known: give {', '.join(TASKS)}")
    require(settings.seeds >= 1, settings, "seeds", "give 1 or more")
    file = file_of(settings.task, settings.results)
    with alone_with(file):
        book = Book(file)
        seen = {row["seed"] for row in book.rows if row["phase"] == "find"}
        left = [seed for seed in range(settings.seeds) if seed not in seen]
        runs = [run_of(settings, seed) for seed in left]
        if not runs:
            return
        data = load(runs[0])
        programs = compile_programs(runs[0], data)
        with progress_bar() as bar:
            for each in runs:
                inputs = programs.inputs(each, data)
                state, task = programs.init(inputs), bar.add_task("base", total=each.epochs)
                for epoch in range(1, each.epochs + 1):
                    state, _ = train_epoch(programs, state, inputs, epoch, lambda **_: None)
                    bar.advance(task)
                _, loss, params, parts, _ = standing_at(programs.trainer, inputs, state)
                found = sharpness.radius_test(loss, params, parts[:BATCHES], eigenvalue=False)
                book.add({"phase": "find", "seed": each.seed, "epochs": each.epochs} | kept(found))


def file_of(task: str, results: Path) -> Path:
    """Where the lines of a task are."""
    return results / f"finder_{task}.jsonl"


def run_of(settings: FinderSettings, seed: int) -> Settings:
    """The beginning of the base's training."""
    task, point = TASKS[settings.task], reference(settings.task, settings.results)["base"]
    whole = plan.settings_of(task, "base", point, seed, "test", settings.data, Path())
    epochs = math.ceil(PART * whole.epochs)
    return dataclasses.replace(whole, epochs=epochs, evaluate_every=epochs, schedule="constant")


def kept(found: Any) -> dict[str, Any]:
    """What the results keep of a test."""
    numbers = {name: getattr(found, name) for name in ("recommended", "parts_at", "loss", "gradient_norm")}
    curves = {name: [float(f"{x:.4g}") for x in getattr(found, name)] for name in ("radii", "relative_rises")}
    return numbers | curves


if __name__ == "__main__":
    program(main)
