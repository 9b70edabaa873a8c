"""What the convolutional networks have in common."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

conv = partial(nn.Conv, kernel_size=(3, 3), use_bias=False)


def norm(train: bool, dtype: Any) -> nn.BatchNorm:
    """Batch norm with the batch's own statistics in training."""
    return nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=dtype)


def stem(x: jax.Array, width: int, small_images: bool, dtype: Any, train: bool) -> jax.Array:
    """The first convolution: 3x3 for small images; 7x7 with stride 2, and pooling, for ImageNet's."""
    if small_images:
        return nn.relu(norm(train, dtype)(conv(width, dtype=dtype)(x)))
    x = conv(width, kernel_size=(7, 7), strides=2, dtype=dtype)(x)
    return nn.max_pool(nn.relu(norm(train, dtype)(x)), (3, 3), (2, 2), "SAME")


def logits(x: jax.Array, num_classes: int, dtype: Any) -> jax.Array:
    """The mean over all places, and a linear layer."""
    return nn.Dense(num_classes, dtype=dtype)(jnp.mean(x, (1, 2)))
