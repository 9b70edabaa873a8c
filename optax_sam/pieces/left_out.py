"""What `optax.masked` leaves out of an ascent. Optax passes it on as it came: the raw gradient.

Optax does not say which leaves a mask leaves out. The ascents of this library say which leaves they are
given. Beside a mask, a leaf is left out if no ascent that says how far has seen it. A compiled function says
that in its first trace alone. What comes out of it as it went in is seen in its equations.
"""

import contextlib
import contextvars
import functools
import operator
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import optax

from optax_sam.arithmetic import trees
from optax_sam.arithmetic.jaxprs import called_by
from optax_sam.engine import checks
from optax_sam.engine.aliases import Grads, Params, PieceState
from optax_sam.engine.meter import metered

_SEEN: contextvars.ContextVar[list[Any] | None] = contextvars.ContextVar("seen", default=None)


def noted(update: Callable[..., Any]) -> Callable[..., Any]:
    """The `update` of an ascent that tells what it is given."""

    @functools.wraps(update)
    def telling(self, updates, *args, **extra_args):
        if (seen := _SEEN.get()) is not None:
            shown = jax.tree.map(lambda x: not trees.is_masked(x), updates, is_leaf=trees.is_masked)
            seen.append((self.says_how_far, shown))
        return update(self, updates, *args, **extra_args)

    return telling


def hiding(update: Callable[..., Any]) -> Callable[..., tuple[Grads, PieceState]]:
    """The `update` of an ascent in which the direction and the perturbation are zero where masks leave out.

    Raises:
      ValueError: a leaf was changed beside a mask, and nobody can tell whether it was left out.
    """

    def hidden_update(updates, state, params=None, **extra_args):
        if not has_masks(state):
            return update(updates, state, params, **extra_args)
        hidden = _left_out(update, updates, state, params, **extra_args)
        perturbation, state = update(_without(updates, hidden), state, params, **extra_args)
        return _without(perturbation, hidden), state

    return hidden_update


def has_masks(state: PieceState) -> bool:
    """Whether an ascent has masks or partitions in it."""
    masks = _masks(state)
    return bool(masks.number) or masks.partitions


def _left_out(
    update: Callable[..., Any], updates: Grads, state: PieceState, params: Params, **extra_args: Any
) -> list[bool]:
    """For each leaf of `updates`, whether masks leave it out of an ascent."""
    answers: list[Any] = []

    def look(updates, state):
        with metered(), _listening() as seen:
            found, _ = update(updates, state, params, **extra_args)
        checks.like_params("ascent", update, found, updates)
        answers.append(_of_leaves(seen, updates))
        return jax.tree.leaves(found)

    jaxpr = jax.make_jaxpr(look)(updates, state).jaxpr
    alike = [_origin(jaxpr, e) is d for e, d in zip(jaxpr.outvars, jaxpr.invars, strict=False)]
    masks, seen = _masks(state), answers[-1]
    unseen = [not any(shown) for shown in zip(*seen, strict=True)] if seen else [True] * len(alike)
    untouched = [u and a for u, a in zip(unseen, alike, strict=True)]
    changed = any(u and not a for u, a in zip(unseen, alike, strict=True))
    floats = [trees.is_inexact(x) for x in jax.tree.leaves(updates)]
    # Nothing stands before or behind a mask if anything has come through it as it was.
    is_alone = any(map(operator.and_, untouched, floats)) or (
        isinstance(state, optax.MaskedState) and _is_masked(update) and not (seen and changed)
    )
    if not masks.number or (is_alone and masks.number == 1 and not masks.nested):
        return untouched
    patterns = {shown for shown in seen if not all(shown)}
    if any(unseen) and (masks.partitions or len(patterns) < masks.number):
        raise ValueError(
            "ascent has optax.masked among other transformations of Optax, or inside a function. Nobody can "
            "tell there what the mask leaves out: put optax.masked outermost, or say what is done with every "
            "leaf, "
            'optax.partition({"here": ascent, "none": optax.set_to_zero()}, labels).'
        )
    return unseen


def _origin(jaxpr: jex.Jaxpr, atom: Any) -> Any:
    """The variable that is handed on as `atom`, through compiled functions too."""
    made = {v: (equation, n) for equation in jaxpr.eqns for n, v in enumerate(equation.outvars)}
    while not isinstance(atom, jex.Literal) and atom in made:
        equation, number = made[atom]
        inner = called_by(equation)
        if inner is None:
            break
        inside = inner.jaxpr if isinstance(inner, jex.ClosedJaxpr) else inner
        found = _origin(inside, inside.outvars[number])
        places = [n for n, v in enumerate(inside.invars) if v is found]
        if not places:
            break
        atom = equation.invars[places[0]]
    return atom


def _is_masked(update: Callable[..., Any]) -> bool:
    """Whether this is the `update` of `optax.masked` itself, with nothing around it but `jax.jit`."""
    return getattr(update, "__qualname__", "").startswith("masked.<locals>")


def _of_leaves(seen: list[Any], updates: Grads) -> list[tuple[bool, ...]]:
    """For each call, which leaves of `updates` it was given; one of another tree tells nothing."""

    def on_part(is_shown, part):
        leaves = jax.tree.leaves(part)
        if is_shown and not (len(leaves) == 1 and leaves[0] is part):
            raise ValueError("an array in the place of a tree")
        return [is_shown] * len(leaves)

    # What is only made shorter, or partly kept, behind the mask of another ascent was not chosen by it.
    far = [shown for says_how_far, shown in seen if says_how_far] or [shown for _, shown in seen]
    found = []
    for shown in far:
        with contextlib.suppress(ValueError, TypeError):
            found.append(tuple(jax.tree.leaves(jax.tree.map(on_part, shown, updates))))
    return found


def _without(updates: Grads, hidden: list[bool]) -> Grads:
    """`updates` with zeros in the place of what is left out."""
    leaves, treedef = jax.tree.flatten(updates)
    return treedef.unflatten([jnp.zeros_like(x) if h else x for x, h in zip(leaves, hidden, strict=True)])


@contextlib.contextmanager
def _listening() -> Iterator[list[Any]]:
    seen: list[Any] = []
    token = _SEEN.set(seen)
    try:
        yield seen
    finally:
        _SEEN.reset(token)


class _Masks(NamedTuple):
    """The masks in an ascent.

    Attributes:
      number: how many. A mask around others does not count.
      partitions: whether there are partitions, whose groups are no masks.
      nested: whether a mask stands in another.
    """

    number: int
    partitions: bool
    nested: bool


def _masks(state: PieceState) -> _Masks:
    def is_either(part):
        return isinstance(part, optax.MaskedState | optax.PartitionState)

    found = _Masks(0, False, False)
    for part in jax.tree.leaves(state, is_leaf=is_either):
        if isinstance(part, optax.PartitionState):
            groups: Any = part.inner_states
            inside = _masks([group.inner_state for group in groups.values()])
            inside = inside._replace(partitions=True)
        elif isinstance(part, optax.MaskedState):
            inside = _masks(part.inner_state)
            inside = inside._replace(number=max(1, inside.number), nested=inside.nested or inside.number > 0)
        else:
            continue
        found = _Masks(found.number + inside.number, *map(operator.or_, found[1:], inside[1:]))
    return found
