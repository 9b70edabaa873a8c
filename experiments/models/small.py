"""Small networks for small tasks."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from experiments.models.layers import conv, norm


class SmallConvNet(nn.Module):
    """Three convolutions with batch norm, the last two with stride 2, and a linear layer.

    Attributes:
      num_classes: number of logits.
      width: channels of the first convolution; the other two have twice as many.
      dtype: of the computation; parameters are float32.
    """

    num_classes: int
    width: int = 16
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        """Maps float images [n, height, width, channels] to logits [n, num_classes]."""
        x = images
        for features, stride in ((self.width, 1), (2 * self.width, 2), (2 * self.width, 2)):
            x = conv(features, strides=stride, dtype=self.dtype)(x)
            x = nn.relu(norm(train, self.dtype)(x))
        return nn.Dense(self.num_classes, dtype=self.dtype)(x.mean((1, 2)))


class Perceptron(nn.Module):
    """Dense layers, for series, or for images as one long row.

    Attributes:
      num_classes: number of logits.
      widths: of the layers between.
      dtype: of the computation; parameters are float32.
    """

    num_classes: int
    widths: tuple[int, ...] = (256, 256)
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, inputs: jax.Array, train: bool) -> jax.Array:
        """Maps floats [n, ...] to logits [n, num_classes]."""
        del train
        x = inputs.reshape(len(inputs), -1)
        for width in self.widths:
            x = nn.relu(nn.Dense(width, dtype=self.dtype)(x))
        return nn.Dense(self.num_classes, dtype=self.dtype)(x)


class StridedConvNet(nn.Module):
    """Convolutions with stride 2, along series or over images, and a linear layer.

    Attributes:
      num_classes: number of logits.
      widths: channels of the convolutions.
      sizes: of their windows.
      dtype: of the computation; parameters are float32.
    """

    num_classes: int
    widths: tuple[int, ...] = (32, 32, 32)
    sizes: tuple[int, ...] = (5, 3, 3)
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, inputs: jax.Array, train: bool) -> jax.Array:
        """Maps floats, series [n, length] or images [n, height, width, channels], to logits."""
        del train
        x = inputs[..., None] if inputs.ndim == 2 else inputs
        for width, size in zip(self.widths, self.sizes, strict=True):
            window = (size,) * (x.ndim - 2)
            x = nn.relu(nn.Conv(width, window, strides=2, dtype=self.dtype)(x))
        return nn.Dense(self.num_classes, dtype=self.dtype)(x.reshape(len(x), -1))
