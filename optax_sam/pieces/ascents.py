"""How far uphill, in which geometry: Optax transformations from a direction to a perturbation."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from optax_sam import checks, trees
from optax_sam.hyperparameters import ScalarOrSchedule, at_step
from optax_sam.oracle import Climb
from optax_sam.pieces.geometry import Geometry, euclidean, filter_norms
from optax_sam.pieces.protocols import Context


@dataclasses.dataclass(frozen=True)
class ToRadius:
    """See `to_radius`."""

    rho: ScalarOrSchedule
    geometry: Geometry

    def init(self, params: Any) -> optax.EmptyState:
        del params
        return optax.EmptyState()

    def update(
        self, updates: Any, state: Any, params: Any = None, *, step: Any = None, **extra_args: Any
    ) -> tuple[Any, Any]:
        del extra_args
        return self.climb(updates, params, step)[0], state

    def climb(self, direction: Any, params: Any, step: Any) -> tuple[Any, jax.Array]:
        """The perturbation, and its L2 norm."""
        rho = _at_given_step("rho", self.rho, step)
        dual, norm, length = self.geometry.steepest(direction, params)
        perturbation = trees.map_wide(lambda x: trees.times(rho, x), trees.divide(dual, norm))
        perturbation = optax.tree.cast_like(perturbation, direction)
        return perturbation, trees.times(rho, trees.divide(length, norm))


def climb(ascent: optax.GradientTransformation, direction: Any, state: Any, context: Context) -> Climb:
    """The perturbation of any ascent along a direction.

    Leaves that `optax.masked` leaves out of the ascent come back as they went in, and are not
    perturbed. Where the ascent knows that norm it is not computed: on a CPU, XLA would write the whole
    perturbation once more only to add up its squares.
    """
    known: Any = getattr(ascent.update, "__self__", None)
    uphill = optax.tree.conj(direction)
    # Ahead of the step's gradient the full parameters are in sight, and only the direction tells the mask.
    context = context._replace(params=trees.like_masked(direction, context.params))
    if isinstance(known, ToRadius):
        perturbation, length = known.climb(uphill, context.params, context.step)
        return Climb(direction, perturbation, state, length)
    ascent = optax.with_extra_args_support(ascent)
    extra = {"step": context.step, "key": context.key, "oracle": context.oracle}
    perturbation, new_state = ascent.update(uphill, state, context.params, **extra)
    if _has_mask(state):
        perturbation = jax.tree.map(lambda e, d: jnp.zeros_like(d) if e is d else e, perturbation, uphill)
    return Climb(direction, perturbation, new_state, trees.norm(perturbation))


def evaluations(state: Any) -> Any:
    """Gradients that an ascent took itself, in units of the step's first gradient.

    An ascent that takes some tells so in a field `evaluations` of its state.
    """
    return sum(value for _, value in optax.tree.get_all_with_path(state, "evaluations"))


def _has_mask(state: Any) -> bool:
    def is_masked(part):
        return isinstance(part, optax.MaskedState)

    return any(map(is_masked, jax.tree.leaves(state, is_leaf=is_masked)))


def to_radius(
    rho: ScalarOrSchedule, geometry: Geometry | None = None
) -> optax.GradientTransformationExtraArgs:
    """`e = rho d / ||d||`: a perturbation of size `rho`, and zero where the direction is zero.

    Args:
      rho: the radius, 0 or more, in the norm of the geometry; a number, or a schedule of the step
        count, which `sharpness_aware` passes as the extra argument `step`. The count is that of the
        training steps, perturbed or not.
      geometry: what "size" means; `euclidean()` by default.

    Returns:
      An Optax transformation without state.

    Raises:
      ValueError: `rho` is negative.
      TypeError: `geometry` is none.
    """
    checks.number_or_schedule("rho", rho, low=0)
    checks.piece("geometry", geometry, "steepest", "a geometry, such as euclidean()")
    return transformation(ToRadius(rho, euclidean() if geometry is None else geometry))


@dataclasses.dataclass(frozen=True)
class InProportion:
    """See `in_proportion`."""

    scale: ScalarOrSchedule
    to_filters: bool

    def init(self, params: Any) -> optax.EmptyState:
        del params
        return optax.EmptyState()

    def update(self, updates: Any, state: Any, params: Any = None, *, step: Any = None, **extra_args: Any):
        del extra_args
        scale = _at_given_step("scale", self.scale, step)
        if not self.to_filters:
            return trees.map_wide(lambda d: trees.times(scale, d), updates), state

        def on_leaf(d, w):
            return trees.times(scale, filter_norms(w).astype(d.dtype) * d)

        return trees.map_wide(on_leaf, updates, params), state


def in_proportion(scale: ScalarOrSchedule, to_filters: bool = False) -> optax.GradientTransformationExtraArgs:
    """`e = scale d`: as far as the direction is long, in no ball.

    Args:
      scale: a number, or a schedule of the step count.
      to_filters: whether `e = scale ||w_f|| d` in each output filter `f` (the last axis; a leaf with
        one axis or none is one filter): noise that rescaled weights feel alike.
    """
    checks.number_or_schedule("scale", scale)
    checks.boolean("to_filters", to_filters)
    return transformation(InProportion(scale, bool(to_filters)))


class RepeatedState(NamedTuple):
    """State of `repeated`.

    Attributes:
      inner: of the ascent that is repeated.
      evaluations: `float32[]`, gradients that the last climb took itself.
    """

    inner: Any
    evaluations: jax.Array


@dataclasses.dataclass(frozen=True)
class Repeated:
    """See `repeated`."""

    ascent: optax.GradientTransformation
    num_steps: int

    def init(self, params: Any) -> RepeatedState:
        return RepeatedState(self.ascent.init(params), jnp.zeros([], jnp.float32))

    def update(self, updates: Any, state: RepeatedState, params: Any = None, **extra_args: Any):
        ascent = optax.with_extra_args_support(self.ascent)
        oracle = extra_args["oracle"]

        def one_more(carry, _):
            perturbation, inner = carry
            grads = oracle.evaluate_moved(perturbation, params).grads
            uphill = optax.tree.cast_like(optax.tree.conj(grads), updates)
            step, inner = ascent.update(uphill, inner, params, **extra_args)
            return (trees.map_wide(jnp.add, perturbation, step), inner), None

        carry = ascent.update(updates, state.inner, params, **extra_args)
        if self.num_steps > 1:  # `jax.disable_jit` knows no empty loop
            carry, _ = lax.scan(one_more, carry, length=self.num_steps - 1)
        return carry[0], RepeatedState(carry[1], jnp.asarray(self.num_steps - 1, jnp.float32))


def repeated(ascent: optax.GradientTransformation, num_steps: int) -> optax.GradientTransformationExtraArgs:
    """Several steps of an ascent, each along the gradient where the one before has led.

    Args:
      ascent: of a single step, such as `to_radius(rho / num_steps)`.
      num_steps: 1 or more; each after the first takes one gradient.
    """
    checks.transformation("ascent", ascent, "to_radius(0.05)")
    checks.integer("num_steps", num_steps, low=1)
    return transformation(Repeated(ascent, num_steps))


@dataclasses.dataclass(frozen=True)
class InTurn:
    """See `in_turn`."""

    ascents: tuple[optax.GradientTransformation, ...]

    def init(self, params: Any) -> tuple[Any, ...]:
        return tuple(ascent.init(params) for ascent in self.ascents)

    def update(self, updates: Any, state: tuple[Any, ...], params: Any = None, **extra_args: Any):
        new = []
        for ascent, own in zip(self.ascents, state, strict=True):
            ascent = optax.with_extra_args_support(ascent)
            updates, own = ascent.update(updates, own, params, **extra_args)
            new.append(own)
        return updates, tuple(new)


def in_turn(*ascents: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """One ascent after the other: `optax.chain` that can be pickled.

    A mask before `to_radius` gives what is kept the whole radius; behind it, a part of it.
    """
    for ascent in ascents:
        checks.transformation("ascents", ascent, "to_radius(0.05)")
    return transformation(InTurn(ascents))


@dataclasses.dataclass(frozen=True)
class WithinLeafNorm:
    """See `within_leaf_norm`."""

    max_norm: ScalarOrSchedule

    def init(self, params: Any) -> optax.EmptyState:
        del params
        return optax.EmptyState()

    def update(self, updates: Any, state: Any, params: Any = None, *, step: Any = None, **extra_args: Any):
        del params, extra_args
        largest = _at_given_step("max_norm", self.max_norm, step)

        def on_leaf(e):
            norm = trees.norm(e)
            return trees.times(jnp.minimum(norm, jnp.asarray(largest, norm.dtype)), trees.divide(e, norm))

        return trees.map_wide(on_leaf, updates), state


def within_leaf_norm(max_norm: ScalarOrSchedule) -> optax.GradientTransformationExtraArgs:
    """Each leaf shortened to the L2 norm `max_norm`, where it is longer (GraphSAM).

    Args:
      max_norm: 0 or more; a number, or a schedule of the step count.
    """
    checks.number_or_schedule("max_norm", max_norm, low=0)
    return transformation(WithinLeafNorm(max_norm))


def transformation(ascent: Any) -> optax.GradientTransformationExtraArgs:
    """A record with `init` and `update` as an Optax transformation."""
    return optax.GradientTransformationExtraArgs(ascent.init, ascent.update)


def _at_given_step(name: str, value: ScalarOrSchedule, step: Any) -> Any:
    if callable(value) and step is None:
        raise ValueError(f"{name} is a schedule, but step=None: pass the step count, update(..., step=step).")
    return at_step(value, step)
