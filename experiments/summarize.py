"""Sums up finished runs, seeds together: `python -m experiments.summarize --help`."""

import dataclasses
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from experiments.reports.curves import draw_curves, draw_rises
from experiments.reports.groups import (
    Group,
    Run,
    folders_of_runs,
    grouped,
    key,
    read_run,
    shown,
)
from experiments.reports.intervals import margin, share
from experiments.running import records
from experiments.running.scores import score_of
from experiments.settings import SettingsError
from experiments.settings.command_line import command_line

HEADINGS = ("runs", "{score}", "n", "gradients / step", "time / SGD's", "share of SAM's gain %")

NOTES = (
    "Accuracy or loss: mean over n seeds and its 95 % interval, by Student's t.",
    "Time: the seconds per step that the runs measured; experiments.compare measures methods in turns. "
    "SGD is the base optimizer alone, whichever it is.",
    "Share of SAM's gain: (mean - SGD's) / (SAM's - SGD's) over common seeds, in brackets Fieller's 95 % "
    "interval for pairs; empty where SAM's own gain is within noise.",
)
RISES = "relative_rise.png"
SEVERAL = "Where SGD or SAM has several settings, the unit is the best one: {}."


@dataclasses.dataclass(frozen=True)
class SummarizeSettings:
    """Sum up finished runs in a table and pictures. Runs that differ only in the seed are taken together,
    if their data are the same, too: a file may have been replaced.

    Writes summary.md, summary.json, score_by_seconds.png, score_by_gradients.png and, where the loss of
    perturbed steps was recorded, relative_rise.png.
    """

    folders: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of runs, or folders that hold them."""
    out: Path = Path("runs/summary")
    """Folder for the table and the pictures."""


def main(args: list[str] | None = None) -> None:
    """The command line."""
    command_line(SummarizeSettings, summarize, args, "the same command begins again")


def summarize(settings: SummarizeSettings) -> None:
    """Reads, groups, and writes."""
    records.check_writable(settings.out)
    groups = grouped(read(settings.folders))
    if not groups:
        raise SettingsError(
            f"{' '.join(map(str, settings.folders))} holds no finished run: give another folder"
        )
    rows = [row(group, groups) for group in groups]
    cells = [cells_of(each) for each in rows]
    notes = notes_of(groups)
    heading, headings = heading_of(groups), headings_of(groups)
    with records.disk_errors(settings.out):
        settings.out.mkdir(parents=True, exist_ok=True)
        (settings.out / "summary.md").write_text(markdown(heading, headings, cells, notes))
        draw_curves(groups, f"{heading}: mean and 95 % interval", settings.out)
        if perturbed := [group for group in groups if np.isfinite(group.rises()).any()]:
            draw_rises(perturbed, f"{heading}: relative rise, median", settings.out / RISES)
    records.write_json(settings.out / "summary.json", {"groups": rows, "notes": notes})
    print_table(headings, cells, notes)
    print(f"see {settings.out}/summary.md, score_by_seconds.png and score_by_gradients.png")


def read(folders: Sequence[Path]) -> list[Run]:
    """The finished runs; what is left out is said, a line each."""
    found: dict[tuple[str, int], Run] = {}
    for folder in dict.fromkeys(folders_of_runs(folders)):
        try:
            run = read_run(folder)
        except SettingsError as error:
            print(f"left out: {error}", file=sys.stderr)
            continue
        if run is None:
            print(f"left out: {folder} is not finished", file=sys.stderr)
            continue
        first = found.setdefault((key(run), run.settings["seed"]), run)
        if first is not run:
            print(f"left out: {folder} is the same run as {first.folder}", file=sys.stderr)
    return list(found.values())


def row(group: Group, groups: Sequence[Group]) -> dict[str, Any]:
    """What there is to say of a group."""
    sgd, sam = (unit(method, group, groups) for method in ("sgd", "sam"))
    return {
        "label": group.label,
        "settings": group.settings,
        "data_sha256": next(iter(group.runs.values())).digest,
        "seeds": list(group.runs),
        "folders": [str(run.folder) for run in group.runs.values()],
        "score": group.score.name,
        "score_mean": mean_score(group),
        "score_margin": margin(group.results(group.score.name)),
        "gradients_per_step": statistics.mean(group.results("gradients_per_step")),
        "step_time_vs_sgd": step_time(group, sgd),
        "share_of_gain": share_of_gain(group, sgd, sam),
    }


def unit(method: str, group: Group, groups: Sequence[Group]) -> Group | None:
    """The group of SGD or SAM on the same task; of several, the best."""
    return max(candidates(method, group, groups), key=goodness, default=None)


def candidates(method: str, group: Group, groups: Sequence[Group]) -> list[Group]:
    """The groups of a method on the same task."""
    return [each for each in groups if each.task == group.task and each.settings["method"] == method]


def mean_score(group: Group) -> float:
    """Mean over seeds."""
    return statistics.mean(group.results(group.score.name))


def goodness(group: Group) -> float:
    """More is better: the mean, of losses its negative."""
    return group.score.sign * mean_score(group)


def step_time(group: Group, sgd: Group | None) -> float | None:
    """Seconds per step relative to SGD's; None if machines differ, or if several runs were one program."""
    runs = [*group.runs.values(), *(sgd.runs.values() if sgd else ())]
    machines = {str((run.config.get("device"), run.config.get("machine"))) for run in runs}
    if sgd is None or len(machines) > 1 or any("side_by_side" in run.result for run in runs):
        return None
    return statistics.mean(group.results("step_seconds")) / statistics.mean(sgd.results("step_seconds"))


def share_of_gain(group: Group, sgd: Group | None, sam: Group | None) -> tuple[float, float, float] | None:
    """How much of SAM's gain over SGD a group keeps, and Fieller's interval over the common seeds."""
    if sgd is None or sam is None or group in (sgd, sam):
        return None
    seeds, sign = [seed for seed in group.runs if seed in sgd.runs and seed in sam.runs], group.score.sign
    method, plain, best = (
        [sign * group.score.value(each.runs[seed].result[group.score.name]) for seed in seeds]
        for each in (group, sgd, sam)
    )
    gains = [a - b for a, b in zip(method, plain, strict=True)]
    return share(gains, [a - b for a, b in zip(best, plain, strict=True)])


def cells_of(row: dict[str, Any]) -> list[str]:
    """A row of the table as text."""
    score, time = score_of(row["settings"]), row["step_time_vs_sgd"]
    kept = row["share_of_gain"]
    return [
        row["label"],
        score.text(row["score_mean"], row["score_margin"]),
        str(len(row["seeds"])),
        f"{row['gradients_per_step']:.2f}",
        "" if time is None else f"{time:.2f}",
        "" if kept is None else "{:.0f} ({:.0f} to {:.0f})".format(*(100 * each for each in kept)),
    ]


def notes_of(groups: Sequence[Group]) -> list[str]:
    """How the numbers are to be read."""
    found = [candidates(method, group, groups) for group in groups for method in ("sgd", "sam")]
    best = dict.fromkeys(max(several, key=goodness).label for several in found if len(several) > 1)
    return [*NOTES, *([SEVERAL.format("; ".join(best))] if best else [])]


def heading_of(groups: Sequence[Group]) -> str:
    """Data, network and epochs of all groups."""
    names = ("data", "model", "epochs")
    values = [
        " and ".join(dict.fromkeys(shown(group.settings.get(name)) for group in groups)) for name in names
    ]
    return "{}, {}, {} epochs".format(*values)


def headings_of(groups: Sequence[Group]) -> list[str]:
    """Of the columns; the second names what the runs are judged by."""
    labels = list(dict.fromkeys(group.score.label for group in groups))
    if len(labels) > 1:
        raise SettingsError(f"the runs are judged by {' and '.join(labels)}: give folders with one of them")
    return [heading.format(score=labels[0]) for heading in HEADINGS]


def markdown(
    heading: str, headings: Sequence[str], cells: Sequence[Sequence[str]], notes: Sequence[str]
) -> str:
    """The table for a page."""
    rows = [headings, ("---",) * len(headings), *cells]
    lines = ["| " + " | ".join(each) + " |" for each in rows]
    return "\n".join([f"# {heading}", "", *lines, "", *notes]) + "\n"


def print_table(headings: Sequence[str], cells: Sequence[Sequence[str]], notes: Sequence[str]) -> None:
    """The table for the terminal."""
    table = Table()
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="right" if number else "left", no_wrap=not number)
    for each in cells:
        table.add_row(*each)
    Console().print(table)
    for note in notes:
        print(note)


if __name__ == "__main__":
    main()
