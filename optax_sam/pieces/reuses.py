"""What an unpaid step remembers of the last perturbed one."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from optax_sam.arithmetic import trees
from optax_sam.engine import checks
from optax_sam.engine.aliases import Grads, Params
from optax_sam.engine.hyperparameters import (
    CountOrZero,
    FixedProbability,
    Number,
    Scalar,
    ScalarOrSchedule,
    at_step,
)
from optax_sam.pieces.bases import Reuse, Step

__all__ = ["components_beyond", "decayed_difference", "nothing", "orthogonal_component"]

# So many units of the last place of a gradient are no direction of their own.
ROUNDING = 16


@dataclasses.dataclass(frozen=True)
class Nothing(Reuse):
    """See `nothing`."""

    asks_anew: ClassVar[bool] = False

    def recall(self, state: Any, step: Step) -> tuple[Grads, Any]:
        return step.grads, state


def nothing() -> Nothing:
    """An unpaid step descends along its own gradient."""
    return Nothing()


class DecayedDifferenceState(NamedTuple):
    """State of `decayed_difference`.

    Attributes:
      difference: `g' - g` of the last perturbed step, a tree like the parameters.
      age: `int32[]`, unperturbed steps since then. Never above `steps`, where nothing is reused.
    """

    difference: Any
    age: jax.Array


@dataclasses.dataclass(frozen=True)
class DecayedDifference(Reuse):
    """See `decayed_difference`."""

    decay: Scalar
    steps: int
    asks_anew: ClassVar[bool] = False

    def init(self, params: Params, key: jax.Array) -> DecayedDifferenceState:
        del key
        return DecayedDifferenceState(trees.memory_like(params), jnp.full([], self.steps, jnp.int32))

    def refresh(self, state: DecayedDifferenceState, step: Step) -> DecayedDifferenceState:
        def on_leaf(old, g, p):
            wide = trees.accumulator_dtype(g.dtype)
            # Gradients may be wider than parameters, as with a loss scale.
            return jnp.nan_to_num((p.astype(wide) - g.astype(wide)).astype(old.dtype))

        difference = trees.map_inexact(on_leaf, state.difference, step.grads, step.perturbed_grads)
        return DecayedDifferenceState(difference, jnp.zeros_like(state.age))

    def recall(self, state: DecayedDifferenceState, step: Step) -> tuple[Grads, DecayedDifferenceState]:
        fresh = state.age < self.steps
        age = state.age + fresh.astype(jnp.int32)
        factor = jnp.asarray(self.decay, float) ** age.astype(float)
        corrected = trees.map_wide(lambda g, d: g + trees.times(factor, d), step.grads, state.difference)
        return trees.where(fresh, corrected, step.grads), DecayedDifferenceState(state.difference, age)


def decayed_difference(decay: FixedProbability, steps: CountOrZero) -> DecayedDifference:
    """`g + decay^j (g' - g)_last` in the `j`-th unpaid step, `j = 1..steps`, then `g` (vSAM).

    Args:
      decay: from 0 to 1.
      steps: how many unpaid steps reuse the difference.
    """
    checks.number("decay", decay, low=0, high=1)
    checks.integer("steps", steps, low=0)
    return DecayedDifference(decay, steps)


@dataclasses.dataclass(frozen=True)
class OrthogonalComponent(Reuse):
    """See `orthogonal_component`."""

    alpha: ScalarOrSchedule
    asks_anew: ClassVar[bool] = False

    def init(self, params: Params, key: jax.Array) -> Any:
        del key
        return trees.memory_like(params)

    def refresh(self, state: Any, step: Step) -> Any:
        return remembered(beside(step.perturbed_grads, step.grads), state)

    def recall(self, state: Any, step: Step) -> tuple[Grads, Any]:
        return added(step.grads, state, at_step(self.alpha, step.count)), state


def orthogonal_component(alpha: Number) -> OrthogonalComponent:
    """`g + alpha (||g|| / ||v||) v`, `v` the part of the last `g'` orthogonal to its `g` (LookSAM).

    That part leads to the flatter minimum, and changes more slowly than the gradient. Before the first
    perturbed step the descent is `g`.

    Args:
      alpha: a number, or a schedule of the step count.
    """
    checks.number_or_schedule("alpha", alpha)
    return OrthogonalComponent(alpha)


class SurrogateState(NamedTuple):
    """State of `components_beyond`: trees like the parameters, which change in perturbed steps.

    Attributes:
      of_grads: the part of the first gradient orthogonal to the surrogate's.
      of_perturbed: the part of the perturbed gradient orthogonal to the surrogate's.
    """

    of_grads: Any
    of_perturbed: Any


@dataclasses.dataclass(frozen=True)
class ComponentsBeyond(Reuse):
    """See `components_beyond`."""

    surrogate_losses: Callable[[Any, Any], Any]
    mix: ScalarOrSchedule
    alpha: ScalarOrSchedule

    needs_oracle: ClassVar[bool] = True

    def init(self, params: Params, key: jax.Array) -> SurrogateState:
        del key
        return SurrogateState(trees.memory_like(params), trees.memory_like(params))

    def refresh(self, state: SurrogateState, step: Step) -> SurrogateState:
        oracle = step.oracle.of_surrogate(self.surrogate_losses)
        cheap = oracle.evaluate(oracle.params).grads
        return SurrogateState(
            remembered(beside(step.grads, cheap), state.of_grads),
            remembered(beside(step.perturbed_grads, cheap), state.of_perturbed),
        )

    def recall(self, state: SurrogateState, step: Step) -> tuple[Grads, SurrogateState]:
        alpha, mix = (at_step(x, step.count) for x in (self.alpha, self.mix))
        guessed = added(step.grads, state.of_grads, 1.0)
        perturbed = added(step.grads, state.of_perturbed, alpha)
        return trees.map_wide(lambda p, g: p + trees.times(mix, g), perturbed, guessed), state


def components_beyond(
    surrogate_losses: Callable[[Any, Any], Any], mix: Number, alpha: Number
) -> ComponentsBeyond:
    """What the surrogate's gradient `m` lacks, from the last perturbed step (FGSAM+).

    `u` and `v` are the parts of the last `g` and `g'` that were orthogonal to their `m`. An unpaid step has
    the gradient `m`, and descends along `m + alpha (||m|| / ||v||) v + mix (m + (||m|| / ||u||) u)`.
    Arguments: see `fgsam_plus`.
    """
    checks.function("surrogate_losses", surrogate_losses, "surrogate_losses(params, batch) -> [batch]")
    checks.number_or_schedule("mix", mix)
    checks.number_or_schedule("alpha", alpha)
    return ComponentsBeyond(surrogate_losses, mix, alpha)


def beside(tree: Any, to: Any) -> Any:
    """The part of `tree` orthogonal to `to`, and zero where it is no longer than its rounding.

    Each leaf loses a share of its own norm: what sums in its dtype may leave, or, since gradients of half
    precision are summed in a wider one, two units in its last place. These losses, as one vector, are at
    least as long as what of them is orthogonal to `to`.
    """
    part = trees.perpendicular(tree, to=to)
    length = trees.norm(part)
    leaves = [x for x in jax.tree.leaves(tree) if trees.is_inexact(x)]
    shares = dict.fromkeys(_rounding(x.dtype) for x in leaves)
    # Leaves of one share have one norm, which is known where that is all of a gradient.
    alike = ((share, trees.norm([x for x in leaves if _rounding(x.dtype) == share])) for share in shares)
    lost = [share * whole.astype(length.dtype) for share, whole in alike]
    is_rounding = length <= functools.reduce(jnp.hypot, lost, jnp.zeros_like(length))
    return trees.map_inexact(lambda x: jnp.where(is_rounding, jnp.zeros_like(x), x), part)


def _rounding(dtype: Any) -> float:
    eps = float(jnp.finfo(dtype).eps)
    return max(ROUNDING * min(eps, float(jnp.finfo(jnp.float32).eps)), 2 * eps)


def remembered(tree: Any, like: Any) -> Any:
    """The tree in the dtypes of `like`, finite."""
    return trees.map_inexact(lambda old, x: jnp.nan_to_num(x.astype(old.dtype)), like, tree)


def added(grads: Any, component: Any, alpha: Any) -> Any:
    """`g + alpha (||g|| / ||v||) v`, and `g` where `v` is zero."""
    unit, norm = trees.divide(trees.widen(component), trees.norm(component)), trees.norm(grads)
    return trees.map_wide(lambda g, u: g + trees.times(alpha, trees.times(norm, u)), grads, unit)
