"""A small convolutional network with batch norm, for small tasks."""

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
