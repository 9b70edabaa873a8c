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

from benchmarks.decoder import Decoder
from experiments.models.resnet import ResNet
from experiments.models.vit import Layer, VisionTransformer

VOCABULARY = 1024


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
    """Two layers of attention on tokens; their mean is classified."""

    width: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = nn.Embed(VOCABULARY, self.width, dtype=self.dtype)(tokens)
        places = self.param("places", nn.initializers.normal(0.02), (1, *x.shape[1:]))
        x = x + places.astype(self.dtype)
        for _ in range(2):
            x = Layer(4, self.dtype)(x, train=True)
        return nn.Dense(10, dtype=self.dtype)(nn.LayerNorm(dtype=self.dtype)(x).mean(1))


class Training(nn.Module):
    """A network of the experiments, as it trains."""

    network: Callable[..., nn.Module]
    width: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        return self.network(10, width=self.width, dtype=self.dtype)(images, train=True)


def make(
    name: str,
    batch_size: int,
    width: int | None = None,
    dtype: Any = jnp.float32,
    make_arrays: Callable[..., Any] = lambda function: function(),
) -> Problem:
    """One of `MODELS` with its own width, or another; computing in `dtype`.

    With `jax.eval_shape` for `make_arrays` there are shapes in the place of arrays.
    """
    if name in DECODERS:
        return _decoder(name, batch_size, make_arrays)
    module, usual, shape = MODELS[name]
    return _problem(name, module(usual if width is None else width, dtype), (batch_size, *shape), make_arrays)


def _decoder(name: str, batch_size: int, make_arrays: Callable[..., Any]) -> Problem:
    model, length = DECODERS[name]

    def arrays():
        init, tokens = jax.random.split(jax.random.key(0))
        shape = (batch_size, length + 1)
        batch = {
            "input": jax.random.randint(tokens, shape, 0, model.vocabulary),
            "index": jnp.arange(batch_size),
        }
        return model.init(init), batch

    params, batch = make_arrays(arrays)
    return Problem(name, params, {}, batch, lambda p, stats, batch: (model.losses(p, batch["input"]), stats))


IMAGE = (32, 32, 3)
MODELS: dict[str, tuple[Callable[[int, Any], nn.Module], int, tuple[int, ...]]] = {
    "mlp": (Mlp, 1024, (784,)),
    "resnet": (partial(Training, partial(ResNet, blocks=(1, 1, 1))), 16, IMAGE),
    "transformer": (Transformer, 128, (64,)),
    "resnet18": (partial(Training, partial(ResNet, blocks=(2, 2, 2, 2))), 64, IMAGE),
    "depthwise": (Depthwise, 16, IMAGE),
    "channels_first": (ChannelsFirst, 16, IMAGE),
    "vit_s": (partial(Training, VisionTransformer), 384, (224, 224, 3)),
    "vit_l": (partial(Training, partial(VisionTransformer, heads=16, layers=24)), 1024, (224, 224, 3)),
}
"""Network, its width, and the shape of one input."""

DECODERS = {"decoder": (Decoder(1024, 12), 1024), "decoder_1b": (Decoder(2048, 24), 1024)}
"""Of 185 million and of 1.3 billion parameters, and how many tokens of a sequence are predicted."""


def _problem(name: str, model: nn.Module, shape: tuple[int, ...], make_arrays: Callable[..., Any]) -> Problem:
    def arrays():
        inputs, labels, init = jax.random.split(jax.random.key(0), 3)
        if name == "transformer":
            given = jax.random.randint(inputs, shape, 0, VOCABULARY)
        else:
            given = jax.random.normal(inputs, shape)
        batch = {
            "input": given,
            "label": jax.random.randint(labels, shape[:1], 0, 10),
            "index": jnp.arange(shape[0]),
        }
        return jax.jit(model.init)(init, batch["input"][:1]), batch

    variables, batch = make_arrays(arrays)

    def losses(params, stats, batch):
        logits, new = model.apply({"params": params} | stats, batch["input"], mutable=["batch_stats"])
        logits = logits.astype(jnp.float32)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]), new

    stats = {k: v for k, v in variables.items() if k != "params"}
    return Problem(name, variables["params"], stats, batch, losses)
