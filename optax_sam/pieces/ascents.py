"""How far uphill, in which geometry: Optax transformations from a direction to a perturbation."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax

from optax_sam.arithmetic import trees
from optax_sam.engine import checks
from optax_sam.engine.aliases import Grads, Params
from optax_sam.engine.hyperparameters import (
    Cap,
    Count,
    NotNegative,
    Number,
    Radius,
    ScalarOrSchedule,
    at_step,
)
from optax_sam.pieces import left_out
from optax_sam.pieces.bases import (
    Ascent,
    another_key,
    asks_anew,
    climb,
    draws,
    record_of,
    says_how_far,
    transformation,
)
from optax_sam.pieces.geometries import Geometry, euclidean, filter_norms
from optax_sam.pieces.intervals import times_interval
from optax_sam.pieces.masks import dynamic_mask, fisher_mask, keep_outliers, keep_random_fraction, only
from optax_sam.pieces.rounding import rounded_by_chance

__all__ = [
    "chained",
    "dynamic_mask",
    "fisher_mask",
    "in_proportion",
    "keep_outliers",
    "keep_random_fraction",
    "only",
    "repeated",
    "rounded_by_chance",
    "times_interval",
    "to_radius",
    "to_radius_less",
    "within_leaf_norm",
    "within_loss_budget",
]


REPEATED = 0x5EED
"""Folded into the key of a repeated step, so that it is none of those of a chain."""


@dataclasses.dataclass(frozen=True)
class ToRadius(Ascent):
    """See `to_radius`."""

    rho: ScalarOrSchedule
    geometry: Geometry

    asks_anew: ClassVar[bool] = False
    draws: ClassVar[int] = 0

    def update(
        self, updates: Grads, state: Any, params: Params = None, *, step: Any = None, **extra_args: Any
    ) -> tuple[Grads, Any]:
        return self.climb(updates, state, params, step=step, **extra_args)[:2]

    def climb(
        self, updates: Grads, state: Any, params: Params = None, *, step: Any = None, **extra_args: Any
    ) -> tuple[Grads, Any, jax.Array]:
        del extra_args
        rho = _at_given_step("rho", self.rho, step)
        dual, norm, length = self.geometry.steepest(updates, params)
        perturbation = trees.map_wide(lambda x: trees.times(rho, x), trees.divide(dual, norm))
        perturbation = trees.cast_like(perturbation, updates)
        return perturbation, state, trees.times(rho, trees.divide(length, norm))


def to_radius(rho: Radius, geometry: Geometry | None = None) -> optax.GradientTransformationExtraArgs:
    """`e = rho d / ||d||`: a perturbation of size `rho`, and zero where the direction is zero.

    Args:
      rho: the radius, 0 or more, in the norm of the geometry. A number, or a schedule of the step count,
        which `sharpness_aware` passes as the extra argument `step`. The count is that of all training steps,
        perturbed or not. The values of a schedule are not checked. Below 0 the perturbation points downhill.
      geometry: what "size" means. `euclidean()` by default.

    Returns:
      An Optax transformation without state.

    Raises:
      ValueError: `rho` is negative.
      TypeError: `geometry` is no geometry.
    """
    checks.number_or_schedule("rho", rho, low=0)
    checks.piece("geometry", geometry, Geometry, "geometries.euclidean()")
    return transformation(ToRadius(rho, euclidean() if geometry is None else geometry))


@dataclasses.dataclass(frozen=True)
class ToRadiusLess(Ascent):
    """See `to_radius_less`."""

    rho: ScalarOrSchedule
    alpha: ScalarOrSchedule

    asks_anew: ClassVar[bool] = False
    draws: ClassVar[int] = 0

    def update(
        self, updates: Grads, state: Any, params: Params = None, *, step: Any = None, **extra_args: Any
    ) -> tuple[Grads, Any]:
        del params, extra_args
        norm = trees.norm(updates)
        rho, alpha = _at_given_step("rho", self.rho, step), _at_given_step("alpha", self.alpha, step)
        length = jnp.asarray(rho).astype(norm.dtype) - trees.times(alpha, norm)
        return trees.map_wide(lambda u: trees.times(length, u), trees.divide(updates, norm)), state


def to_radius_less(rho: Radius, alpha: Number) -> optax.GradientTransformationExtraArgs:
    """`e = (rho / ||d|| - alpha) d`: to the radius, less a part of the direction itself (SAGM).

    Zero where the direction is zero.

    Args:
      rho: 0 or more, in the L2 norm. A number, or a schedule of the step count.
      alpha: a number, or a schedule of the step count.
    """
    checks.number_or_schedule("rho", rho, low=0)
    checks.number_or_schedule("alpha", alpha)
    return transformation(ToRadiusLess(rho, alpha))


@dataclasses.dataclass(frozen=True)
class WithinLossBudget(Ascent):
    """See `within_loss_budget`."""

    budget: ScalarOrSchedule
    max_rho: ScalarOrSchedule

    asks_anew: ClassVar[bool] = False
    draws: ClassVar[int] = 0

    def update(
        self, updates: Grads, state: Any, params: Params = None, *, step: Any = None, **extra_args: Any
    ) -> tuple[Grads, Any]:
        return self.climb(updates, state, params, step=step, **extra_args)[:2]

    def climb(
        self, updates: Grads, state: Any, params: Params = None, *, step: Any = None, **extra_args: Any
    ) -> tuple[Grads, Any, jax.Array]:
        del params, extra_args
        norm = trees.norm(updates)
        budget = jnp.asarray(_at_given_step("budget", self.budget, step)).astype(norm.dtype)
        largest = jnp.asarray(_at_given_step("max_rho", self.max_rho, step, infinite_too=True)).astype(
            norm.dtype
        )
        is_capped = largest * norm < budget
        # Where the cap holds, the quotient may overflow: it is not computed there.
        rho = jnp.where(
            is_capped, largest, trees.divide(budget, jnp.where(is_capped, jnp.ones_like(norm), norm))
        )
        unit = trees.divide(updates, norm)
        return trees.map_wide(lambda u: trees.times(rho, u), unit), state, rho * (norm > 0).astype(rho.dtype)


def within_loss_budget(budget: NotNegative, max_rho: Cap) -> optax.GradientTransformationExtraArgs:
    """`e = min(budget / ||d||, max_rho) d / ||d||`: as far as the loss rises by the budget (LE-SAM).

    Along the gradient the loss rises by `<g, e>`, to first order. This is the budget, or less where the
    radius is at its cap. The perturbation is zero where the direction is zero.

    Args:
      budget: 0 or more, in the units of the loss. A number, or a schedule of the step count.
      max_rho: largest radius, 0 or more, in the L2 norm. A number, or a schedule of the step count.
    """
    checks.number_or_schedule("budget", budget, low=0)
    checks.number_or_schedule("max_rho", max_rho, low=0, infinite_too=True)
    return transformation(WithinLossBudget(budget, max_rho))


@dataclasses.dataclass(frozen=True)
class InProportion(Ascent):
    """See `in_proportion`."""

    scale: ScalarOrSchedule
    to_filters: bool

    asks_anew: ClassVar[bool] = False
    draws: ClassVar[int] = 0
    says_how_far: ClassVar[bool | None] = None

    def update(
        self, updates: Grads, state: Any, params: Params = None, *, step: Any = None, **extra_args: Any
    ) -> tuple[Grads, Any]:
        del extra_args
        scale = _at_given_step("scale", self.scale, step)
        if not self.to_filters:
            return trees.map_wide(lambda d: trees.times(scale, d), updates), state

        def on_leaf(d, w):
            return trees.times(scale, filter_norms(w).astype(d.dtype) * d)

        return trees.map_wide(on_leaf, updates, params), state


def in_proportion(scale: Number, to_filters: bool = False) -> optax.GradientTransformationExtraArgs:
    """`e = scale d`: in proportion to the direction, without a ball.

    Args:
      scale: a number, or a schedule of the step count.
      to_filters: whether `e = scale ||w_f|| d` in each output filter `f` (the last axis; a leaf with one axis
        or none is one filter). Rescaled weights then get the same noise in proportion.
    """
    checks.number_or_schedule("scale", scale)
    checks.boolean("to_filters", to_filters)
    return transformation(InProportion(scale, bool(to_filters)))


@dataclasses.dataclass(frozen=True)
class Repeated(Ascent):
    """See `repeated`."""

    ascent: optax.GradientTransformation
    num_steps: int

    @property
    def asks_anew(self) -> bool:  # pyrefly: ignore[bad-override]
        return asks_anew(self.ascent)

    @property
    def says_how_far(self) -> bool | None:  # pyrefly: ignore[bad-override]
        return says_how_far(self.ascent)

    @property
    def draws(self) -> int:  # pyrefly: ignore[bad-override]
        return draws(self.ascent)

    @property
    def depth(self) -> int:
        """How many repetitions there are inside."""
        return 1 + depth(self.ascent)

    def init(self, params: Params) -> Any:
        return self.ascent.init(params)

    def update(
        self, updates: Grads, state: Any, params: Params = None, **extra_args: Any
    ) -> tuple[Grads, Any]:
        oracle = extra_args["oracle"]

        def one_more(carry, number):
            perturbation, state = carry
            grads = oracle.evaluate_moved(perturbation).grads
            uphill = trees.cast_like(trees.conjugate(grads), updates)
            own = another_key(extra_args, REPEATED + self.depth, number)
            step, state, _ = climb(self.ascent, uphill, state, params, **own)
            return (trees.map_wide(jnp.add, perturbation, step), state), None

        carry = climb(self.ascent, updates, state, params, **extra_args)[:2]
        if self.num_steps > 1:  # `jax.disable_jit` knows no empty loop
            carry, _ = oracle.scan(one_more, carry, jnp.arange(1, self.num_steps, dtype=jnp.int32))
        return carry


def depth(ascent: optax.GradientTransformation) -> int:
    """How many repetitions stand inside each other in an ascent."""
    return getattr(record_of(ascent), "depth", 0)


def repeated(ascent: optax.GradientTransformation, num_steps: Count) -> optax.GradientTransformationExtraArgs:
    """Several steps of an ascent, each along the gradient at the point that the step before has reached.

    Args:
      ascent: of a single step, such as `to_radius(rho / num_steps)`.
      num_steps: 1 or more. Each after the first takes one gradient.
    """
    checks.transformation("ascent", ascent, "to_radius(0.05)")
    checks.integer("num_steps", num_steps, low=1)
    return transformation(Repeated(ascent, num_steps))


@dataclasses.dataclass(frozen=True)
class Chained(Ascent):
    """See `chained`."""

    ascents: tuple[optax.GradientTransformation, ...]

    @property
    def asks_anew(self) -> bool:  # pyrefly: ignore[bad-override]
        return any(map(asks_anew, self.ascents))

    @property
    def says_how_far(self) -> bool | None:  # pyrefly: ignore[bad-override]
        return left_out.strongest(map(says_how_far, self.ascents))

    @property
    def draws(self) -> int:  # pyrefly: ignore[bad-override]
        return sum(map(draws, self.ascents))

    @property
    def depth(self) -> int:
        """The most of its members."""
        return max(map(depth, self.ascents), default=0)

    def init(self, params: Params) -> tuple[Any, ...]:
        return tuple(ascent.init(params) for ascent in self.ascents)

    def update(
        self, updates: Grads, state: tuple[Any, ...], params: Params = None, **extra_args: Any
    ) -> tuple[Grads, tuple[Any, ...]]:
        return self.climb(updates, state, params, **extra_args)[:2]

    def climb(
        self, updates: Grads, state: tuple[Any, ...], params: Params = None, **extra_args: Any
    ) -> tuple[Grads, tuple[Any, ...], jax.Array]:
        if not self.ascents or (len(self.ascents) > 1 and left_out.has_masks(state)):
            through: Any = self._through
            whole = optax.GradientTransformationExtraArgs(self.init, through)
            updates, state = left_out.hiding(whole)(updates, state, params, **extra_args)
            return updates, state, trees.norm(updates)
        *before, last = self.ascents
        updates, new = Chained(tuple(before))._through(updates, state[:-1], params, **extra_args)
        own = another_key(extra_args, *self._number(len(before)))
        updates, after, length = climb(last, updates, state[-1], params, **own)
        return updates, (*new, after), length

    def _through(
        self, updates: Grads, state: tuple[Any, ...], params: Params = None, **extra_args: Any
    ) -> tuple[Grads, tuple[Any, ...]]:
        new = []
        for number, (ascent, own) in enumerate(zip(self.ascents, state, strict=True)):
            extra = another_key(extra_args, *self._number(number))
            updates, own = optax.with_extra_args_support(ascent).update(updates, own, params, **extra)
            new.append(own)
        return updates, tuple(new)

    def _number(self, place: int) -> tuple[int, ...]:
        """Of the member's key: how many keys those before it draw from. The first has the key as it came."""
        number = sum(map(draws, self.ascents[:place])) if draws(self.ascents[place]) else 0
        return (number,) if number else ()


def chained(*ascents: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """One ascent after the other: `optax.chain` that can be pickled and compared.

    With a mask before `to_radius`, what is kept has the whole radius. With a mask behind it, what is kept has
    a part of the radius. Members that draw have a key each. `optax.chain` hands the same one to all.
    """
    for ascent in ascents:
        checks.transformation("ascents", ascent, "to_radius(0.05)")
    return transformation(Chained(ascents))


@dataclasses.dataclass(frozen=True)
class WithinLeafNorm(Ascent):
    """See `within_leaf_norm`."""

    max_norm: ScalarOrSchedule

    asks_anew: ClassVar[bool] = False
    draws: ClassVar[int] = 0
    says_how_far: ClassVar[bool] = False

    def update(
        self, updates: Grads, state: Any, params: Params = None, *, step: Any = None, **extra_args: Any
    ) -> tuple[Grads, Any]:
        del params, extra_args
        largest = _at_given_step("max_norm", self.max_norm, step, infinite_too=True)

        def on_leaf(e):
            norm = trees.norm(e)
            return trees.times(jnp.minimum(norm, jnp.asarray(largest, norm.dtype)), trees.divide(e, norm))

        return trees.map_wide(on_leaf, updates), state


def within_leaf_norm(max_norm: Cap) -> optax.GradientTransformationExtraArgs:
    """Each leaf shortened to the L2 norm `max_norm`, where it is longer (GraphSAM).

    Args:
      max_norm: 0 or more. A number, or a schedule of the step count.
    """
    checks.number_or_schedule("max_norm", max_norm, low=0, infinite_too=True)
    return transformation(WithinLeafNorm(max_norm))


def _at_given_step(name: str, value: ScalarOrSchedule, step: Any, infinite_too: bool = False) -> Any:
    if callable(value) and step is None:
        raise ValueError(f"{name} is a schedule, but step=None: pass the step count, update(..., step=step).")
    return at_step(value, step, infinite_too)
