"""Recommends a first radius, measured at a run's last checkpoint: `python -m experiments.radius --help`."""

import dataclasses
from pathlib import Path

import tyro

from experiments.reports.comparison import plt
from experiments.running import records
from experiments.running.standing import standing
from experiments.settings import require
from experiments.settings.command_line import command_line, program
from optax_sam import sharpness
from optax_sam.sharpness import plots


@dataclasses.dataclass(frozen=True)
class RadiusSettings:
    """Measure how the loss rises with SAM's radius at a run's last checkpoint, and recommend a first radius.

    Train the base optimizer for about a tenth of the epochs first. Writes radius.png into the run's folder.
    """

    run: tyro.conf.Positional[Path]
    """Folder of the run."""
    batches: int = 10
    """Batches of training examples to measure on."""


def main(args: list[str] | None = None) -> None:
    """The command line."""
    command_line(RadiusSettings, radius, args, "the same command begins again")


def radius(settings: RadiusSettings) -> None:
    """Measures, prints, draws."""
    require(settings.batches >= 1, settings, "batches", "give 1 or more")
    at = standing(settings.run)
    found = sharpness.radius_test(at.loss, at.params, at.parts[: settings.batches], progress=True)
    print(found)
    picture = settings.run / "radius.png"
    with records.disk_errors(settings.run):
        figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
        plots.radius_test(found, axes)
        figure.savefig(picture, dpi=150)
        plt.close(figure)
    print(f"see {picture}")


if __name__ == "__main__":
    program(main)
