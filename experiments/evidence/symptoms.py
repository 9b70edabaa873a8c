"""Trainings in which SAM does not help, for docs/faq.md: `python -m experiments.evidence.symptoms --help`."""

import dataclasses
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import Progress

from experiments.data import load
from experiments.evidence import tables
from experiments.evidence.__main__ import RESULTS, Book, alike, alone_with
from experiments.evidence.tables import ROOT, written_between
from experiments.running.progress import progress_bar
from experiments.running.side_by_side import compile_side_by_side, run_side_by_side
from experiments.settings import Settings, require
from experiments.settings.command_line import command_line, program
from experiments.settings.defaults import resolved
from experiments.settings.of_method import MethodSettings

BEGIN, END = "<!-- symptoms: made by `python -m experiments.evidence.symptoms` -->", "<!-- symptoms: end -->"
FILE = "symptoms.jsonl"

# MNIST-1D with the numbers that the evidence has chosen for SAM, and a network that trains in seconds.
USUAL: dict[str, Any] = {
    "data": "mnist1d",
    "model": "mlp64",
    "batch_size": 100,
    "epochs": 40,
    "learning_rate": 0.2,
    "weight_decay": 0.0015,
}
SGD, SAM = ("sgd", {}), ("sam", {"rho": 0.4})
SLICED = (
    "sharded_gsam",
    {"rho": 0.4, "alpha": 0.0, "num_microbatches": 10},
)  # without GSAM's part, sliced SAM

CASES: dict[str, tuple[dict[str, Any], tuple[tuple[str, dict[str, float]], ...]]] = {
    "as it should be": ({}, (SGD, SAM)),
    "radius too small": ({}, (("sam", {"rho": 0.004}),)),
    "radius too large": ({}, (("sam", {"rho": 1.6}),)),
    "underfitting: learning rate 0.005": ({"learning_rate": 0.005}, (SGD, SAM)),
    "learning rate 0.8": ({"learning_rate": 0.8}, (SGD, SAM)),
    "no momentum": ({"momentum": 0.0}, (SGD, SAM)),
    "batch of 1,000, as many steps": ({"batch_size": 1000, "epochs": 400}, (SGD, SAM, SLICED)),
    "no weight decay": ({"weight_decay": 0.0}, (SGD, SAM)),
}


@dataclasses.dataclass(frozen=True)
class SymptomSettings:
    """Train what is not in the results yet, and write the table into the page, between its markers."""

    seeds: int = 5
    """Runs of each training, side by side."""
    results: Path = RESULTS
    """Folder of the JSON lines."""
    page: Path = ROOT / "docs/faq.md"
    """The page."""


def main(args: list[str] | None = None) -> None:
    """The command line."""
    command_line(SymptomSettings, symptoms, args, "the same command continues")


def symptoms(settings: SymptomSettings) -> None:
    """Trains, writes."""
    require(settings.seeds >= 2, settings, "seeds", "give 2 or more")
    file = settings.results / FILE
    with alone_with(file), progress_bar() as bar:
        book = Book(file)
        train(settings, book, bar)
    written_between(settings.page, BEGIN, END, table(book.rows))
    print(f"see {settings.page}")


def train(settings: SymptomSettings, book: Book, bar: Progress) -> None:
    """Trains the cases that are not in the results yet, those that share a program side by side."""
    done = {(each.get("case"), each.get("method")) for each in book.rows}
    left = [each for each in trainings() if each[:2] not in done]
    firsts = [run_of(*each, 0) for each in left]
    task = bar.add_task("trainings", total=len(left))
    for places, group in alike(firsts):
        runs = [dataclasses.replace(first, seed=seed) for first in group for seed in range(settings.seeds)]
        found = trained(runs)
        for number, place in enumerate(places):
            case, method, numbers = left[place]
            own = found[number * settings.seeds : (number + 1) * settings.seeds]
            lists = {name: [each[name] for each in own] for name in own[0]}
            book.add({"phase": "symptom", "case": case, "method": method, "numbers": numbers} | lists)
        bar.advance(task, len(places))


def trainings() -> Iterator[tuple[str, str, dict[str, float]]]:
    """Every case with each of its methods."""
    for case, (_, methods) in CASES.items():
        for method, numbers in methods:
            yield case, method, numbers


def run_of(case: str, method: str, numbers: dict[str, float], seed: int) -> Settings:
    """One training."""
    values = USUAL | CASES[case][0]
    values |= {"evaluate_every": values["epochs"], "method": method, "seed": seed}
    return resolved(Settings(**values, method_settings=MethodSettings(**numbers)))  # pyrefly: ignore[bad-argument-type]


def trained(runs: list[Settings]) -> list[dict[str, Any]]:
    """Test accuracy, training loss and relative rise (the median over the epochs) of each run."""
    data = load(runs[0])
    programs = compile_side_by_side(runs[0], data, len(runs))
    found = []
    for result, lines, _ in run_side_by_side(runs, data, programs, lambda **_: None):
        rises = [line["relative_rise"] for line in lines if line.get("relative_rise") is not None]
        kept = {"accuracy": result["test_accuracy"], "train_loss": result["train_loss"]}
        found.append(kept | {"relative_rise": statistics.median(rises) if rises else None})
    return found


def table(rows: list[dict[str, Any]]) -> str:
    """What the trainings have come to."""
    found = {(each.get("case"), each.get("method")): each for each in rows}
    heads = ("what was done", "method", "test accuracy (%)", "training loss at the end", "relative rise")
    lines: list[tuple[str, ...]] = [heads]
    for case, method, numbers in trainings():
        if each := found.get((case, method)):
            lines.append((case, name_of(method, numbers), *cells(each)))
    count = min(len(each["accuracy"]) for each in found.values() if "accuracy" in each)
    said = f"n = {count}; mean ± standard deviation; the rise is a median over epochs and seeds."
    return f"{tables.table(lines)}\n\n{said}\n"


def name_of(method: str, numbers: dict[str, float]) -> str:
    """The call."""
    if method == "sharded_gsam":
        return f"`per_microbatch(sam({numbers['rho']:g}), {numbers['num_microbatches']:g})`"
    return "SGD" if method == "sgd" else f"`{method}({numbers['rho']:g})`"


def cells(found: dict[str, Any]) -> tuple[str, ...]:
    """Means and deviations as text."""
    rises = [rise for rise in found["relative_rise"] if rise is not None]
    accuracy = spread([None if each is None else 100 * each for each in found["accuracy"]], "{:.1f}")
    loss = spread(found["train_loss"], "{:.3f}")
    return accuracy, loss, f"{statistics.median(rises):.2g}" if rises else ""


def spread(values: list[float | None], form: str) -> str:
    """Mean and standard deviation, or that some are not finite."""
    known = [each for each in values if each is not None]
    if len(known) < len(values):
        return "not finite"
    return " ± ".join(form.format(each) for each in (np.mean(known), np.std(known, ddof=1)))


if __name__ == "__main__":
    program(main)
