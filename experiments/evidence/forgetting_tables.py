"""Makes the tables of docs/language_models.md: `python -m experiments.evidence.forgetting_tables --help`."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.evidence.candidates import CANDIDATES
from experiments.evidence.forgetting import FILE, METHODS, TASK
from experiments.evidence.plan import best_point
from experiments.evidence.summary import Interval, difference, interval
from experiments.evidence.tables import ROOT, table, written_between
from experiments.evidence.tasks import TASKS
from experiments.running.records import read_metrics
from experiments.settings import SettingsError
from experiments.settings.command_line import command_line, program

BEGIN, END = "<!-- forgetting: made by `make results` -->", "<!-- forgetting: end -->"

LOSSES = ("method", "n", "first text", "rounded to 4 bits", "after fine-tuning", "second text, then")
RISES = ("method", "rise by rounding", "more than the base's", "rise by fine-tuning", "more than the base's")

Row = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class ForgettingTableSettings:
    """Write what the results say of forgetting into the page, between its markers."""

    results: Path = ROOT / "experiments/results"
    """Folder of the JSON lines."""
    page: Path = ROOT / "docs/language_models.md"
    """The page."""


def main(args: list[str] | None = None) -> None:
    """The command line."""
    command_line(ForgettingTableSettings, forgetting_tables, args, "the same command begins again")


def forgetting_tables(settings: ForgettingTableSettings) -> None:
    """Reads the results, writes the page."""
    written_between(settings.page, BEGIN, END, page(read_metrics(settings.results / FILE)))
    print(f"see {settings.page}")


def page(rows: Sequence[Row]) -> str:
    """Both tables; without two runs of a method, that there is nothing yet."""
    found = {name: runs for name in METHODS if len(runs := runs_of(name, rows)) >= 2}
    if not found:
        return "Not run yet.\n"
    base = found.get("base")
    losses: list[tuple[str, ...]] = [LOSSES]
    rises: list[tuple[str, ...]] = [RISES]
    for name, runs in found.items():
        names = ("first", "first_rounded", "first_tuned", "second_tuned")
        cells = [text(interval([*column(runs, each).values()])) for each in names]
        losses.append((called(name, rows), str(len(runs)), *cells))
        changed: list[str] = []
        for each in ("first_rounded", "first_tuned"):
            own = rise(runs, each)
            compared = "" if base is None or name == "base" else signed(difference(own, rise(base, each)))
            changed += [text(interval([*own.values()])), compared]
        rises.append((CANDIDATES[name].title, *changed))
    said = "Test losses in nats a character: mean ± half of the 95 % interval; differences in the same seeds."
    return "\n\n".join([table(losses), table(rises), said]) + "\n"


def runs_of(name: str, rows: Sequence[Row]) -> dict[int, Row]:
    """A method's measured runs with the numbers that were chosen, by seed."""
    try:
        point = best_point(TASKS[TASK], rows, name)
    except SettingsError:
        return {}
    mine = [row for row in rows if row["phase"] == "forget" and row["candidate"] == name]
    return {row["seed"]: row for row in mine if row["point"] == point}


def column(runs: Mapping[int, Row], name: str) -> dict[int, float]:
    """One loss of all runs."""
    return {seed: row[name] for seed, row in runs.items()}


def rise(runs: Mapping[int, Row], name: str) -> dict[int, float]:
    """How much the loss on the first text has risen."""
    return {seed: row[name] - row["first"] for seed, row in runs.items()}


def called(name: str, rows: Sequence[Row]) -> str:
    """A method with its chosen numbers."""
    point = best_point(TASKS[TASK], rows, name)
    return f"{CANDIDATES[name].title}, " + ", ".join(
        f"{key.replace('_', ' ')} {value:g}" for key, value in point.items()
    )


def text(found: Interval) -> str:
    """A loss and its interval."""
    return f"{found.mean:.4f} ± {found.margin:.4f}"


def signed(found: Interval) -> str:
    """A difference with its sign."""
    return f"{found.mean:+.4f} ± {found.margin:.4f}"


if __name__ == "__main__":
    program(main)
