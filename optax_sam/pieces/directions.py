"""What points uphill: the direction of the perturbation."""

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from optax_sam import checks, random_trees, trees
from optax_sam.hyperparameters import Scalar
from optax_sam.pieces.geometry import filter_sums
from optax_sam.pieces.protocols import Context, Gradients


@dataclasses.dataclass(frozen=True)
class Gradient:
    """See `gradient`."""

    needs_gradient: ClassVar[bool] = True
    needs_oracle: ClassVar[bool] = False

    def init(self, params: Any) -> Any:
        del params
        return ()

    def read(self, state: Any, grads: Any, context: Context) -> Any:
        del state, context
        return grads

    def evaluations(self, context: Context) -> Any:
        del context
        return 0

    def write(self, state: Any, step: Gradients, context: Context) -> Any:
        del step, context
        return state


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
class RunningMean(Gradient):
    """See `running_mean`."""

    decay: Scalar

    def init(self, params: Any) -> MeanState:
        return MeanState(trees.memory_like(params), jnp.zeros([], bool))

    def read(self, state: MeanState, grads: Any, context: Context) -> Any:
        del context
        return self._mean(state, grads)

    def write(self, state: MeanState, step: Gradients, context: Context) -> MeanState:
        del context
        return MeanState(trees.saturated(self._mean(state, step.first)), jnp.ones_like(state.started))

    def _mean(self, state: MeanState, grads: Any) -> Any:
        decay = jnp.where(state.started, self.decay, 0.0)

        def on_leaf(m, g):
            return trees.times(decay, m) + trees.times(1 - decay, g)

        return trees.map_wide(on_leaf, state.mean, grads)


def running_mean(decay: Scalar) -> RunningMean:
    """`d = decay d + (1 - decay) g`, started at the first gradient (VaSSO).

    Args:
      decay: from 0 (the gradient itself) to 1.
    """
    checks.number("decay", decay, low=0, high=1)
    return RunningMean(decay)


@dataclasses.dataclass(frozen=True)
class BatchSpecific(RunningMean):
    """See `batch_specific`."""

    sigma: Scalar

    def read(self, state: MeanState, grads: Any, context: Context) -> Any:
        del context
        sigma = jnp.where(state.started, self.sigma, 0.0)
        return trees.map_wide(lambda g, m: g - trees.times(sigma, m), grads, state.mean)


def batch_specific(sigma: Scalar = 1.0, decay: Scalar = 0.9) -> BatchSpecific:
    """`g - sigma m`: what this batch adds to the mean `m` of the gradients before (Friendly SAM).

    `m = decay m + (1 - decay) g`, started at the first gradient, whose step has the direction `g`.

    Args:
      sigma: how much of the mean is taken away.
      decay: of the mean, from 0 to 1.
    """
    checks.number("sigma", sigma)
    checks.number("decay", decay, low=0, high=1)
    return BatchSpecific(decay, sigma)


class MomentumState(NamedTuple):
    """State of `descent_momentum`.

    Attributes:
      own: `v`, a tree like the parameters, float16 leaves in float32. Changes every step.
    """

    own: Any


@dataclasses.dataclass(frozen=True)
class DescentMomentum(Gradient):
    """See `descent_momentum`."""

    momentum: Scalar

    needs_gradient: ClassVar[bool] = False

    def init(self, params: Any) -> MomentumState:
        return MomentumState(trees.memory_like(params))

    def read(self, state: MomentumState, grads: Any, context: Context) -> Any:
        del grads
        found = _momentum_of(context.opt_state, context.params)
        momentum = state.own if found is None else trees.like_masked(state.own, found)
        return trees.map_inexact(jnp.negative, momentum)

    def write(self, state: MomentumState, step: Gradients, context: Context) -> MomentumState:
        del context
        own = trees.map_wide(lambda v, g: trees.times(self.momentum, v) + g, state.own, step.descent)
        return MomentumState(trees.saturated(own))


def descent_momentum(momentum: Scalar = 0.9) -> DescentMomentum:
    """`-v`: where the momentum `v` of the descent carries the parameters next (Momentum SAM).

    With the start `ahead()`, `v` is that of the base optimizer, if the optimizer state that
    `value_and_grad` was given holds exactly one tree called `trace` or `mu` shaped like the parameters.
    Else, and with any other start, it is the direction's own, `v = momentum v + descent`.

    Args:
      momentum: from 0 to 1, of its own.
    """
    checks.number("momentum", momentum, low=0, high=1)
    return DescentMomentum(momentum)


@dataclasses.dataclass(frozen=True)
class PreviousDescent(Gradient):
    """See `previous_descent`."""

    of: Gradient

    needs_gradient: ClassVar[bool] = False

    def init(self, params: Any) -> Any:
        return trees.memory_like(params), self.of.init(params)

    def read(self, state: Any, grads: Any, context: Context) -> Any:
        del grads, context
        return state[0]

    def write(self, state: Any, step: Gradients, context: Context) -> Any:
        made = self.of.read(state[1], step.descent, context)
        again = self.of.write(state[1], step._replace(first=step.descent), context)
        kept = trees.map_inexact(lambda old, d: d.astype(old.dtype), state[0], made)
        return trees.saturated(kept), again


def previous_descent(of: Gradient | None = None) -> PreviousDescent:
    """What the step before descended along; zero in the first (S2-SAM).

    Args:
      of: another direction, made of the descents in the place of gradients; `gradient()`, the descent
        itself, by default.
    """
    checks.piece("of", of, "read", "a direction, such as gradient()")
    return PreviousDescent(gradient() if of is None else of)


@dataclasses.dataclass(frozen=True)
class MeanOfPerturbed(Gradient):
    """See `mean_of_perturbed`."""

    decay: Scalar
    refresh_steps: int

    needs_gradient: ClassVar[bool] = False
    needs_oracle: ClassVar[bool] = True

    def init(self, params: Any) -> Any:
        return trees.memory_like(params)

    def read(self, state: Any, grads: Any, context: Context) -> Any:
        del grads

        def fresh():
            grads = trees.like_masked(state, context.oracle.evaluate(context.params).grads)
            return optax.tree.cast_like(grads, state)

        return lax.cond(context.step % self.refresh_steps == 0, fresh, lambda: state)

    def evaluations(self, context: Context) -> Any:
        return (context.step % self.refresh_steps == 0).astype(jnp.float32)

    def write(self, state: Any, step: Gradients, context: Context) -> Any:
        del context
        if step.perturbed is None:
            return state

        def on_leaf(d, g):
            unit = trees.divide(g, trees.norm(g))
            return trees.times(self.decay, d) + trees.times(1 - self.decay, unit)

        return trees.saturated(trees.map_wide(on_leaf, step.direction, step.perturbed))


def mean_of_perturbed(decay: Scalar, refresh_steps: int) -> MeanOfPerturbed:
    """`d = decay d + (1 - decay) g'/||g'||` of the perturbed gradients `g'` before (GraphSAM).

    The norms are those of single leaves. In every `refresh_steps`-th step `d` is the gradient at the
    parameters, which is one gradient more.

    Args:
      decay: from 0 to 1.
      refresh_steps: 1 or more.
    """
    checks.number("decay", decay, low=0, high=1)
    checks.integer("refresh_steps", refresh_steps, low=1)
    return MeanOfPerturbed(decay, refresh_steps)


@dataclasses.dataclass(frozen=True)
class Gaussian(Gradient):
    """See `gaussian`."""

    needs_gradient: ClassVar[bool] = False

    def read(self, state: Any, grads: Any, context: Context) -> Any:
        del state, grads
        return random_trees.standard_normal(context.key, context.params)


def gaussian() -> Gaussian:
    """Noise: every entry independent and standard normal."""
    return Gaussian()


@dataclasses.dataclass(frozen=True)
class DampedGaussian(Gaussian):
    """See `damped_gaussian`."""

    weight: Scalar
    decay: Scalar

    def init(self, params: Any) -> Any:
        return trees.map_inexact(lambda x: jnp.real(trees.widen(x)), trees.memory_like(params))

    def read(self, state: Any, grads: Any, context: Context) -> Any:
        noise = trees.like_masked(state, super().read((), grads, context))

        def on_leaf(z, f):
            damping = jnp.sqrt(1 + trees.times(self.weight, filter_sums(f)))
            return trees.times(1 / damping, trees.widen(z)).astype(z.dtype)

        return trees.map_inexact(on_leaf, noise, state)

    def write(self, state: Any, step: Gradients, context: Context) -> Any:
        del context
        if step.perturbed is None:
            return state

        def on_leaf(f, g):
            return trees.times(self.decay, f) + jnp.real(g * jnp.conj(g)).astype(f.dtype)

        return trees.saturated(trees.map_inexact(on_leaf, state, trees.widen(step.perturbed)))


def damped_gaussian(weight: Scalar, decay: Scalar) -> DampedGaussian:
    """`z / sqrt(1 + weight sum F)`, `z` standard normal: less noise where gradients are large (ARWP).

    `F = decay F + g'^2` with the noisy gradients `g'`, summed over each output filter; entries of
    leaves with one axis or none stand alone.

    Args:
      weight: of `F`, 0 or more.
      decay: of `F`, from 0 to 1.
    """
    checks.number("weight", weight, low=0)
    checks.number("decay", decay, low=0, high=1)
    return DampedGaussian(weight, decay)


def _momentum_of(opt_state: Any, params: Any) -> Any:
    """The one momentum like the parameters inside an optimizer's state; None without it."""
    structure, shapes = jax.tree.structure(params), [x.shape for x in jax.tree.leaves(params)]
    found = [
        tree
        for name in ("trace", "mu")
        for _, tree in optax.tree.get_all_with_path(trees.plain(opt_state), name)
        if jax.tree.structure(tree) == structure and [x.shape for x in jax.tree.leaves(tree)] == shapes
    ]
    return found[0] if len(found) == 1 else None
