"""Runs that differ in their numbers alone, side by side in one program.

A small network leaves most of a machine idle: `vmap` over seeds, learning rates, decays and radii fills it.
Such runs take seconds to minutes together, so they keep no checkpoints, and begin again after an
interruption. A gate that stays closed saves nothing here, since some other run's may be open.
"""

import dataclasses
import functools
import operator
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from experiments.data import Data
from experiments.running.devices import everywhere
from experiments.running.inputs import Examples, Inputs, numbers_of, with_numbers
from experiments.running.programs import Programs, compile_trainer, structure, trainer_of
from experiments.running.records import finite
from experiments.running.run import Listener, evaluation, measured, summary, train_epoch
from experiments.running.training import Trainer, TrainState
from experiments.settings import Settings, SettingsError

NUMBERS: Any = Inputs(None, 0, None)  # pyrefly: ignore[bad-argument-type]  # axes: all but numbers is shared


@dataclasses.dataclass(frozen=True)
class Several(Trainer):
    """A trainer of several runs: states, numbers, losses and scores have the runs first."""

    def init(self, inputs: Inputs) -> TrainState:
        """The states before the first step."""
        return jax.vmap(super().init, (NUMBERS,))(inputs)

    def steps(self, state: TrainState, inputs: Inputs, count: jax.Array, *, whole_batch: bool) -> TrainState:
        """Takes `count` steps of every run."""
        steps = functools.partial(super().steps, whole_batch=whole_batch)
        return jax.vmap(steps, (0, NUMBERS, None))(state, inputs, count)

    def evaluate(self, params: Any, batch_stats: Any, examples: Examples) -> tuple[jax.Array, jax.Array]:
        """Mean losses and scores of every run, [runs] each."""
        return jax.vmap(super().evaluate, (0, 0, None))(params, batch_stats, examples)


def compile_side_by_side(settings: Settings, data: Data, count: int) -> Programs:
    """Compiles so many runs that differ from `settings` in numbers alone."""
    if data.streams:
        raise SettingsError(
            f"--data {settings.data} is streamed, so that runs cannot go side by side: give --stream False"
        )
    trainer = trainer_of(settings, data)
    several = Several(**{field.name: getattr(trainer, field.name) for field in dataclasses.fields(Trainer)})
    return compile_trainer(several, data, with_numbers_of([settings] * count))


def with_numbers_of(runs: Sequence[Settings]) -> dict[str, np.ndarray]:
    """The numbers of all runs, [runs] each."""
    return jax.tree.map(lambda *numbers: np.stack(numbers), *map(numbers_of, runs))


def run_side_by_side(
    runs: Sequence[Settings], data: Data, programs: Programs, listener: Listener
) -> list[tuple[dict[str, Any], list[dict[str, Any]], TrainState]]:
    """Trains several networks.

    Args:
      runs: resolved settings, which differ in numbers alone.
      data: the data set they name.
      programs: compiled for as many runs.
      listener: hears of the progress.

    Returns:
      For each run the content of result.json, the lines of metrics.jsonl, and the last state. The seconds are
      those of all runs together, and `side_by_side` says how many these were.
    """
    first = runs[0]
    assert len({structure(settings) for settings in runs}) == 1
    inputs = programs.inputs(first, data)
    numbers = jax.device_put(with_numbers_of(runs), everywhere(programs.trainer.mesh))
    inputs = inputs._replace(numbers=numbers)
    states = programs.init(inputs)
    lines: list[list[dict[str, Any]]] = [[] for _ in runs]
    passed = 0.0
    for epoch in range(1, first.epochs + 1):
        states, seconds = train_epoch(programs, states, inputs, epoch, listener)
        passed += seconds
        times = {"step_seconds": seconds / programs.steps_per_epoch, "seconds": passed}
        found = evaluation(first, programs, states, inputs, epoch)
        looks = [None] * len(runs) if found is None else list(zip(*map(np.asarray, found), strict=True))
        on_host = jax.device_get(states)
        for settings, state, look, record in zip(runs, each(on_host), looks, lines, strict=True):
            own = with_numbers(inputs, settings)
            record.append(finite(measured(settings, programs, state, own, epoch, look) | times))
        listener(loss=lines[0][-1]["train_loss"])
    return [
        (summary(settings, programs, state, record) | {"side_by_side": len(runs)}, record, state)
        for settings, state, record in zip(runs, each(states), lines, strict=True)
    ]


def each(states: TrainState) -> list[TrainState]:
    """The state of every run."""
    return [jax.tree.map(operator.itemgetter(number), states) for number in range(len(states.step))]
