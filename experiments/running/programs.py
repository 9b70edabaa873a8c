"""The compiled programs of a run.

They are compiled ahead, so that compile time never hides in step time. Seed, learning rate and radii
are arguments: one compilation serves all seeds of a method.
"""

import dataclasses
import functools
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments import methods, models, tasks
from experiments.data import Data
from experiments.data.feed import Feed, shapes
from experiments.running.devices import everywhere, mesh_of, sharding
from experiments.running.inputs import Examples, Inputs, evaluation_batch, make_inputs, numbers_of
from experiments.running.training import Trainer, TrainState
from experiments.settings import Settings

Steps = Callable[[TrainState, Inputs, np.int32], TrainState]


@dataclasses.dataclass(frozen=True)
class Programs:
    """A trainer's functions, compiled for the shapes of one data set.

    Attributes:
      trainer: what was compiled.
      init: inputs -> first state.
      first_steps: (state, inputs, count) -> state, in the first epoch; donates the state.
      steps: the same in the later epochs.
      evaluate: (params, batch_stats, examples) -> (loss, score).
      close: ends what reads a stream ahead.
      compile_seconds: what all this took.
    """

    trainer: Trainer
    init: Callable[[Inputs], TrainState]
    first_steps: Steps
    steps: Steps
    evaluate: Callable[[Any, Any, Examples], tuple[jax.Array, jax.Array]]
    close: Callable[[], None]
    compile_seconds: float

    @property
    def steps_per_epoch(self) -> int:
        """Steps in one epoch."""
        return self.trainer.steps_per_epoch

    def inputs(self, settings: Settings, data: Data) -> Inputs:
        """The inputs of a run with other numbers."""
        return make_inputs(settings, data, self.trainer.task)


def compile_programs(settings: Settings, data: Data) -> Programs:
    """Compiles a run ahead of its first step."""
    return compile_trainer(trainer_of(settings, data), data, numbers_of(settings))


def compile_trainer(trainer: Trainer, data: Data, numbers: dict[str, Any]) -> Programs:
    """Compiles the functions of a trainer, for numbers of these shapes."""
    start = time.perf_counter()
    settings = trainer.settings
    inputs = make_inputs(settings, data, trainer.task)
    inputs = inputs._replace(numbers=jax.device_put(numbers, everywhere(trainer.mesh)))
    state = first_state(trainer, inputs)
    make = streamed if data.streams else in_memory
    steps, evaluate, close = make(trainer, data, inputs, state)
    later = steps(whole_batch=False)
    first = steps(whole_batch=True) if settings.method in methods.WHOLE_FIRST_EPOCH else later
    init = jax.jit(trainer.init, out_shardings=places_of(state)).lower(inputs)
    init = init.compile(compiler_options=for_one_call())
    return Programs(trainer, init, first, later, evaluate, close, time.perf_counter() - start)


def for_one_call() -> dict[str, Any]:
    """Options for a program that is called once: on the CPU a third of the time to compile, the same bits."""
    given = os.environ.get("XLA_FLAGS", "")
    chosen = jax.default_backend() != "cpu" or "xla_backend_optimization_level" in given
    return {} if chosen else {"xla_backend_optimization_level": 1}


def structure(settings: Settings) -> Settings:
    """What a run's programs depend on: runs for which it is equal share them, if their data are the same."""
    method_settings = dataclasses.replace(settings.method_settings, **arguments(settings.method_settings))
    numbers = arguments(settings)
    if settings.method == "bsam":
        del numbers["weight_decay"]  # its prior, which the program depends on
    return dataclasses.replace(
        settings, **numbers, method_settings=method_settings, seed=0, out=Path(), resume=False
    )


def arguments(part: Any) -> dict[str, Any]:
    """The given settings that are arguments of the programs, whatever their values, as zeros."""
    return {name: 0.0 for name in methods.TRACED if getattr(part, name, None) is not None}


def in_memory(trainer: Trainer, data: Data, inputs: Inputs, state: Any) -> tuple[Any, Any, Any]:
    """Many steps in one program, and one for the whole test set."""

    def steps(whole_batch: bool) -> Steps:
        return lowered_steps(trainer, data, inputs, state, whole_batch).compile()

    return steps, lowered_evaluation(trainer, data, inputs, state).compile(), lambda: None


def streamed(trainer: Trainer, data: Data, inputs: Inputs, state: Any) -> tuple[Any, Any, Any]:
    """A program for one step, and one for a test batch, between which batches are read."""
    assert data.streams is not None
    workers, mesh = trainer.settings.workers, trainer.mesh
    train = Feed(data.streams[0], trainer.settings.batch_size, workers, mesh)
    test = Feed(data.streams[1], evaluation_batch(mesh), workers, mesh)

    def steps(whole_batch: bool) -> Steps:
        compiled = lowered_steps(trainer, data, inputs, state, whole_batch).compile()

        def several(state: TrainState, inputs: Inputs, count: np.int32) -> TrainState:
            seed, step = int(inputs.numbers["seed"]), int(state.step)
            for number in range(step, step + int(count)):
                state = compiled(state, inputs, train.training(seed, number))
            return state

        return several

    sums = lowered_evaluation(trainer, data, inputs, state).compile()

    def evaluate(params: Any, batch_stats: Any, examples: Examples) -> tuple[jax.Array, jax.Array]:
        parts = [sums(params, batch_stats, examples._replace(train={}), batch) for batch in test.evaluation()]
        total = np.sum([np.asarray(part) for part in parts], axis=0)
        return total[0] / total[2], total[1] / total[2]

    def close() -> None:
        train.close()
        test.close()

    return steps, evaluate, close


def lowered_steps(
    trainer: Trainer, data: Data, inputs: Inputs, state: Any, whole_batch: bool
) -> jax.stages.Lowered:
    """The program of many steps on data in memory, or of one step on a streamed batch, to be compiled."""
    function: Any = trainer.streamed_step if data.streams else trainer.steps
    size, mesh = trainer.settings.batch_size, trainer.mesh
    last = shapes(data.streams[0].example(0, None), size, mesh) if data.streams else np.int32(1)
    program = functools.partial(function, whole_batch=whole_batch)
    program = jax.jit(program, donate_argnums=0, out_shardings=places_of(state))
    return program.lower(state, inputs, last)


def lowered_evaluation(trainer: Trainer, data: Data, inputs: Inputs, state: Any) -> jax.stages.Lowered:
    """The program of the whole test set in memory, or of one streamed test batch, to be compiled."""
    mesh, examples = trainer.mesh, inputs.examples
    place = everywhere(mesh)
    if data.streams is None:
        evaluate = jax.jit(trainer.evaluate, out_shardings=place)
        return evaluate.lower(state.params, state.batch_stats, examples)
    batch = shapes(data.streams[1].evaluated(0), evaluation_batch(mesh), mesh)
    sums = jax.jit(trainer.sums, out_shardings=place)
    return sums.lower(state.params, state.batch_stats, examples._replace(train={}), batch)


def first_state(trainer: Trainer, inputs: Inputs) -> Any:
    """What the state before the first step looks like, and where it lies."""

    def placed(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        place = sharding(leaf, trainer.mesh, trainer.settings.fsdp)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)

    return jax.tree.map(placed, jax.eval_shape(trainer.init, inputs))


def places_of(state: Any) -> Any:
    """Where each array of a state lies."""
    return jax.tree.map(lambda leaf: leaf.sharding, state)


def trainer_of(settings: Settings, data: Data) -> Trainer:
    """Network and task of a run, brought together with its data."""
    network, task = models.make(settings, data), tasks.make(settings)
    return Trainer(settings, network, task, data.num_examples, mesh_of(settings))
