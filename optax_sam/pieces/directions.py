"""What points uphill: the direction of the perturbation."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from optax_sam.arithmetic import random_trees, trees
from optax_sam.engine import checks
from optax_sam.engine.aliases import Batch, Grads, Params
from optax_sam.engine.hyperparameters import Count, FixedNotNegative, FixedNumber, FixedProbability, Scalar
from optax_sam.pieces.base_momentum import descent_momentum, where_momentum_is
from optax_sam.pieces.base_second_moment import preconditioned, where_second_moment_is
from optax_sam.pieces.bases import Direction, Step
from optax_sam.pieces.geometries import filter_sums
from optax_sam.pieces.top_eigenvector import with_top_eigenvector

__all__ = [
    "batch_specific",
    "damped_gaussian",
    "descent_momentum",
    "emphasized",
    "gaussian",
    "gradient",
    "mean_of_perturbed",
    "preconditioned",
    "previous_descent",
    "running_mean",
    "where_momentum_is",
    "where_second_moment_is",
    "with_top_eigenvector",
]


@dataclasses.dataclass(frozen=True)
class Gradient(Direction):
    """See `gradient`."""

    asks_anew: ClassVar[bool] = False

    def read(self, state: Any, step: Step) -> tuple[Grads, Any]:
        return step.grads, state


def gradient() -> Gradient:
    """The first gradient of the step, `g`."""
    return Gradient()


class MeanState(NamedTuple):
    """State of `running_mean` and `batch_specific`.

    Attributes:
      mean: of the gradients, a tree like the parameters, float16 leaves in float32. Changes every step.
      started: `bool[]`, whether a gradient was seen.
    """

    mean: Any
    started: jax.Array


@dataclasses.dataclass(frozen=True)
class RunningMean(Direction):
    """See `running_mean`."""

    decay: Scalar
    asks_anew: ClassVar[bool] = False

    def init(self, params: Params, key: jax.Array) -> MeanState:
        del key
        return MeanState(trees.memory_like(params), jnp.zeros([], bool))

    def read(self, state: MeanState, step: Step) -> tuple[Grads, MeanState]:
        return with_gradient(state, step.grads, self.decay), state

    def write(self, state: MeanState, step: Step) -> MeanState:
        mean = with_gradient(state, step.grads, self.decay)
        return MeanState(trees.saturated(mean), jnp.ones_like(state.started))


def with_gradient(state: MeanState, grads: Grads, decay: Scalar) -> Grads:
    """The running mean with one more gradient."""
    decay = jnp.where(state.started, decay, 0.0)

    def on_leaf(m, g):
        return trees.times(decay, m) + trees.times(1 - decay, g)

    return trees.map_wide(on_leaf, state.mean, grads)


def running_mean(decay: FixedProbability) -> RunningMean:
    """`d = decay d + (1 - decay) g`, started at the first gradient (VaSSO).

    Args:
      decay: from 0 (the gradient itself) to 1.
    """
    checks.number("decay", decay, low=0, high=1)
    return RunningMean(decay)


@dataclasses.dataclass(frozen=True)
class BatchSpecific(RunningMean):
    """See `batch_specific`: the same mean, and what is left of the gradient without it points uphill."""

    sigma: Scalar

    def read(self, state: MeanState, step: Step) -> tuple[Grads, MeanState]:
        sigma = jnp.where(state.started, self.sigma, 0.0)
        return trees.map_wide(lambda g, m: g - trees.times(sigma, m), step.grads, state.mean), state


def batch_specific(sigma: FixedNumber = 1.0, decay: FixedProbability = 0.9) -> BatchSpecific:
    """`g - sigma m`: what this batch adds to the mean `m` of the earlier gradients (Friendly SAM).

    `m = decay m + (1 - decay) g`, started at the first gradient. The first step has the direction `g`.

    Args:
      sigma: how much of the mean is taken away.
      decay: of the mean, from 0 to 1.
    """
    checks.number("sigma", sigma)
    checks.number("decay", decay, low=0, high=1)
    return BatchSpecific(decay, sigma)


@dataclasses.dataclass(frozen=True)
class PreviousDescent(Direction):
    """See `previous_descent`."""

    of: Direction

    needs_gradient: ClassVar[bool] = False
    asks_anew: ClassVar[bool] = False

    def init(self, params: Params, key: jax.Array) -> Any:
        return trees.memory_like(params), self.of.init(params, key)

    def read(self, state: Any, step: Step) -> tuple[Grads, Any]:
        return state[0], state

    def write(self, state: Any, step: Step) -> Any:
        step = step._replace(first=step.first._replace(grads=step.descent, norm=None))
        made, again = self.of.read(state[1], step)
        again = self.of.write(again, step)
        kept = trees.map_inexact(lambda old, d: d.astype(old.dtype), state[0], made)
        return trees.saturated(kept), again


def previous_descent(of: Direction | None = None) -> PreviousDescent:
    """The descent of the step before, and zero in the first step (S2-SAM).

    Args:
      of: another direction, made of the descents in place of gradients. `gradient()`, the descent itself, by
        default.
    """
    checks.piece("of", of, Direction, "directions.gradient()")
    return PreviousDescent(gradient() if of is None else of)


@dataclasses.dataclass(frozen=True)
class MeanOfPerturbed(Direction):
    """See `mean_of_perturbed`."""

    decay: Scalar
    refresh_steps: int

    needs_gradient: ClassVar[bool] = False
    needs_oracle: ClassVar[bool] = True
    asks_anew: ClassVar[bool] = False

    def init(self, params: Params, key: jax.Array) -> Params:
        del key
        return trees.memory_like(params)

    def read(self, state: Params, step: Step) -> tuple[Grads, Params]:
        def fresh():
            grads = trees.like_masked(state, step.oracle.evaluate(step.oracle.params).grads)
            return trees.cast_like(grads, state)

        direction = step.oracle.cond(step.count % self.refresh_steps == 0, fresh, lambda: state)
        return direction, direction

    def write(self, state: Params, step: Step) -> Params:
        if step.perturbed is None:
            return state

        def on_leaf(d, g):
            unit = trees.divide(g, trees.norm(g))
            return trees.times(self.decay, d) + trees.times(1 - self.decay, unit)

        return trees.saturated(trees.map_wide(on_leaf, state, step.perturbed_grads))


def mean_of_perturbed(decay: FixedProbability, refresh_steps: Count) -> MeanOfPerturbed:
    """`d = decay d + (1 - decay) g'/||g'||` of the earlier perturbed gradients `g'` (GraphSAM).

    The norms are those of single leaves. In every `refresh_steps`-th step `d` is the gradient at the
    parameters. This costs one more gradient.

    Args:
      decay: from 0 to 1.
      refresh_steps: 1 or more.
    """
    checks.number("decay", decay, low=0, high=1)
    checks.integer("refresh_steps", refresh_steps, low=1)
    return MeanOfPerturbed(decay, refresh_steps)


@dataclasses.dataclass(frozen=True)
class Emphasized(Direction):
    """See `emphasized`."""

    emphasis: Callable[[Batch], jax.Array]

    needs_oracle: ClassVar[bool] = True

    def read(self, state: Any, step: Step) -> tuple[Grads, Any]:
        oracle = step.oracle.emphasized(self.emphasis(step.oracle.batch))
        return oracle.evaluate(oracle.point).grads, state


def emphasized(emphasis: Callable[[Batch], jax.Array]) -> Emphasized:
    """The gradient where example `i` counts `c_i` times its weight, at the first point (Focal-SAM).

    Costs one gradient.

    Args:
      emphasis: `emphasis(batch) -> float[batch]`, `c`, 0 or more.
    """
    checks.function("emphasis", emphasis, "emphasis(batch) -> float[batch]")
    return Emphasized(emphasis)


@dataclasses.dataclass(frozen=True)
class Gaussian(Direction):
    """See `gaussian`."""

    needs_gradient: ClassVar[bool] = False
    asks_anew: ClassVar[bool] = False

    def init(self, params: Params, key: jax.Array) -> Any:
        del key
        return trees.which_are_hidden(params)

    def read(self, state: Any, step: Step) -> tuple[Grads, Any]:
        return random_trees.standard_normal(step.key, trees.hidden_as_in(state, step.params)), state


def gaussian() -> Gaussian:
    """Noise: every entry independent and standard normal."""
    return Gaussian()


@dataclasses.dataclass(frozen=True)
class DampedGaussian(Direction):
    """See `damped_gaussian`."""

    weight: Scalar
    decay: Scalar

    needs_gradient: ClassVar[bool] = False
    asks_anew: ClassVar[bool] = False

    def init(self, params: Params, key: jax.Array) -> Params:
        del key
        return trees.map_inexact(lambda x: jnp.real(trees.widen(x)), trees.memory_like(params))

    def read(self, state: Params, step: Step) -> tuple[Grads, Params]:
        noise = trees.like_masked(state, random_trees.standard_normal(step.key, step.params))

        def on_leaf(z, f):
            damping = jnp.sqrt(1 + trees.times(self.weight, filter_sums(f)))
            return trees.times(1 / damping, trees.widen(z)).astype(z.dtype)

        return trees.map_inexact(on_leaf, noise, state), state

    def write(self, state: Params, step: Step) -> Params:
        if step.perturbed is None:
            return state

        def on_leaf(f, g):
            return trees.times(self.decay, f) + jnp.real(g * jnp.conj(g)).astype(f.dtype)

        return trees.saturated(trees.map_inexact(on_leaf, state, trees.widen(step.perturbed_grads)))


def damped_gaussian(weight: FixedNotNegative, decay: FixedProbability) -> DampedGaussian:
    """`z / sqrt(1 + weight sum F)`, `z` standard normal: less noise where gradients are large (ARWP).

    `F = decay F + g'^2` with the noisy gradients `g'`, summed over each output filter. Entries of
    leaves with one axis or none stand alone.

    Args:
      weight: of `F`, 0 or more.
      decay: of `F`, from 0 to 1.
    """
    checks.number("weight", weight, low=0)
    checks.number("decay", decay, low=0, high=1)
    return DampedGaussian(weight, decay)
