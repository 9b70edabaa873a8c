"""The problems that are timed: a dense network, a small residual one with batch norm, a transformer."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn


@dataclasses.dataclass(frozen=True)
class Problem:
    """A network, its loss, and one batch.

    Attributes:
      name: of the network.
      params: initial parameters.
      stats: initial batch statistics, empty without batch norm.
      batch: inputs, labels, and the examples' numbers; random.
      losses: `(params, stats, batch) -> (losses [batch], new stats)`.
    """

    name: str
    params: Any
    stats: Any
    batch: dict[str, jax.Array]
    losses: Callable[[Any, Any, Any], tuple[jax.Array, Any]]


class Mlp(nn.Module):
    """Three hidden layers."""

    width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for _ in range(3):
            x = nn.relu(nn.Dense(self.width)(x))
        return nn.Dense(10)(x)


class ResNet(nn.Module):
    """A stem and three residual blocks of `width`, `2 width` and `4 width` channels."""

    width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv = partial(nn.Conv, kernel_size=(3, 3), use_bias=False)
        norm = partial(nn.BatchNorm, use_running_average=False, momentum=0.9)
        x = nn.relu(norm()(conv(self.width)(x)))
        for stage in range(3):
            features, strides = self.width * 2**stage, 1 if stage == 0 else 2
            y = nn.relu(norm()(conv(features, strides=strides)(x)))
            y = norm()(conv(features)(y))
            if x.shape != y.shape:
                x = norm()(conv(features, kernel_size=(1, 1), strides=strides)(x))
            x = nn.relu(x + y)
        return nn.Dense(10)(x.mean((1, 2)))


class Transformer(nn.Module):
    """Two blocks on 64 tokens; their mean is classified."""

    width: int

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        places = self.param("places", nn.initializers.normal(0.02), (tokens.shape[1], self.width))
        x = nn.Embed(1024, self.width)(tokens) + places
        for _ in range(2):
            attended: Any = nn.MultiHeadDotProductAttention(num_heads=4)(nn.LayerNorm()(x))
            x = x + attended
            x = x + nn.Dense(self.width)(nn.gelu(nn.Dense(4 * self.width)(nn.LayerNorm()(x))))
        return nn.Dense(10)(nn.LayerNorm()(x).mean(1))


def mlp(batch_size: int, width: int) -> Problem:
    """784 inputs, three times `width`, 10 classes."""
    return _problem("mlp", Mlp(width), (batch_size, 784))


def resnet(batch_size: int, width: int) -> Problem:
    """32x32 images, batch norm in training mode, 10 classes."""
    return _problem("resnet", ResNet(width), (batch_size, 32, 32, 3))


def transformer(batch_size: int, width: int) -> Problem:
    """64 tokens of 1,024, two blocks, 10 classes."""
    return _problem("transformer", Transformer(width), (batch_size, 64), tokens=1024)


def _problem(name: str, model: nn.Module, shape: tuple[int, ...], tokens: int = 0) -> Problem:
    inputs, labels, init = jax.random.split(jax.random.key(0), 3)
    given = jax.random.randint(inputs, shape, 0, tokens) if tokens else jax.random.normal(inputs, shape)
    batch = {
        "input": given,
        "label": jax.random.randint(labels, shape[:1], 0, 10),
        "index": jnp.arange(shape[0]),
    }
    variables = model.init(init, batch["input"])

    def losses(params, stats, batch):
        logits, new = model.apply({"params": params} | stats, batch["input"], mutable=["batch_stats"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]), new

    stats = {k: v for k, v in variables.items() if k != "params"}
    return Problem(name, variables["params"], stats, batch, losses)
