"""What points uphill: the direction of the perturbation."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_sam import checks, random_trees, trees
from optax_sam.aliases import Grads, OptState, Params
from optax_sam.hyperparameters import Scalar
from optax_sam.pieces.bases import Direction, Step
from optax_sam.pieces.geometries import filter_sums
from optax_sam.pieces.top_eigenvector import with_top_eigenvector

__all__ = [
    "batch_specific",
    "damped_gaussian",
    "descent_momentum",
    "gaussian",
    "gradient",
    "mean_of_perturbed",
    "previous_descent",
    "running_mean",
    "where_momentum_is",
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


def running_mean(decay: Scalar) -> RunningMean:
    """`d = decay d + (1 - decay) g`, started at the first gradient (VaSSO).

    Args:
      decay: from 0 (the gradient itself) to 1.
    """
    checks.number("decay", decay, low=0, high=1)
    return RunningMean(decay)


@dataclasses.dataclass(frozen=True)
class BatchSpecific(RunningMean):
    """See `batch_specific`: the same mean, of which only the rest points uphill."""

    sigma: Scalar

    def read(self, state: MeanState, step: Step) -> tuple[Grads, MeanState]:
        sigma = jnp.where(state.started, self.sigma, 0.0)
        return trees.map_wide(lambda g, m: g - trees.times(sigma, m), step.grads, state.mean), state


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
class DescentMomentum(Direction):
    """See `descent_momentum`."""

    momentum: Scalar
    read_momentum: Callable[[OptState], Params] | None

    needs_gradient: ClassVar[bool] = False
    asks_anew: ClassVar[bool] = False

    def init(self, params: Params, key: jax.Array) -> MomentumState:
        del key
        return MomentumState(trees.memory_like(params))

    def read(self, state: MomentumState, step: Step) -> tuple[Grads, MomentumState]:
        found = self._of_base(step.opt_state, step.params)
        momentum = state.own if found is None else trees.like_masked(state.own, found)
        return trees.map_inexact(jnp.negative, momentum), state

    def write(self, state: MomentumState, step: Step) -> MomentumState:
        own = trees.map_wide(lambda v, g: trees.times(self.momentum, v) + g, state.own, step.descent)
        return MomentumState(trees.saturated(own))

    def _of_base(self, opt_state: OptState, params: Params) -> Params | None:
        if self.read_momentum is None or opt_state is None:
            return momentum_of_base(opt_state, params)[1]
        found = trees.plain(self.read_momentum(opt_state))
        if not is_like(found, params):
            raise ValueError(
                f"read_momentum returned a tree of the structure {jax.tree.structure(found)}, which is not like "
                f"the parameters, {jax.tree.structure(params)}: return the momentum of all parameters, for "
                f'example lambda opt_state: optax.tree.get(opt_state, "trace").'
            )
        return found


def descent_momentum(
    momentum: Scalar = 0.9, read_momentum: Callable[[OptState], Params] | None = None
) -> DescentMomentum:
    """`-v`: where the momentum `v` of the descent carries the parameters next (Momentum SAM).

    With the start `ahead()`, `v` is that of the base optimizer, if the optimizer state that
    `value_and_grad` was given holds one tree called `trace` or `mu` shaped like the parameters.
    Without one, and with any other start, it is the direction's own, `v = momentum v + descent`.
    `directions.where_momentum_is(opt_state, params)` says which it is.

    Args:
      momentum: from 0 to 1, of its own.
      read_momentum: `read_momentum(opt_state)` returns the base optimizer's momentum, a tree like the
        parameters, in the place of the search by name.

    Raises:
      ValueError: in a step, `opt_state` holds several such trees: then `read_momentum` must choose.
    """
    checks.number("momentum", momentum, low=0, high=1)
    if read_momentum is not None:
        checks.function(
            "read_momentum", read_momentum, "read_momentum(opt_state) -> tree like params, or None"
        )
    return DescentMomentum(momentum, read_momentum)


def where_momentum_is(opt_state: OptState, params: Params) -> str:
    """Where `descent_momentum` finds the base optimizer's momentum: a path into `opt_state`, or "own".

    Args:
      opt_state: the state of the whole optimizer.
      params: the parameters.

    Raises:
      ValueError: `opt_state` holds several momenta.

    Example:
      >>> import jax.numpy as jnp, optax, optax_sam
      >>> tx = optax.chain(optax_sam.momentum_sam(0.5), optax.sgd(0.1, momentum=0.9))
      >>> print(optax_sam.directions.where_momentum_is(tx.init(jnp.ones(2)), jnp.ones(2)))
      opt_state[1][0].trace
    """
    return momentum_of_base(opt_state, trees.plain(params))[0]


def momentum_of_base(opt_state: OptState, params: Params) -> tuple[str, Params | None]:
    """The one momentum like the parameters inside an optimizer's state, and where; refuses several."""
    found = [
        ("opt_state" + _path(path), tree)
        for name in ("trace", "mu")
        for path, tree in optax.tree.get_all_with_path(trees.plain(opt_state), name)
        if is_like(tree, params)
    ]
    if len(found) > 1:
        paths = ", ".join(path for path, _ in found)
        raise ValueError(
            f"opt_state holds {len(found)} momenta like the parameters, at {paths}: say which is meant, "
            f"read_momentum=lambda opt_state: ..."
        )
    return found[0] if found else ("own", None)


def _path(keys: Any) -> str:
    """A path as it is written in Python; Optax's keys of named tuples show their type too."""
    return "".join(f".{k.name}" if hasattr(k, "name") else jax.tree_util.keystr((k,)) for k in keys)


def is_like(tree: Any, params: Params) -> bool:
    """Whether a tree has the structure and shapes of the parameters."""
    shapes = [[jnp.shape(x) for x in jax.tree.leaves(t)] for t in (tree, params)]
    return jax.tree.structure(tree) == jax.tree.structure(params) and shapes[0] == shapes[1]


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
    """What the step before descended along; zero in the first (S2-SAM).

    Args:
      of: another direction, made of the descents in the place of gradients; `gradient()`, the descent
        itself, by default.
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
            return optax.tree.cast_like(grads, state)

        direction = step.oracle.cond(step.count % self.refresh_steps == 0, fresh, lambda: state)
        return direction, direction

    def write(self, state: Params, step: Step) -> Params:
        if step.perturbed is None:
            return state

        def on_leaf(d, g):
            unit = trees.divide(g, trees.norm(g))
            return trees.times(self.decay, d) + trees.times(1 - self.decay, unit)

        return trees.saturated(trees.map_wide(on_leaf, state, step.perturbed_grads))


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
class Gaussian(Direction):
    """See `gaussian`."""

    needs_gradient: ClassVar[bool] = False
    asks_anew: ClassVar[bool] = False

    def read(self, state: Any, step: Step) -> tuple[Grads, Any]:
        return random_trees.standard_normal(step.key, step.params), state


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
