"""A small transformer that reads sentences."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from experiments.data.text import VOCABULARY
from experiments.models.vit import Layer


class TextTransformer(nn.Module):
    """Words and places, layers of attention among the real words, and the mean over them.

    In training it draws what it drops from the random numbers "dropout".

    Attributes:
      num_classes: number of logits.
      width: of a word.
      heads: of the attention.
      layers: how many.
      rate: share of the features that dropout zeroes.
      vocabulary: how many words there are; word 0 is padding.
      dtype: of the computation; parameters are float32.
    """

    num_classes: int
    width: int = 64
    heads: int = 4
    layers: int = 2
    rate: float = 0.1
    vocabulary: int = VOCABULARY
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, tokens: jax.Array, train: bool) -> jax.Array:
        """Maps integers [n, length] to logits [n, num_classes]."""
        real = tokens > 0
        x = nn.Embed(self.vocabulary, self.width, dtype=self.dtype)(tokens)
        place = self.param("places", nn.initializers.normal(0.02), (1, *x.shape[1:]))
        x = nn.Dropout(self.rate, deterministic=not train)(x + place.astype(x.dtype))
        for _ in range(self.layers):
            x = Layer(self.heads, self.dtype, self.rate)(x, train, mask=real[:, None, None])
        x = nn.LayerNorm(dtype=self.dtype)(x)
        count = jnp.maximum(real.sum(1, keepdims=True), 1).astype(x.dtype)
        mean = jnp.where(real[..., None], x, 0).sum(1) / count
        return nn.Dense(self.num_classes, dtype=self.dtype)(mean)
