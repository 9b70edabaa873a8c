"""What an unpaid step remembers of the last perturbed one."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optax_sam import checks, trees
from optax_sam.hyperparameters import Scalar
from optax_sam.pieces import Context


@dataclasses.dataclass(frozen=True)
class Nothing:
    """See `nothing`."""

    def init(self, params: Any) -> tuple[()]:
        del params
        return ()

    def refresh(self, state: Any, grads: Any, perturbed_grads: Any, context: Context) -> Any:
        del grads, perturbed_grads, context
        return state

    def recall(self, state: Any, grads: Any, context: Context) -> tuple[Any, Any]:
        del context
        return grads, state


def nothing() -> Nothing:
    """An unpaid step descends along its own gradient."""
    return Nothing()


class DecayedDifferenceState(NamedTuple):
    """State of `decayed_difference`.

    Attributes:
      difference: `g' - g` of the last perturbed step, a tree like the parameters.
      age: `int32[]`, unperturbed steps since then; never above `steps`, where nothing is reused.
    """

    difference: Any
    age: jax.Array


@dataclasses.dataclass(frozen=True)
class DecayedDifference:
    """See `decayed_difference`."""

    decay: Scalar
    steps: int

    def init(self, params: Any) -> DecayedDifferenceState:
        def zeros(x):
            # With its dtype named, the zero of a weakly typed leaf keeps the leaf's sharding. Differences
            # of float16 gradients overflow in float16, and those under a loss scale underflow.
            dtype = jnp.result_type(x)
            return jnp.zeros_like(x, dtype=jnp.float32 if dtype == jnp.float16 else dtype)

        difference = jax.tree.map(zeros, params)
        return DecayedDifferenceState(difference, jnp.full([], self.steps, jnp.int32))

    def refresh(self, state: Any, grads: Any, perturbed_grads: Any, context: Context) -> Any:
        del context

        def on_leaf(old, g, p):
            wide = trees.accumulator_dtype(g.dtype)
            # Gradients may be wider than parameters, as with a loss scale.
            return jnp.nan_to_num((p.astype(wide) - g.astype(wide)).astype(old.dtype))

        difference = trees.map_inexact(on_leaf, state.difference, grads, perturbed_grads)
        return DecayedDifferenceState(difference, jnp.zeros_like(state.age))

    def recall(self, state: Any, grads: Any, context: Context) -> tuple[Any, Any]:
        del context
        fresh = state.age < self.steps
        age = state.age + fresh.astype(jnp.int32)
        factor = jnp.asarray(self.decay, float) ** age.astype(float)
        corrected = trees.map_wide(lambda g, d: g + trees.times(factor, d), grads, state.difference)
        return trees.where(fresh, corrected, grads), DecayedDifferenceState(state.difference, age)


def decayed_difference(decay: Scalar, steps: int) -> DecayedDifference:
    """`g + decay^j (g' - g)_last` in the `j`-th unpaid step, `j = 1..steps`; then `g` (vSAM).

    Args:
      decay: from 0 to 1.
      steps: how many unpaid steps reuse the difference.
    """
    checks.number("decay", decay, low=0, high=1)
    checks.integer("steps", steps, low=0)
    return DecayedDifference(decay, steps)
