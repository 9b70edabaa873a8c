"""Which radius to begin with, measured where a run stands: `python -m experiments.radius --help`."""

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import jax
import tyro
from jax.tree_util import Partial

from experiments.data import load
from experiments.reports.comparison import plt
from experiments.running import records
from experiments.running.checkpoints import Checkpoints
from experiments.running.inputs import Inputs, make_inputs
from experiments.running.programs import first_state, places_of, trainer_of
from experiments.running.sharpness import batches, losses_of
from experiments.running.training import Trainer, TrainState, judged
from experiments.settings import Settings, SettingsError, require
from experiments.settings.command_line import command_line, program
from experiments.settings.of_method import MethodSettings
from optax_sam import sharpness
from optax_sam.sharpness import plots


@dataclasses.dataclass(frozen=True)
class RadiusSettings:
    """Measure how the loss rises with SAM's radius where a run stands, and recommend one to begin with.

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
    found = measured(settings)
    print(found)
    picture = settings.run / "radius.png"
    with records.disk_errors(settings.run):
        figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
        plots.radius_test(found, axes)
        figure.savefig(picture, dpi=150)
        plt.close(figure)
    print(f"see {picture}")


def measured(settings: RadiusSettings) -> sharpness.RadiusTest:
    """The test at the last checkpoint of a run."""
    trained = settings_of(settings.run)
    data = load(trained)
    if data.streams:
        raise SettingsError(f"--data {trained.data} is streamed: train a run with --stream False")
    trainer = trainer_of(trained, data)
    inputs = make_inputs(trained, data, trainer.task)
    places = places_of(first_state(trainer, inputs))
    checkpoint = Checkpoints(trained.out).restore(jax.jit(trainer.init, out_shardings=places)(inputs))
    if not checkpoint.epoch:
        raise SettingsError(f"{settings.run} holds no checkpoint: train the run first")
    return test_at(trainer, inputs, checkpoint.state, settings.batches, progress=True)


def test_at(
    trainer: Trainer, inputs: Inputs, state: TrainState, count: int, **options: Any
) -> sharpness.RadiusTest:
    """The test where a state stands, on so many training batches."""
    loss = Partial(losses_of(trainer.network, trainer.task), state.batch_stats)
    some = [*itertools.islice(batches(trainer, inputs.examples, trainer.settings.batch_size), count)]
    rate = trainer.settings.learning_rate
    return sharpness.radius_test(loss, judged(state), some, learning_rate=rate, **options)


def settings_of(run: Path) -> Settings:
    """The settings that a run's config.json holds."""
    file = run / "config.json"
    if not file.exists():
        raise SettingsError(f"{run} holds no config.json: give the folder of a run")
    given = records.read_json(file).get("settings", {})

    def taken(kind: Any) -> dict[str, Any]:
        names = [field.name for field in dataclasses.fields(kind) if field.name in given]
        return {name: tuple(given[name]) if isinstance(given[name], list) else given[name] for name in names}

    values = taken(Settings)
    folder = values.get("data_dir")
    return Settings(
        **values
        | {"out": run, "data_dir": folder and Path(folder)}
        | {"method_settings": MethodSettings(**taken(MethodSettings))}
    )


if __name__ == "__main__":
    program(main)
