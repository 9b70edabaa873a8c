"""PyramidNets (Han et al., 2017), for small images: every block is a little wider than the last."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from experiments.models.layers import conv, logits, norm


class Block(nn.Module):
    """Two 3x3 convolutions between norms; the shortcut has no parameters, new channels begin with zeros."""

    features: int
    stride: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps [n, h, w, c] to [n, h / stride, w / stride, features]."""
        y = conv(self.features, strides=self.stride, dtype=self.dtype)(norm(train, self.dtype)(x))
        y = nn.relu(norm(train, self.dtype)(y))
        y = norm(train, self.dtype)(conv(self.features, dtype=self.dtype)(y))
        if self.stride != 1:
            x = nn.avg_pool(x, (self.stride,) * 2, (self.stride,) * 2)
        return y + jnp.pad(x, [(0, 0)] * 3 + [(0, self.features - x.shape[-1])])


class PyramidNet(nn.Module):
    """Three stages of `(depth - 2) / 6` blocks, whose channels grow from 16 to `16 + widen` in equal steps.

    Attributes:
      num_classes: number of logits.
      depth: convolutions on the longest way; 6 n + 2.
      widen: channels that the blocks add together.
      dtype: of the computation; parameters are float32.
    """

    num_classes: int
    depth: int = 110
    widen: int = 270
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        """Maps float images [n, height, width, channels] to logits [n, num_classes]."""
        x = norm(train, self.dtype)(conv(16, dtype=self.dtype)(images))
        blocks = (self.depth - 2) // 6
        for number in range(3 * blocks):
            features = 16 + self.widen * (number + 1) // (3 * blocks)
            stride = 2 if number in (blocks, 2 * blocks) else 1
            x = Block(features, stride, self.dtype)(x, train)
        return logits(nn.relu(norm(train, self.dtype)(x)), self.num_classes, self.dtype)
