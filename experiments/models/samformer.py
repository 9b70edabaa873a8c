"""A forecaster with attention among channels (SAMformer: Ilbert et al., 2024, arXiv:2402.10198)."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

EPSILON = 1e-5

# As PyTorch's linear layers begin: even in +-1/sqrt(inputs).
Linear = partial(nn.Dense, kernel_init=nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform"))


class SAMformer(nn.Module):
    """Attention among the channels, each a vector of its past; then one linear map into the future.

    Each channel of each window is standardized first, and its forecast scaled back at the end
    (reversible instance normalization).

    Attributes:
      num_classes: hours to forecast.
      width: of queries and keys.
      dtype: of the computation; parameters are float32.
    """

    num_classes: int
    width: int = 16
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, past: jax.Array, train: bool) -> jax.Array:
        """Maps series [n, hours, channels] to forecasts [n, num_classes, channels]."""
        del train
        series = past.swapaxes(1, 2)
        hours, channels = series.shape[2], series.shape[1]
        scale = self.param("scale", nn.initializers.ones, (channels,))[None, :, None]
        shift = self.param("shift", nn.initializers.zeros, (channels,))[None, :, None]
        mean = series.mean(2, keepdims=True)
        deviation = jnp.sqrt(series.var(2, keepdims=True) + EPSILON)
        x = ((series - mean) / deviation * scale + shift).astype(self.dtype)
        queries, keys, values = (
            Linear(features, dtype=self.dtype, name=name)(x)
            for name, features in (("queries", self.width), ("keys", self.width), ("values", hours))
        )
        attention = nn.softmax(queries @ keys.swapaxes(1, 2) / self.width**0.5)
        x = Linear(self.num_classes, dtype=self.dtype, name="forecast")(x + attention @ values)
        forecast = (x.astype(jnp.float32) - shift) / (scale + EPSILON**2) * deviation + mean
        return forecast.swapaxes(1, 2)
