"""A small decoder-only transformer that predicts the next character."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from experiments.models.vit import Layer


class Decoder(nn.Module):
    """Characters and places, layers of attention to what came before, and logits of what comes next.

    Attributes:
      num_classes: kinds of characters.
      width: of a character; 64 makes 0.12 million parameters.
      heads: of the attention.
      layers: how many.
      dtype: of the computation; parameters are float32.
    """

    num_classes: int
    width: int = 64
    heads: int = 4
    layers: int = 2
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, characters: jax.Array, train: bool) -> jax.Array:
        """Maps integers [n, length] to logits [n, length, num_classes]."""
        x = nn.Embed(self.num_classes, self.width, dtype=self.dtype)(characters)
        place = self.param("places", nn.initializers.normal(0.02), (1, *x.shape[1:]))
        x = x + place.astype(x.dtype)
        before = nn.make_causal_mask(characters, dtype=bool)
        for _ in range(self.layers):
            x = Layer(self.heads, self.dtype)(x, train, mask=before)
        return nn.Dense(self.num_classes, dtype=self.dtype)(nn.LayerNorm(dtype=self.dtype)(x))
