"""Momentum SAM's direction: where the momentum of the descent leads."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_sam.arithmetic import trees
from optax_sam.engine import checks
from optax_sam.engine import state as states
from optax_sam.engine.aliases import Grads, OptState, Params
from optax_sam.engine.hyperparameters import FixedProbability, Scalar
from optax_sam.pieces.bases import Direction, Step


class MomentumState(NamedTuple):
    """State of `descent_momentum`.

    Attributes:
      own: `v`, a tree like the parameters, float16 leaves in float32. Changes in steps that find no momentum
        of the base optimizer. With `read_momentum` it holds no array: only what a mask hides.
    """

    own: Any


class Unread(NamedTuple):
    """The state in a step that follows the base optimizer's momentum. It is not written, to save time.

    Attributes:
      own: as it was.
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
        is_read = self.read_momentum is not None
        return MomentumState(trees.which_are_hidden(params) if is_read else trees.memory_like(params))

    def read(self, state: MomentumState, step: Step) -> tuple[Grads, MomentumState | Unread]:
        opt_state = step.opt_state if self.read_momentum is None else step.oracle.opt_state
        if opt_state is None and (step.first is None or self.read_momentum is not None):
            raise ValueError(
                "oracle was made by hand, and shows nothing of the base optimizer, whose momentum this "
                "method follows: use optax_sam.step(tx, losses), or pass the oracle that "
                "value_and_grad(losses)(params, batch, state=opt_state) returns."
            )
        found = self._of_base(opt_state, step.params, trees.hidden_as_in(state.own, step.params))
        if found is None:
            return trees.map_inexact(jnp.negative, state.own), state
        momentum = trees.like_masked(state.own, found)
        return trees.map_inexact(jnp.negative, momentum), Unread(state.own)

    def write(self, state: MomentumState | Unread, step: Step) -> MomentumState:
        if isinstance(state, Unread) or self.read_momentum is not None:
            return MomentumState(state.own)
        own = trees.map_wide(lambda v, g: trees.times(self.momentum, v) + g, state.own, step.descent)
        return MomentumState(trees.saturated(own))

    def _of_base(self, opt_state: OptState, params: Params, visible: Params) -> Params | None:
        if self.read_momentum is None or opt_state is None:
            return momentum_of_base(opt_state, params, visible)[1]
        return as_read(self.read_momentum, "read_momentum", "momentum", "trace", opt_state, params, visible)


def descent_momentum(
    momentum: FixedProbability = 0.9, read_momentum: Callable[[OptState], Params] | None = None
) -> DescentMomentum:
    """`-v`: where the momentum `v` of the descent carries the parameters next (Momentum SAM).

    With the start `ahead()`, `v` is that of the base optimizer, if the optimizer state that `value_and_grad`
    was given holds one tree called `trace` or `mu` shaped like the parameters. Otherwise, and with any other
    start, it is the direction's own, `v = momentum v + descent`.
    `directions.where_momentum_is(opt_state, params)` tells which one is used.

    Args:
      momentum: from 0 to 1, of its own.
      read_momentum: `read_momentum(opt_state)` returns the base optimizer's momentum, a tree like the
        parameters, in place of the search by name. Then the direction keeps no momentum of its own, with any
        start.

    Raises:
      ValueError: in a step, `opt_state` holds several such trees, and `read_momentum` must choose. Or the
        oracle was made by hand, and `ahead()` cannot see `opt_state`.
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
    ours = [x for x in jax.tree.leaves(opt_state, is_leaf=states.is_ours) if states.is_ours(x)]
    params = trees.plain(params)
    return momentum_of_base(opt_state, params, trees.hidden_as_in(trees.plain(ours), params))[0]


def momentum_of_base(opt_state: OptState, params: Params, visible: Params) -> tuple[str, Params | None]:
    """The one momentum like the parameters inside an optimizer's state, and where. Refuses several.

    One that stands with the method inside `optax.masked` or `optax.partition` is like the `visible` ones.
    """
    found = found_in_base(opt_state, params, visible, ("trace", "mu"))
    refuse_several(found, "momenta", "read_momentum")
    if found and not _is_scaled(opt_state, found[0][1]):
        raise ValueError(
            f"nothing stands behind the momentum at {found[0][0]}, so that a learning rate before it may "
            f"have turned it downhill. The state does not tell: say where it is, and which way is uphill, "
            f"read_momentum=lambda opt_state: ..."
        )
    return found[0] if found else ("own", None)


def found_in_base(
    opt_state: OptState, params: Params, visible: Params, names: tuple[str, ...]
) -> list[tuple[str, Params]]:
    """All trees of such names inside the base optimizer's state that are like the parameters, and where."""
    base = jax.tree.map(lambda x: None if states.is_ours(x) else x, opt_state, is_leaf=states.is_ours)
    return [
        ("opt_state" + _path(path), tree)
        for name in names
        for path, tree in optax.tree.get_all_with_path(trees.plain(base), name)
        if is_like(tree, params) or is_like(tree, visible)
    ]


def refuse_several(found: list[tuple[str, Params]], what: str, argument: str) -> None:
    """Refuses more than one tree that may be meant."""
    if len(found) > 1:
        paths = ", ".join(path for path, _ in found)
        raise ValueError(
            f"opt_state holds {len(found)} {what} like the parameters, at {paths}: say which is meant, "
            f"{argument}=lambda opt_state: ..."
        )


def as_read(
    read: Callable[[OptState], Params],
    argument: str,
    what: str,
    name: str,
    opt_state: OptState,
    params: Params,
    visible: Params,
) -> Params:
    """What the user's accessor finds. Refuses what is not like the parameters."""
    found = trees.plain(read(opt_state))
    if not (is_like(found, params) or is_like(found, visible)):
        raise ValueError(
            f"{argument} returned a tree of the structure {jax.tree.structure(found)}, which is not "
            f"like the parameters, {jax.tree.structure(params)}: return the {what} of all parameters, "
            f'for example lambda opt_state: optax.tree.get(opt_state, "{name}").'
        )
    return found


def _is_scaled(opt_state: OptState, momentum: Any) -> bool:
    """Whether anything stands behind a momentum in its chain, as the learning rate does."""

    def is_it(part):
        return any(same_arrays(getattr(part, name, None), momentum) for name in ("trace", "mu"))

    def same_arrays(tree, other):  # what holds them is made anew in each search
        leaves, others = jax.tree.leaves(tree), jax.tree.leaves(other)
        alike = len(leaves) == len(others) > 0
        return alike and all(x is y for x, y in zip(leaves, others, strict=True))

    def is_several(node):  # an older Optax keeps the state of `named_chain` in a plain dict
        return states.is_chain(node) or isinstance(node, dict)

    def behind(node):
        if is_it(node):
            return 0
        parts = states.children(node)
        for number, part in enumerate(parts):
            inside = behind(part)
            if inside is not None:
                return inside + (len(parts) - number - 1 if is_several(node) else 0)
        return None

    return behind(trees.plain(opt_state)) != 0


def _path(keys: Any) -> str:
    """A path as it is written in Python; Optax's keys of named tuples show their type too."""
    return "".join(f".{k.name}" if hasattr(k, "name") else jax.tree_util.keystr((k,)) for k in keys)


def is_like(tree: Any, params: Params) -> bool:
    """Whether a tree has the structure and shapes of the parameters."""
    shapes = [[jnp.shape(x) for x in jax.tree.leaves(t)] for t in (tree, params)]
    return jax.tree.structure(tree) == jax.tree.structure(params) and shapes[0] == shapes[1]
