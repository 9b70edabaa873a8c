"""The small convolutional network in Flax NNX: how any NNX module is brought into these experiments.

`python -m experiments.train --model conv_nnx`
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx


class SmallConvNet(nnx.Module):
    """Three convolutions with batch norm, the last two with stride 2, and a linear layer.

    The same network as `experiments.models.small`. NNX modules are built with the number of input
    channels, and `train()` and `eval()` say how batch norm takes its statistics.
    """

    def __init__(
        self, num_classes: int, channels: int, rngs: nnx.Rngs, width: int = 16, dtype: Any = jnp.float32
    ):
        """Draws the weights from `rngs.params`; `dtype` is that of the computation."""
        conv = partial(nnx.Conv, kernel_size=(3, 3), use_bias=False, dtype=dtype, rngs=rngs)
        norm = partial(nnx.BatchNorm, momentum=0.9, epsilon=1e-5, dtype=dtype, rngs=rngs)
        self.conv1, self.norm1 = conv(channels, width), norm(width)
        self.conv2, self.norm2 = conv(width, 2 * width, strides=2), norm(2 * width)
        self.conv3, self.norm3 = conv(2 * width, 2 * width, strides=2), norm(2 * width)
        self.dense = nnx.Linear(2 * width, num_classes, dtype=dtype, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Maps float images [n, height, width, channels] to logits [n, num_classes]."""
        x = nnx.relu(self.norm1(self.conv1(images)))
        x = nnx.relu(self.norm2(self.conv2(x)))
        x = nnx.relu(self.norm3(self.conv3(x)))
        return self.dense(x.mean((1, 2)))
