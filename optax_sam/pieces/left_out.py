"""What `optax.masked` leaves out of an ascent. Optax passes it on as it came: the raw gradient.

Optax does not say which leaves a mask leaves out. The ascents of this library say which leaves they are
given. Beside a mask, a leaf is left out if no ascent that says how far has seen it. A compiled function says
that in its first trace alone. Where the mask is outermost, a leaf is left out if it comes out as it went in:
the equations show that. Beside other transformations they show nothing, as some change some leaves alone.
"""

import contextlib
import contextvars
import functools
import operator
from collections.abc import Callable, Iterable, Iterator
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


def hiding(ascent: optax.GradientTransformation) -> Callable[..., tuple[Grads, PieceState]]:
    """The `update` of an ascent in which the direction and the perturbation are zero where masks leave out.

    Raises:
      ValueError: something stands beside a mask, and nobody can tell what the mask leaves out.
    """
    update = optax.with_extra_args_support(ascent).update

    def hidden_update(updates, state, params=None, **extra_args):
        if not has_masks(state):
            return update(updates, state, params, **extra_args)
        hidden = _left_out(ascent, updates, state, params, **extra_args)
        perturbation, state = update(_without(updates, hidden), state, params, **extra_args)
        return _without(perturbation, hidden), state

    return hidden_update


def has_masks(state: PieceState) -> bool:
    """Whether an ascent has masks or partitions in it."""
    masks = _masks(state)
    return bool(masks.number) or masks.partitions


def strongest(answers: Iterable[bool | None]) -> bool | None:
    """True if any of the answers of `says_how_far` is, else None if any is."""
    given = set(answers)
    return True if True in given else None if None in given else False


def _left_out(
    ascent: optax.GradientTransformation, updates: Grads, state: PieceState, params: Params, **extra_args: Any
) -> list[bool]:
    """For each leaf of `updates`, whether masks leave it out of an ascent."""
    update = optax.with_extra_args_support(ascent).update
    answers: list[Any] = []

    def look(updates, state):
        with metered(), _listening() as seen:
            found, _ = update(updates, state, params, **extra_args)
        checks.like_params("ascent", update, found, updates)
        answers.append(_who_says_how_far(seen, updates))
        return jax.tree.leaves(found)

    jaxpr = jax.make_jaxpr(look)(updates, state).jaxpr
    alike = [_origin(jaxpr, e) is d for e, d in zip(jaxpr.outvars, jaxpr.invars, strict=False)]
    masks, (how_far, seen) = _masks(state), answers[-1]
    is_outermost = _code_of(ascent.update) is _code_of(optax.masked(optax.identity(), True).update)
    unseen = [not any(shown) for shown in zip(*seen, strict=True)] if seen else [True] * len(alike)
    if not masks.number or (is_outermost and masks.number == 1 and not masks.nested):
        return [u and a for u, a in zip(unseen, alike, strict=True)]
    patterns = {shown for shown in seen if not all(shown)}
    # A mask in a mask may be seen or not, and so may a partition: the patterns of others are not known then.
    is_known = len(patterns) >= masks.number and not (masks.partitions or (masks.nested and masks.number > 1))
    # An `in_proportion` that is given every leaf has chosen them before a mask, but not behind it.
    if (how_far is None and any(map(all, seen))) or (any(unseen) and not is_known):
        raise ValueError(
            "ascent has optax.masked among other transformations, or inside a function. Nobody can "
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


def _code_of(update: Any) -> Any:
    """The code of a function, with nothing around it but `jax.jit`: another function may bear its name."""
    while isinstance(update, jax.stages.Wrapped):
        update = getattr(update, "__wrapped__", None)
    return getattr(update, "__code__", None)


def _who_says_how_far(seen: list[Any], updates: Grads) -> tuple[bool | None, list[tuple[bool, ...]]]:
    """How far is said by whom (see `Ascent.says_how_far`), and which leaves of `updates` each was given.

    One that was given another tree tells nothing. Where nobody says how far, one that was given a part stands
    in a mask, and one that was given every leaf has chosen none.
    """

    def on_part(is_shown, part):
        leaves = jax.tree.leaves(part)
        if is_shown and not (len(leaves) == 1 and leaves[0] is part):
            raise ValueError("an array in the place of a tree")
        return [is_shown] * len(leaves)

    how_far = strongest(answer for answer, _ in seen)
    found = []
    for answer, shown in seen:
        if answer is how_far:
            with contextlib.suppress(ValueError, TypeError):
                found.append(tuple(jax.tree.leaves(jax.tree.map(on_part, shown, updates))))
    return how_far, found if how_far is not False else [shown for shown in found if not all(shown)]


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
