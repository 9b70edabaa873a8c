"""Trainings in which SAM does not help, for docs/faq.md: `python -m experiments.evidence.symptoms --help`."""

import dataclasses
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from experiments.data import load
from experiments.evidence import tables
from experiments.evidence.__main__ import RESULTS, Book, alone_with
from experiments.evidence.tables import ROOT, written_between
from experiments.running.progress import progress_bar
from experiments.running.side_by_side import compile_side_by_side, run_side_by_side
from experiments.settings import Settings, require
from experiments.settings.command_line import command_line, program
from experiments.settings.defaults import resolved
from experiments.settings.of_method import MethodSettings

BEGIN, END = "<!-- symptoms: made by `python -m experiments.evidence.symptoms` -->", "<!-- symptoms: end -->"
FILE = "symptoms.jsonl"

# MNIST-1D with the numbers that the evidence has chosen for SAM.
USUAL: dict[str, Any] = {
    "data": "mnist1d",
    "model": "mlp",
    "batch_size": 100,
    "epochs": 30,
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
    "not finite": ({}, (("usam", {"rho": 10.0}),)),
    "underfitting": ({"epochs": 3}, (SGD, SAM)),
    "learning rate of the base, too high for SAM": ({"learning_rate": 0.6}, (SGD, SAM)),
    "no momentum": ({"momentum": 0.0}, (SGD, SAM)),
    "large batch": ({"batch_size": 1000}, (SGD, SAM, SLICED)),
    "no weight decay": ({"weight_decay": 0.0}, (SGD, SAM)),
}


@dataclasses.dataclass(frozen=True)
class SymptomSettings:
    """Train what is not in the results yet, and write the table into the page, between its markers."""

    seeds: int = 4
    """Runs of each training, side by side."""
    results: Path = RESULTS
    """Folder of the JSON lines."""
    page: Path = ROOT / "docs/faq.md"
    """The page."""


def main(args: list[str] | None = None) -> None:
    """The command line."""
    command_line(SymptomSettings, symptoms, args, "the same command goes on")


def symptoms(settings: SymptomSettings) -> None:
    """Trains, writes."""
    require(settings.seeds >= 2, settings, "seeds", "give 2 or more")
    file = settings.results / FILE
    with alone_with(file), progress_bar() as bar:
        book = Book(file)
        for case, method, numbers in trainings():
            if any((case, method) == (each.get("case"), each.get("method")) for each in book.rows):
                continue
            runs = [run_of(case, method, numbers, seed) for seed in range(settings.seeds)]
            task = bar.add_task(f"{case}, {method}", total=None)
            book.add({"phase": "symptom", "case": case, "method": method, "numbers": numbers} | trained(runs))
            bar.remove_task(task)
    written_between(settings.page, BEGIN, END, table(book.rows))
    print(f"see {settings.page}")


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


def trained(runs: list[Settings]) -> dict[str, list[Any]]:
    """Test accuracy, training loss and relative rise (the median over the epochs) of each run."""
    data = load(runs[0])
    programs = compile_side_by_side(runs[0], data, len(runs))
    done = run_side_by_side(runs, data, programs, lambda **_: None)
    rises = [[line.get("relative_rise") for line in lines] for _, lines, _ in done]
    known = [[rise for rise in each if rise is not None] for each in rises]
    return {
        "accuracy": [result["test_accuracy"] for result, _, _ in done],
        "train_loss": [result["train_loss"] for result, _, _ in done],
        "relative_rise": [statistics.median(each) if each else None for each in known],
    }


def table(rows: list[dict[str, Any]]) -> str:
    """What the trainings have come to."""
    found = {(each.get("case"), each.get("method")): each for each in rows}
    lines = [("what was done", "method", "test accuracy (%)", "training loss at the end", "relative rise")]
    for case, method, numbers in trainings():
        if each := found.get((case, method)):
            lines.append((case, name_of(method, numbers), *cells(each)))
    count = min(len(each["accuracy"]) for each in found.values() if "accuracy" in each)
    said = (
        f"MNIST-1D, {USUAL['epochs']} epochs; n = {count}; mean ± standard deviation; the rise is a median."
    )
    return f"{tables.table(lines)}\n\n{said}\n"


def name_of(method: str, numbers: dict[str, float]) -> str:
    """The call."""
    if method == "sharded_gsam":
        return f"`per_microbatch(sam({numbers['rho']:g}), {numbers['num_microbatches']:g})`"
    return "SGD" if method == "sgd" else f"`{method}({numbers['rho']:g})`"


def cells(found: dict[str, Any]) -> tuple[str, ...]:
    """Means and deviations as text."""
    rises = [rise for rise in found["relative_rise"] if rise is not None]
    accuracy = spread([100 * each for each in found["accuracy"]], "{:.1f}")
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
