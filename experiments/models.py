"""Two convolutional networks with batch norm, small and CIFAR-sized."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn

Norm = partial(nn.BatchNorm, momentum=0.9, epsilon=1e-5)
Conv = partial(nn.Conv, kernel_size=(3, 3), use_bias=False)


class SmallConvNet(nn.Module):
    """Three convolutions with batch norm, the last two with stride 2, and a linear layer.

    Attributes:
      num_classes: number of logits.
      width: channels of the first convolution; the other two have twice as many.
    """

    num_classes: int
    width: int = 16

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        """Maps float images [n, height, width, channels] to logits [n, num_classes]."""
        x = images
        for features, stride in ((self.width, 1), (2 * self.width, 2), (2 * self.width, 2)):
            x = Conv(features, strides=stride)(x)
            x = nn.relu(Norm(use_running_average=not train)(x))
        return nn.Dense(self.num_classes)(x.mean((1, 2)))


class Block(nn.Module):
    """Residual block of two 3x3 convolutions; a 1x1 convolution where the shape changes."""

    features: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps [n, h, w, c] to [n, h / stride, w / stride, features]."""
        norm = partial(Norm, use_running_average=not train)
        y = nn.relu(norm()(Conv(self.features, strides=self.stride)(x)))
        y = norm()(Conv(self.features)(y))
        if x.shape != y.shape:
            x = norm()(Conv(self.features, kernel_size=(1, 1), strides=self.stride)(x))
        return nn.relu(x + y)


class ResNet18(nn.Module):
    """ResNet-18 as it is used for CIFAR: a 3x3 stem without pooling, four stages of two blocks.

    Attributes:
      num_classes: number of logits.
      width: channels of the first stage, doubled from stage to stage.
    """

    num_classes: int
    width: int = 64

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        """Maps float images [n, height, width, channels] to logits [n, num_classes]."""
        x = nn.relu(Norm(use_running_average=not train)(Conv(self.width)(images)))
        for stage in range(4):
            for stride in (1 if stage == 0 else 2, 1):
                x = Block(self.width * 2**stage, stride)(x, train)
        return nn.Dense(self.num_classes)(jnp.mean(x, (1, 2)))


MODELS: dict[str, Callable[[int], nn.Module]] = {"conv": SmallConvNet, "resnet18": ResNet18}
