"""SimCC (Li et al., 2022) on a small ResNet: coordinates as classes, without a map of the place."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from experiments.models.layers import conv, norm
from experiments.models.resnet import Block


class SimCC(nn.Module):
    """Three residual blocks, down to an eighth of the resolution, and two linear layers for all joints.

    The linear layers see a joint's own channels, at all places. These stand for the upsampled map of
    the paper, which has one channel per joint.

    Attributes:
      num_classes: number of joints.
      bins_per_pixel: classes per pixel and axis.
      channels_per_joint: features of each place that are a joint's own.
      width: channels of the first convolution, doubled from block to block.
      dtype: of the computation; parameters are float32.
    """

    num_classes: int
    bins_per_pixel: int = 2
    channels_per_joint: int = 4
    width: int = 16
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        """Maps float images [n, side, side, channels] to logits [n, joints, 2, bins]."""
        x = conv(self.width, strides=2, dtype=self.dtype)(images)
        x = nn.relu(norm(train, self.dtype)(x))
        for times, stride in ((2, 2), (4, 2), (4, 1)):
            x = Block(times * self.width, stride, self.dtype)(x, train)
        x = nn.Conv(self.num_classes * self.channels_per_joint, (1, 1), dtype=self.dtype)(x)
        count, height, width, _ = x.shape
        x = x.reshape(count, height * width, self.num_classes, self.channels_per_joint)
        x = x.swapaxes(1, 2).reshape(count, self.num_classes, -1)
        bins = self.bins_per_pixel * images.shape[1]
        return nn.DenseGeneral((2, bins), dtype=self.dtype)(x)
