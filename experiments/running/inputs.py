"""The data set and the numbers of a run, on the device."""

from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from experiments import methods, models
from experiments.data.arrays import Batch, Data, in_batches
from experiments.running.devices import everywhere, mesh_of
from experiments.settings import Settings
from experiments.tasks import Task

EVALUATION_BATCH = 500


class Examples(NamedTuple):
    """The data set on the device, and what else stays as it is while a network is trained.

    Attributes:
      train: training examples; of a stream, a sample.
      test: test examples in batches [batches, batch, ...]; `real` is false in rows that fill up the
        last. Of a stream, nothing.
      constants: what the task needs to know of the training examples.
      frozen: parts of the network that are not trained, by their names.
    """

    train: Batch
    test: Batch
    constants: Batch
    frozen: dict[str, Any]


class Inputs(NamedTuple):
    """What the programs are called with beside the state.

    Attributes:
      examples: the data set.
      numbers: scalars: seed, learning rate, weight decay, the method's radii.
      pretrained: parts of the first parameters that are not drawn. They are inputs because constants of this
        size would be copied into every program.
    """

    examples: Examples
    numbers: dict[str, jax.Array]
    pretrained: dict[str, Any]


def make_inputs(settings: Settings, data: Data, task: Task) -> Inputs:
    """Puts the data and the numbers of one run on the devices."""
    mesh = mesh_of(settings)
    return jax.device_put(on_host(settings, data, task, mesh), everywhere(mesh))


def on_host(settings: Settings, data: Data, task: Task, mesh: Mesh) -> Inputs:
    """The same, not yet on the devices of a mesh."""
    test = in_batches(data.test, evaluation_batch(mesh)) if data.test else {}
    examples = Examples(data.train, test, task.constants(data.train), models.frozen(settings))
    return Inputs(examples, numbers_of(settings), models.pretrained(settings))


def with_numbers(inputs: Inputs, settings: Settings) -> Inputs:
    """The same data with the numbers of another run."""
    return inputs._replace(numbers=jax.device_put(numbers_of(settings), everywhere(mesh_of(settings))))


def evaluation_batch(mesh: Mesh) -> int:
    """Test examples at a time; the devices divide it."""
    return -(-EVALUATION_BATCH // mesh.size) * mesh.size


def numbers_of(settings: Settings) -> dict[str, Any]:
    """The scalars of one run, which one compilation serves all values of."""
    values = vars(settings) | methods.given(settings)
    numbers: dict[str, Any] = {name: np.float32(values[name]) for name in methods.TRACED if name in values}
    return numbers | {"seed": np.int32(settings.seed)}
