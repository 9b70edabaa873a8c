"""Vision transformers (Dosovitskiy et al., 2020)."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn


class Layer(nn.Module):
    """Attention and a perceptron, each behind a layer norm and beside a shortcut, with dropout."""

    heads: int
    dtype: Any
    rate: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, mask: jax.Array | None = None) -> jax.Array:
        """Maps tokens [n, tokens, width] to the same shape; `mask` says which tokens are looked at."""
        dropout = nn.Dropout(self.rate, deterministic=not train)
        y = nn.LayerNorm(dtype=self.dtype)(x)
        attended: Any = nn.MultiHeadDotProductAttention(self.heads, dtype=self.dtype)(y, mask=mask)
        x = x + dropout(attended)
        y = nn.Dense(4 * x.shape[-1], dtype=self.dtype)(nn.LayerNorm(dtype=self.dtype)(x))
        return x + dropout(nn.Dense(x.shape[-1], dtype=self.dtype)(nn.gelu(y)))


class VisionTransformer(nn.Module):
    """Patches, a class token, twelve layers.

    Attributes:
      num_classes: number of logits.
      width: of a token.
      heads: of the attention.
      patch: side of a patch in pixels; None is an eighth of the side of small images, and 16 beyond 64.
      layers: how many.
      dtype: of the computation; parameters are float32.
    """

    num_classes: int
    width: int = 384
    heads: int = 6
    patch: int | None = None
    layers: int = 12
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        """Maps float images [n, height, width, channels] to logits [n, num_classes]."""
        side = self.patch or (max(1, round(images.shape[1] / 8)) if images.shape[1] <= 64 else 16)
        x = nn.Conv(self.width, (side, side), (side, side), padding="VALID", dtype=self.dtype)(images)
        x = x.reshape(len(x), -1, self.width)
        token = self.param("class_token", nn.initializers.zeros, (1, 1, self.width))
        x = jnp.concatenate([jnp.broadcast_to(token, (len(x), 1, self.width)).astype(x.dtype), x], axis=1)
        place = self.param("places", nn.initializers.normal(0.02), (1, *x.shape[1:]))
        x = x + place.astype(x.dtype)
        for _ in range(self.layers):
            x = Layer(self.heads, self.dtype)(x, train)
        return nn.Dense(self.num_classes, dtype=self.dtype)(nn.LayerNorm(dtype=self.dtype)(x)[:, 0])
