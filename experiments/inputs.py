"""The data set and the numbers of a run, on the device."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import methods
from experiments.data import Data, Split
from experiments.settings import Settings

EVALUATION_BATCH = 500

# Training images from which mean and deviation are taken, at most.
STATISTICS_EXAMPLES = 10_000


class Examples(NamedTuple):
    """The data set on the device.

    Attributes:
      train: training examples.
      test: test examples in batches [batches, batch, ...], filled up with label -1.
      mean: float32 [1, 1, 1, channels], mean of the training images.
      scale: float32 [1, 1, 1, channels], their standard deviation.
    """

    train: Split
    test: Split
    mean: jax.Array
    scale: jax.Array

    def standardized(self, images: jax.Array) -> jax.Array:
        """Images in float32, with mean 0 and deviation 1 over the training set."""
        return (images.astype(jnp.float32) - self.mean) / self.scale


class Inputs(NamedTuple):
    """What the programs are called with beside the state.

    Attributes:
      examples: the data set.
      numbers: scalars: seed, learning rate, weight decay, the method's radii.
    """

    examples: Examples
    numbers: dict[str, jax.Array]


def make_inputs(settings: Settings, data: Data) -> Inputs:
    """Puts the data and the numbers of one run on the device."""
    values = vars(settings) | methods.given(settings)
    numbers: dict[str, Any] = {name: np.float32(values[name]) for name in methods.TRACED if name in values}
    numbers["seed"] = np.int32(settings.seed)
    images = data.train.image[:STATISTICS_EXAMPLES]
    examples = Examples(
        train=data.train,
        test=in_batches(data.test, EVALUATION_BATCH),
        mean=images.mean((0, 1, 2), np.float64, keepdims=True).astype(np.float32),
        scale=images.std((0, 1, 2), np.float64, keepdims=True).astype(np.float32),
    )
    return jax.device_put(Inputs(examples, numbers))


def in_batches(split: Split, size: int) -> Split:
    """Cuts examples into equal batches; the last is filled up with label -1."""
    missing = -len(split.label) % size
    image = np.pad(split.image, ((0, missing), (0, 0), (0, 0), (0, 0)))
    label = np.pad(split.label, (0, missing), constant_values=-1)
    return Split(image.reshape(-1, size, *image.shape[1:]), label.reshape(-1, size))
