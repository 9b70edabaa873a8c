"""Which examples see a gradient: draws of a static number of them."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from optax_sam.oracle import Evaluation
from optax_sam.pieces import Context


def everything(oracle: Any, here: Evaluation, context: Context) -> Any:
    """The second gradient sees the examples that the first one saw."""
    del here, context
    return oracle


def draw(log_weights: jax.Array, num_drawn: int, strata: int, key: jax.Array) -> jax.Array:
    """Positions drawn without replacement, one after the other with the given weights.

    Adding Gumbel noise and taking the largest is the same draw as taking examples one by one with
    probabilities proportional to the weights of those left; its size is static.

    Args:
      log_weights: `float[batch]`, logarithms of weights of any scale; -inf comes last.
      num_drawn: how many from each stratum.
      strata: the number of contiguous parts of the batch from which is drawn separately.
      key: a typed PRNG key.

    Returns:
      `int[strata, num_drawn]`: positions inside each part, in ascending order.
    """
    noisy = log_weights + jax.random.gumbel(key, log_weights.shape, log_weights.dtype)
    _, positions = lax.top_k(noisy.reshape(strata, -1), num_drawn)
    return jnp.sort(positions, axis=1)
