"""The problems that are timed: networks with random batches."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax import lax


@dataclasses.dataclass(frozen=True)
class Problem:
    """A network, its loss, and one batch.

    Attributes:
      name: of the network.
      params: initial parameters, float32.
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
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for _ in range(3):
            x = nn.relu(nn.Dense(self.width, dtype=self.dtype)(x))
        return nn.Dense(10, dtype=self.dtype)(x)


class ResNet(nn.Module):
    """A 3x3 stem and stages of residual blocks, of `width`, `2 width`, ... channels."""

    width: int
    dtype: Any = jnp.float32
    stages: int = 3
    blocks: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv = partial(nn.Conv, kernel_size=(3, 3), use_bias=False, dtype=self.dtype)
        norm = partial(nn.BatchNorm, use_running_average=False, momentum=0.9, dtype=self.dtype)
        x = nn.relu(norm()(conv(self.width)(x)))
        for stage in range(self.stages):
            for block in range(self.blocks):
                features, strides = self.width * 2**stage, 2 if stage and not block else 1
                y = nn.relu(norm()(conv(features, strides=strides)(x)))
                y = norm()(conv(features)(y))
                if x.shape != y.shape:
                    x = norm()(conv(features, kernel_size=(1, 1), strides=strides)(x))
                x = nn.relu(x + y)
        return nn.Dense(10, dtype=self.dtype)(x.mean((1, 2)))


class Depthwise(nn.Module):
    """A 3x3 stem and two pairs of a depthwise and a 1x1 convolution, as in MobileNet."""

    width: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv = partial(nn.Conv, use_bias=False, dtype=self.dtype)
        norm = partial(nn.BatchNorm, use_running_average=False, momentum=0.9, dtype=self.dtype)
        x = nn.relu(norm()(conv(self.width, (3, 3))(x)))
        for strides in (1, 2):
            channels = x.shape[-1]
            x = nn.relu(norm()(conv(channels, (3, 3), strides, feature_group_count=channels)(x)))
            x = nn.relu(norm()(conv(2 * channels, (1, 1))(x)))
        return nn.Dense(10, dtype=self.dtype)(x.mean((1, 2)))


class ChannelsFirst(nn.Module):
    """Three 3x3 convolutions on images of `[batch, channels, height, width]`, as PyTorch has them."""

    width: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = jnp.moveaxis(x, -1, 1).astype(self.dtype)
        for number, strides in enumerate((1, 2, 2)):
            shape = (self.width * 2**number, x.shape[1], 3, 3)
            kernel = self.param(f"kernel_{number}", nn.initializers.he_normal(in_axis=1, out_axis=0), shape)
            numbers = ("NCHW", "OIHW", "NCHW")
            x = lax.conv_general_dilated(
                x, kernel.astype(self.dtype), (strides, strides), "SAME", dimension_numbers=numbers
            )
            x = nn.relu(x)
        return nn.Dense(10, dtype=self.dtype)(x.mean((2, 3)))


class Transformer(nn.Module):
    """Blocks of attention on tokens, or on patches of images; the mean is classified."""

    width: int
    dtype: Any = jnp.float32
    depth: int = 2
    heads: int = 4
    patch: int = 16

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        dense, norm = partial(nn.Dense, dtype=self.dtype), partial(nn.LayerNorm, dtype=self.dtype)
        if inputs.ndim == 2:
            x = nn.Embed(1024, self.width, dtype=self.dtype)(inputs)
        else:
            sides = (self.patch, self.patch)
            x = nn.Conv(self.width, sides, sides, dtype=self.dtype)(inputs)
            x = x.reshape(x.shape[0], -1, self.width)
        places = self.param("places", nn.initializers.normal(0.02), x.shape[1:])
        x = x + places.astype(self.dtype)
        for _ in range(self.depth):
            attention: Any = nn.MultiHeadDotProductAttention(num_heads=self.heads, dtype=self.dtype)
            x = x + attention(norm()(x))
            x = x + dense(self.width)(nn.gelu(dense(4 * self.width)(norm()(x))))
        return dense(10)(norm()(x).mean(1))


def make(name: str, batch_size: int, width: int | None = None, dtype: Any = jnp.float32) -> Problem:
    """One of `MODELS` with its own width, or another; computing in `dtype`."""
    module, usual, shape = MODELS[name]
    tokens = 1024 if len(shape) == 1 and name == "transformer" else 0
    return _problem(name, module(usual if width is None else width, dtype), (batch_size, *shape), tokens)


MODELS: dict[str, tuple[Callable[[int, Any], nn.Module], int, tuple[int, ...]]] = {
    "mlp": (Mlp, 1024, (784,)),
    "resnet": (ResNet, 16, (32, 32, 3)),
    "transformer": (Transformer, 128, (64,)),
    "resnet18": (partial(ResNet, stages=4, blocks=2), 64, (32, 32, 3)),
    "depthwise": (Depthwise, 16, (32, 32, 3)),
    "channels_first": (ChannelsFirst, 16, (32, 32, 3)),
    "vit_s": (partial(Transformer, depth=12, heads=6), 384, (224, 224, 3)),
}
"""Network, its width, and the shape of one input."""


def _problem(name: str, model: nn.Module, shape: tuple[int, ...], tokens: int) -> Problem:
    inputs, labels, init = jax.random.split(jax.random.key(0), 3)
    given = jax.random.randint(inputs, shape, 0, tokens) if tokens else jax.random.normal(inputs, shape)
    batch = {
        "input": given,
        "label": jax.random.randint(labels, shape[:1], 0, 10),
        "index": jnp.arange(shape[0]),
    }
    variables = jax.jit(model.init)(init, batch["input"][:1])

    def losses(params, stats, batch):
        logits, new = model.apply({"params": params} | stats, batch["input"], mutable=["batch_stats"])
        logits = logits.astype(jnp.float32)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]), new

    stats = {k: v for k, v in variables.items() if k != "params"}
    return Problem(name, variables["params"], stats, batch, losses)
