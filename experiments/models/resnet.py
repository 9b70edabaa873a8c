"""ResNets (He et al., 2015), in the forms of CIFAR and of ImageNet."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from experiments.models.layers import conv, logits, norm, stem


class Block(nn.Module):
    """Residual block of two 3x3 convolutions; a 1x1 convolution where the shape changes."""

    features: int
    stride: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps [n, h, w, c] to [n, h / stride, w / stride, features]."""
        y = conv(self.features, strides=self.stride, dtype=self.dtype)(x)
        y = nn.relu(norm(train, self.dtype)(y))
        y = norm(train, self.dtype)(conv(self.features, dtype=self.dtype)(y))
        return nn.relu(shortcut(x, y, self.stride, self.dtype, train) + y)


class Bottleneck(nn.Module):
    """Residual block of 1x1, 3x3 and 1x1 convolutions, with four times the features at its end."""

    features: int
    stride: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps [n, h, w, c] to [n, h / stride, w / stride, 4 features]."""
        y = conv(self.features, kernel_size=(1, 1), dtype=self.dtype)(x)
        y = nn.relu(norm(train, self.dtype)(y))
        y = conv(self.features, strides=self.stride, dtype=self.dtype)(y)
        y = nn.relu(norm(train, self.dtype)(y))
        y = norm(train, self.dtype)(conv(4 * self.features, kernel_size=(1, 1), dtype=self.dtype)(y))
        return nn.relu(shortcut(x, y, self.stride, self.dtype, train) + y)


def shortcut(x: jax.Array, like: jax.Array, stride: int, dtype: Any, train: bool) -> jax.Array:
    """`x`, or its 1x1 convolution in the shape of `like`."""
    if x.shape == like.shape:
        return x
    x = conv(like.shape[-1], kernel_size=(1, 1), strides=stride, dtype=dtype)(x)
    return norm(train, dtype)(x)


class ResNet(nn.Module):
    """Four stages of residual blocks.

    Attributes:
      num_classes: number of logits.
      blocks: in each stage.
      bottleneck: whether the blocks have three convolutions.
      small_images: whether the stem is that for 32x32 and 64x64 images.
      width: channels of the first stage, doubled from stage to stage.
      dtype: of the computation; parameters are float32.
    """

    num_classes: int
    blocks: tuple[int, ...]
    bottleneck: bool = False
    small_images: bool = True
    width: int = 64
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        """Maps float images [n, height, width, channels] to logits [n, num_classes]."""
        x = stem(images, self.width, self.small_images, self.dtype, train)
        block = Bottleneck if self.bottleneck else Block
        for stage, count in enumerate(self.blocks):
            for number in range(count):
                stride = 2 if stage > 0 and number == 0 else 1
                x = block(self.width * 2**stage, stride, self.dtype)(x, train)
        return logits(x, self.num_classes, self.dtype)
