"""A decoder as large language models are built, in plain JAX: layers in one scan, recomputed backwards."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, PartitionSpec

HEAD = 64


@dataclasses.dataclass(frozen=True)
class Decoder:
    """Attention and a dense net in each layer, both behind a norm; the embedding is the last layer too.

    Parameters are float32, split over devices or not; products are bfloat16. With `remat` a layer keeps
    nothing for the backward pass but what it was given.
    """

    width: int
    layers: int
    vocabulary: int = 32_768
    remat: bool = True

    def but(self, **changes: Any) -> "Decoder":
        """The same with some fields changed."""
        return dataclasses.replace(self, **changes)

    def init(self, key: jax.Array) -> Any:
        """Stacked over layers, so that each leaf is split alike."""
        wide, layers = self.width, self.layers
        shapes = {
            "qkv": (layers, wide, 3 * wide),
            "out": (layers, wide, wide),
            "up": (layers, wide, 4 * wide),
            "down": (layers, 4 * wide, wide),
            "embedding": (self.vocabulary, wide),
        }
        keys = dict(zip(shapes, jax.random.split(key, len(shapes)), strict=True))
        params = {
            name: jax.random.normal(keys[name], shape) / math.sqrt(shape[-2])
            for name, shape in shapes.items()
        }
        return params | {name: jnp.ones((layers, wide)) for name in ("norm_attention", "norm_dense")}

    def losses(self, params: Any, tokens: jax.Array) -> jax.Array:
        """The mean cross-entropy of the next token in each sequence; `tokens`: `int[batch, length]`."""
        params = dict(params)
        embedding = _whole(params.pop("embedding"))
        x = embedding.at[tokens[:, :-1]].get(out_sharding=_rows(3))

        def layer(x, weights):
            weights = jax.tree.map(_whole, weights)
            x = x + _attention(_normalized(x, weights["norm_attention"]), weights["qkv"]) @ weights["out"]
            hidden = jax.nn.gelu(_normalized(x, weights["norm_dense"]) @ weights["up"])
            return x + hidden @ weights["down"], None

        x, _ = lax.scan(jax.checkpoint(layer) if self.remat else layer, x, params)
        logits = (x @ embedding.T).astype(jnp.float32)
        wanted = jax.nn.one_hot(tokens[:, 1:], self.vocabulary)
        return -jnp.sum(jax.nn.log_softmax(logits) * wanted, -1).mean(-1)


def _attention(x: jax.Array, qkv: jax.Array) -> jax.Array:
    batch, length, width = x.shape
    parts = jnp.split(x @ qkv, 3, axis=-1)
    q, k, v = (part.reshape(batch, length, width // HEAD, HEAD) for part in parts)
    return jax.nn.dot_product_attention(q, k, v, is_causal=True).reshape(x.shape)


def _normalized(x: jax.Array, scale: jax.Array) -> jax.Array:
    wide = x.astype(jnp.float32)
    return (wide * lax.rsqrt(jnp.mean(wide**2, -1, keepdims=True) + 1e-6)).astype(x.dtype) * scale


def _whole(weights: jax.Array) -> jax.Array:
    """In bfloat16, and gathered from all devices where the types of arrays say how they are split."""
    weights = weights.astype(jnp.bfloat16)
    return jax.sharding.reshard(weights, PartitionSpec()) if _explicit() else weights


def _rows(rank: int) -> PartitionSpec | None:
    return PartitionSpec("data", *(None,) * (rank - 1)) if _explicit() else None


def _explicit() -> bool:
    return AxisType.Explicit in jax.sharding.get_abstract_mesh().axis_types
