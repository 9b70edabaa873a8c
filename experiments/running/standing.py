"""Where a finished or interrupted run stands: its trainer, its data, its last checkpoint."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from experiments.data import load
from experiments.data.arrays import Batch
from experiments.running import records
from experiments.running.checkpoints import Checkpoints
from experiments.running.inputs import Inputs, make_inputs
from experiments.running.programs import first_state, places_of, trainer_of
from experiments.running.sharpness import batches, losses_of
from experiments.running.training import Trainer, TrainState, judged
from experiments.settings import Settings, SettingsError
from experiments.settings.of_method import MethodSettings


class Standing(NamedTuple):
    """What there is to measure of a run.

    Attributes:
      settings: of the run.
      loss: of each training example, in evaluation.
      params: at the last checkpoint.
      parts: training examples in batches of the run's size.
      learning_rate: of the next step, by the schedule; None where that is 0, as where a cosine has ended.
    """

    settings: Settings
    loss: Partial
    params: Any
    parts: list[Batch]
    learning_rate: float | None


def standing(run: Path) -> Standing:
    """The run of a folder at its last checkpoint.

    Raises:
      SettingsError: the run keeps no checkpoint, its data are streamed, or are not those it was trained on.
    """
    trained = settings_of(run)
    data = load(trained)
    if data.streams:
        raise SettingsError(f"--data {trained.data} is streamed: train a run with --stream False")
    if records.has_other_data(run, records.digest_of(data)):
        raise SettingsError(
            f"{run} was trained on other examples or labels than {records.data_in(trained)} has now: "
            "restore them"
        )
    trainer = trainer_of(trained, data)
    inputs = make_inputs(trained, data, trainer.task)
    places = places_of(first_state(trainer, inputs))
    checkpoint = Checkpoints(trained.out).restore(jax.jit(trainer.init, out_shardings=places)(inputs))
    if not checkpoint.epoch:
        raise SettingsError(f"{run} holds no checkpoint: train it by itself (side by side, runs keep none)")
    return standing_at(trainer, inputs, checkpoint.state)


def standing_at(trainer: Trainer, inputs: Inputs, state: TrainState) -> Standing:
    """A run in the middle of its training."""
    frozen = inputs.examples.frozen
    params, batch_stats = judged(state)
    loss = Partial(losses_of(trainer.network, trainer.task), frozen, batch_stats)
    parts = list(batches(trainer, inputs.examples, trainer.settings.batch_size))
    rate = float(jnp.asarray(trainer.base(inputs)[0](state.step)))
    return Standing(trainer.settings, loss, params, parts, rate or None)


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
