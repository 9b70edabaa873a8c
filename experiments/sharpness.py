"""Measures how sharp finished runs are, side by side: `python -m experiments.sharpness --help`."""

import dataclasses
from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table

from experiments.reports.comparison import plt
from experiments.running import records
from experiments.running.progress import progress_bar
from experiments.running.standing import standing
from experiments.settings import SettingsError, require
from experiments.settings.command_line import command_line, program
from optax_sam.sharpness import plots
from optax_sam.sharpness.page import Report, measured


@dataclasses.dataclass(frozen=True)
class SharpnessSettings:
    """Measure how sharp runs are at their last checkpoint, side by side: a table and sharpness.png.

    The loss is that of training examples in evaluation. All runs must have the same layers. The learning rate
    of "2 / learning rate" is that of the schedule at the checkpoint. It is where gradient descent without
    momentum comes to rest. The line is left out where the rate is 0, as at the end of a cosine.
    """

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of runs."""
    batches: int = 10
    """Batches of training examples to measure on, each of the run's own size."""
    out: Path = Path("runs/sharpness")
    """Folder of the picture and of sharpness.json."""


def main(args: list[str] | None = None) -> None:
    """The command line."""
    command_line(SharpnessSettings, compare, args, "the same command begins again")


def compare(settings: SharpnessSettings) -> None:
    """Measures, prints, draws."""
    require(bool(settings.runs), settings, "runs", "give the folder of a run, or several")
    require(settings.batches >= 1, settings, "batches", "give 1 or more")
    records.check_writable(settings.out)
    found: dict[str, Report] = {}
    with progress_bar() as bar:
        task = bar.add_task("sharpness", total=len(settings.runs))
        for name, run in zip(names_of(settings.runs), settings.runs, strict=True):
            at = standing(run)
            parts, rate = at.parts[: settings.batches], at.learning_rate
            found[name] = measured(at.loss, at.params, parts, learning_rate=rate)
            bar.advance(task)
    layers = {report.layers.names for report in found.values()}
    if len(layers) > 1:
        raise SettingsError("the runs have different layers: compare runs of one model")
    print_table(found)
    picture = settings.out / "sharpness.png"
    with records.disk_errors(settings.out):
        settings.out.mkdir(parents=True, exist_ok=True)
        figure = plots.report(found)
        figure.savefig(picture, dpi=120)
        plt.close(figure)
        rows = {name: report.rows() for name, report in found.items()}
        records.write_json(settings.out / "sharpness.json", {"runs": rows} | records.environment())
    if ended := [name for name, report in found.items() if report.learning_rate is None]:
        print(f"no 2 / learning rate for {', '.join(ended)}: the schedule's rate is 0 at the checkpoint")
    print(f"see {picture} and sharpness.json")


def names_of(runs: tuple[Path, ...]) -> list[str]:
    """The last part of each path, or the whole of it where these are not all different."""
    names = [run.resolve().name for run in runs]
    return names if len(set(names)) == len(names) else [str(run) for run in runs]


def print_table(found: dict[str, Report]) -> None:
    """Prints one column per run, with each number's error."""
    table = Table(caption="± standard errors over random vectors and batches; residuals of eigenvalues")
    table.add_column("measure", no_wrap=True)
    for name in found:
        table.add_column(name, justify="right")
    columns = [report.rows() for report in found.values()]
    for measure in dict.fromkeys(measure for rows in columns for measure in rows):
        table.add_row(measure, *(rows.get(measure, "") for rows in columns))
    Console().print(table)


if __name__ == "__main__":
    program(main)
