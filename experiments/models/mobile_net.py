"""MobileNet (Howard et al., 2017): convolutions of one channel each, then 1x1 ones."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from experiments.models.layers import conv, logits, norm

BLOCKS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5, (1024, 2), (1024, 1))
"""Features and stride of each block."""


class MobileNet(nn.Module):
    """A convolution and thirteen blocks.

    Attributes:
      num_classes: number of logits.
      small_images: whether the first convolution and the first strided block keep the size.
      dtype: of the computation; parameters are float32.
    """

    num_classes: int
    small_images: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        """Maps float images [n, height, width, channels] to logits [n, num_classes]."""
        x = conv(32, strides=1 if self.small_images else 2, dtype=self.dtype)(images)
        x = nn.relu(norm(train, self.dtype)(x))
        for number, (features, stride) in enumerate(BLOCKS):
            channels, kept = x.shape[-1], self.small_images and number == 1
            x = conv(channels, strides=1 if kept else stride, feature_group_count=channels, dtype=self.dtype)(
                x
            )
            x = nn.relu(norm(train, self.dtype)(x))
            x = conv(features, kernel_size=(1, 1), dtype=self.dtype)(x)
            x = nn.relu(norm(train, self.dtype)(x))
        return logits(x, self.num_classes, self.dtype)
