"""Shares of a whole number: 0.29 of 100 are 29, whatever rounding makes of it."""

import math
from typing import Any

import jax
import jax.numpy as jnp


def down(share: Any, size: float) -> int:
    """`share * size` rounded down, `share` a number of Python or NumPy."""
    return math.floor(_product(share, size))


def up(share: Any, size: float) -> int:
    """`share * size` rounded up."""
    return math.ceil(_product(share, size))


def _product(share: Any, size: float) -> float:
    return round(float(str(share)) * size, 6)  # as it is written: float32 has 0.28999999 for 0.29


def floor(product: jax.Array) -> jax.Array:
    """`int32[]`: a share of something rounded down, where rounding may have made it a little too small."""
    whole = jnp.round(product)
    near = jnp.abs(product - whole) <= 4 * jnp.finfo(product.dtype).eps * jnp.abs(whole)
    return jnp.where(near, whole, jnp.floor(product)).astype(jnp.int32)
