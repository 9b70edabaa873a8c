"""The compiled programs of a run.

They are compiled ahead, so that compile time never hides in step time. Seed, learning rate and radii
are arguments: one compilation serves all seeds of a method.
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from experiments import methods, models, tasks
from experiments.data import Data
from experiments.data.arrays import num_rows
from experiments.devices import everywhere, mesh_of, sharding
from experiments.inputs import Examples, Inputs, make_inputs
from experiments.settings import Settings
from experiments.training import Trainer, TrainState


@dataclasses.dataclass(frozen=True)
class Programs:
    """A trainer's functions, compiled for the shapes of one data set.

    Attributes:
      trainer: what was compiled.
      init: inputs -> first state.
      first_steps: (state, inputs, count) -> state, in the first epoch; donates the state.
      steps: the same in the later epochs.
      evaluate: (params, batch_stats, examples) -> (loss, score).
      compile_seconds: what all this took.
    """

    trainer: Trainer
    init: Callable[[Inputs], TrainState]
    first_steps: Callable[[TrainState, Inputs, np.int32], TrainState]
    steps: Callable[[TrainState, Inputs, np.int32], TrainState]
    evaluate: Callable[[Any, Any, Examples], tuple[jax.Array, jax.Array]]
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
    start = time.perf_counter()
    trainer = trainer_of(settings, data)
    inputs = make_inputs(settings, data, trainer.task)
    state = jax.eval_shape(trainer.init, inputs)
    mesh = trainer.mesh
    places = jax.tree.map(lambda leaf: sharding(leaf, mesh, settings.fsdp), state)
    state = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), state, places
    )

    def steps(whole_batch: bool) -> Callable[[TrainState, Inputs, np.int32], TrainState]:
        program = functools.partial(trainer.steps, whole_batch=whole_batch)
        program = jax.jit(program, donate_argnums=0, out_shardings=places)
        return program.lower(state, inputs, np.int32(1)).compile()

    later = steps(whole_batch=False)
    first = steps(whole_batch=True) if settings.method in methods.WHOLE_FIRST_EPOCH else later
    evaluate = jax.jit(trainer.evaluate, out_shardings=everywhere(mesh))
    evaluate = evaluate.lower(state.params, state.batch_stats, inputs.examples).compile()
    init = jax.jit(trainer.init, out_shardings=places).lower(inputs).compile()
    return Programs(trainer, init, first, later, evaluate, time.perf_counter() - start)


def trainer_of(settings: Settings, data: Data) -> Trainer:
    """Network and task of a run, brought together with its data."""
    network, task = models.make(settings, data), tasks.make(settings)
    return Trainer(settings, network, task, num_rows(data.train), mesh_of(settings))
