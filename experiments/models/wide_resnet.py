"""Wide ResNets (Zagoruyko and Komodakis, 2016), for small images."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from experiments.models.layers import conv, logits, norm


class Block(nn.Module):
    """Norm, activation and convolution, twice; the shortcut branches off after the first activation."""

    features: int
    stride: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps [n, h, w, c] to [n, h / stride, w / stride, features]."""
        y = nn.relu(norm(train, self.dtype)(x))
        if x.shape[-1] != self.features or self.stride != 1:
            x = conv(self.features, kernel_size=(1, 1), strides=self.stride, dtype=self.dtype)(y)
        y = conv(self.features, strides=self.stride, dtype=self.dtype)(y)
        y = nn.relu(norm(train, self.dtype)(y))
        return x + conv(self.features, dtype=self.dtype)(y)


class WideResNet(nn.Module):
    """Three stages of `(depth - 4) / 6` blocks, of 16, 32 and 64 times `widen` channels.

    Attributes:
      num_classes: number of logits.
      depth: convolutions on the longest way; 6 n + 4.
      widen: factor on the channels.
      dtype: of the computation; parameters are float32.
    """

    num_classes: int
    depth: int = 28
    widen: int = 10
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        """Maps float images [n, height, width, channels] to logits [n, num_classes]."""
        x = conv(16, dtype=self.dtype)(images)
        for stage in range(3):
            for number in range((self.depth - 4) // 6):
                stride = 2 if stage > 0 and number == 0 else 1
                x = Block(16 * self.widen * 2**stage, stride, self.dtype)(x, train)
        return logits(nn.relu(norm(train, self.dtype)(x)), self.num_classes, self.dtype)
