"""Rounding of the perturbed parameters by chance, so that a small radius does not vanish."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax

from optax_sam.arithmetic import random_trees, trees
from optax_sam.engine.aliases import Grads, Params
from optax_sam.pieces.bases import Ascent, transformation

ROUNDING = 0xC0FFEE
"""Folded into the key."""


@dataclasses.dataclass(frozen=True)
class RoundedByChance(Ascent):
    """See `rounded_by_chance`."""

    asks_anew: ClassVar[bool] = False
    says_how_far: ClassVar[bool] = False

    def update(
        self, updates: Grads, state: Any, params: Params = None, *, key: Any = None, **extra_args: Any
    ) -> tuple[Grads, Any]:
        del extra_args
        if key is None:
            raise ValueError("key=None: pass a PRNG key, update(..., key=key), as sharpness_aware does.")

        def on_leaf(e, w, chance):
            if not (trees.is_inexact(w) and w.dtype in (jnp.bfloat16, jnp.float16)):
                return e
            wide = w.astype(jnp.float32)
            return (_rounded(wide + e.astype(jnp.float32), w.dtype, chance) - wide).astype(e.dtype)

        # Not the key of a mask: `optax.chain` hands the same one to both.
        chances = random_trees.uniform(jax.random.fold_in(key, ROUNDING), updates)
        return trees.map_inexact(on_leaf, updates, params, chances), state


def rounded_by_chance() -> optax.GradientTransformationExtraArgs:
    """`w + e` rounded up or down by chance, in leaves of 16 bits, so that it is `w + e` on average.

    Where `e` is below a 512th of `w`, the nearest number of bfloat16 is `w` itself. A perturbation that is
    small everywhere then vanishes as a whole. Rounded by chance, an entry moves to one of its neighbours,
    with the probability that makes its mean right. Put it behind the ascent that says how far:
    `chained(to_radius(0.05), rounded_by_chance())`. Leaves of other dtypes keep their perturbation.

    The distance along the direction is the radius on average. The whole distance, which `info` reports, is
    longer by the noise of rounding.
    """
    return transformation(RoundedByChance())


def _rounded(x: jax.Array, dtype: Any, chance: jax.Array) -> jax.Array:
    """`float32` numbers as one of the two neighbours in `dtype`, in float32; `chance` is from [0, 1)."""
    nearest = x.astype(dtype)
    is_below = nearest.astype(x.dtype) <= x
    towards = jnp.where(is_below, jnp.inf, -jnp.inf).astype(dtype)
    other = jnp.nextafter(nearest, towards).astype(x.dtype)
    nearest = nearest.astype(x.dtype)
    # The share of the way from one neighbour to the other; 0 where x is a number of `dtype`.
    share = jnp.abs(x - nearest) / jnp.abs(other - nearest)
    return jnp.where(chance < share, other, nearest)
