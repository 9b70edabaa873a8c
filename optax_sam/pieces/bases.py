"""What the pieces of a method are: one base for each question that a step answers.

Pieces are frozen dataclasses: they print well, compare by value, copy and pickle. A piece inherits from the
base of its kind. The base says what it must have, and is neutral in all else. Its state is a pytree whose
structure, shapes and dtypes are final at `init`.
"""

import abc
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import optax

from optax_sam.arithmetic import trees
from optax_sam.engine.aliases import Grads, OptState, Params, PieceState
from optax_sam.engine.objective import Evaluation
from optax_sam.engine.step_oracle import StepOracle
from optax_sam.pieces import left_out

KINDS = ("start", "direction", "gate", "selection", "combination", "reuse", "ascent")


ABSENT: Any = None
"""In the place of what a step has not come to yet."""


class Step(NamedTuple):
    """What every piece may know of the present step. What is not there yet is None.

    Attributes:
      count: `int32[]`, how many steps were taken before this one.
      params: the parameters. Inside `optax.masked` only the visible ones.
      oracle: further gradients of this step, on the examples of the first one. None when the next step is
        decided.
      due: `bool[]`, whether the step is perturbed. None where only its gradient can tell.
      opt_state: the state of the whole optimizer, where the first gradient is taken. None after it, and for
        an oracle made by hand.
      first: the first evaluation. Its `grads` are `grads`.
      direction: what pointed uphill. None in a step that is not perturbed, as are all fields below except
        descent.
      perturbation: a tree like the parameters.
      distance: `float[]`, its norm, zero where it is.
      point: the perturbed parameters.
      perturbed: the evaluation there. Its `grads` are `perturbed_grads`. With the start `ahead()` it is the
        first one.
      descent: what the step descends along.
      base_key: from which `key` is made.
      kind: of the piece that is asked.
    """

    count: jax.Array
    params: Params = None
    oracle: StepOracle = ABSENT
    due: Any = None
    opt_state: OptState = None
    first: Evaluation = ABSENT
    direction: Grads = None
    perturbation: Grads = None
    distance: Any = None
    point: Params = None
    perturbed: Evaluation = ABSENT
    descent: Grads = None
    base_key: Any = None
    kind: str = "start"

    @property
    def key(self) -> jax.Array:
        """A typed PRNG key, another one for every step and every kind of piece."""
        of_step = jax.random.fold_in(self.base_key, self.count)
        return jax.random.fold_in(of_step, KINDS.index(self.kind))

    @property
    def grads(self) -> Grads:
        """The first gradient `g`."""
        return None if self.first is None else self.first.grads

    @property
    def perturbed_grads(self) -> Grads:
        """The gradient at the perturbed point, `g'`, or None in a step that is not perturbed."""
        return None if self.perturbed is None else self.perturbed.grads


class Piece:
    """What all kinds share."""

    needs_oracle: ClassVar[bool] = False
    """Whether a gradient function alone is too little."""

    asks_anew: ClassVar[bool] = True
    """Whether it may ask, after the first gradient, for losses of other examples or of another function than
    that gradient's. If so the loss is called for them beforehand, so that it is seen as it was."""


class Remembering(Piece):
    """A piece with a state."""

    def init(self, params: Params, key: jax.Array) -> PieceState:
        """The initial state. `key` is a typed PRNG key."""
        del params, key
        return ()

    def settle(self, mean: PieceState, old: PieceState) -> PieceState:
        """The state after a step in slices or draws, from the mean of their states.

        Float leaves are averaged. All others are the first one's. Repair here a state that a mean destroys,
        such as a unit vector.
        """
        del old
        return mean


class Began(NamedTuple):
    """Where, and on which examples, a step begins.

    Attributes:
      point: of the first gradient. `step.params` for no move.
      oracle: with its examples.
      climb: what was climbed to get there, as `climb()` returned it. None for a step that climbs later.
    """

    point: Params
    oracle: StepOracle
    climb: Any = None


class Start(Remembering, abc.ABC):
    """Where, and on which examples, is the first gradient of a step?"""

    needs_oracle: ClassVar[bool] = True
    is_clean: ClassVar[bool] = False
    """Whether the first gradient is that of all examples at the parameters, as the base optimizer's is."""
    perturbs: ClassVar[bool] = False
    """Whether the first gradient is not the one at the parameters."""
    climbs: ClassVar[bool] = False
    """Whether the first gradient, at the perturbed point already, is the only one of the step."""
    compares: ClassVar[bool] = False
    """Whether it compares losses of both evaluations, which must then be those of the same examples."""
    follows_gate: ClassVar[bool] = False
    """Whether the first gradient of a perturbed step is another one than that of an unpaid step."""

    @abc.abstractmethod
    def begin(self, state: PieceState, step: Step, climb: Callable[[], Any]) -> Began:
        """The point of the first gradient, and its examples. `climb()` perturbs before it is taken."""

    def update(self, state: PieceState, step: Step) -> PieceState:
        """The state after both evaluations of a perturbed step."""
        del step
        return state


class Direction(Remembering, abc.ABC):
    """What points uphill?"""

    needs_gradient: ClassVar[bool] = True
    """Whether it reads the gradient of this step. If not, it can be followed before any is taken."""

    @abc.abstractmethod
    def read(self, state: PieceState, step: Step) -> tuple[Grads, PieceState]:
        """The direction, a tree like the parameters, and the state, in a perturbed step."""

    def write(self, state: PieceState, step: Step) -> PieceState:
        """The state at the end of every step, perturbed or not."""
        del step
        return state


class Gate(Remembering, abc.ABC):
    """Is a second gradient worth paying for?"""

    constant: ClassVar[bool | None] = None
    """The decision of every step, where it never changes; the program then has no conditional."""
    needs_gradient: ClassVar[bool] = False
    """Whether the decision hangs on the first gradient of the same step."""

    @abc.abstractmethod
    def due(self, state: PieceState, step: Step) -> jax.Array:
        """Whether the step is perturbed, `bool[]`. Its gradient may not be there yet."""

    def update(self, state: PieceState, step: Step) -> PieceState:
        """The state after a step, perturbed or not."""
        del step
        return state


class Selection(Piece, abc.ABC):
    """Which examples see the second gradient?"""

    needs_oracle: ClassVar[bool] = True

    @abc.abstractmethod
    def select(self, step: Step) -> StepOracle:
        """The oracle of the second gradient, which is taken at `step.point`."""


class Combination(Piece, abc.ABC):
    """How do the two gradients become one?"""

    reads_loss: ClassVar[bool] = False
    """Whether it reads the loss at the perturbed point, which must then be that of the gradient there."""

    @abc.abstractmethod
    def combine(self, step: Step) -> Grads:
        """The descent gradient, a tree like the parameters."""


class Reuse(Remembering, abc.ABC):
    """What does an unpaid step remember?"""

    def refresh(self, state: PieceState, step: Step) -> PieceState:
        """The state after a perturbed step."""
        del step
        return state

    @abc.abstractmethod
    def recall(self, state: PieceState, step: Step) -> tuple[Grads, PieceState]:
        """The descent gradient of an unperturbed step, and the state after it."""


class Ascent(Piece, abc.ABC):
    """How far uphill? An Optax transformation, from a direction to a perturbation.

    Its key comes with `update`, not with `init`, since any other Optax transformation is an ascent too.
    """

    says_how_far: ClassVar[bool | None] = True
    """Whether it sets the size of the perturbation. If not, it changes that of another ascent. None: it sets
    the size where no other ascent does."""
    draws: ClassVar[int] = 1
    """How many keys it draws from: 0 if none. In a chain each of them is another one."""

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        if (update := cls.__dict__.get("update")) is not None:
            cls.update = left_out.noted(update)

    def init(self, params: Params) -> PieceState:
        """The initial state."""
        del params
        return optax.EmptyState()

    @abc.abstractmethod
    def update(
        self, updates: Grads, state: PieceState, params: Params = None, **extra_args: Any
    ) -> tuple[Grads, PieceState]:
        """The perturbation along `updates`. Extra arguments are `step` (the count), `key` and `oracle`."""

    def climb(
        self, updates: Grads, state: PieceState, params: Params = None, **extra_args: Any
    ) -> tuple[Grads, PieceState, jax.Array]:
        """The same with the L2 norm of the perturbation, which some know without computing it."""
        perturbation, state = self.update(updates, state, params, **extra_args)
        return perturbation, state, trees.norm(perturbation)


def transformation(ascent: Ascent) -> optax.GradientTransformationExtraArgs:
    """A record with `init` and `update` as an Optax transformation."""
    return optax.GradientTransformationExtraArgs(ascent.init, ascent.update)


def record_of(ascent: optax.GradientTransformation) -> Ascent | None:
    """The record behind an ascent of this library, or None for any other transformation."""
    record = getattr(ascent.update, "__self__", None)
    return record if isinstance(record, Ascent) else None


def asks_anew(ascent: optax.GradientTransformation) -> bool:
    """Whether an ascent may ask for losses of other examples. For a foreign one nobody knows."""
    record = record_of(ascent)
    return True if record is None else record.asks_anew


def says_how_far(ascent: optax.GradientTransformation) -> bool | None:
    """Whether an ascent sets the size of the perturbation: see `Ascent.says_how_far`."""
    record = record_of(ascent)
    return False if record is None else record.says_how_far


def draws(ascent: optax.GradientTransformation) -> int:
    """How many keys an ascent draws from; a foreign one may draw from one."""
    record = record_of(ascent)
    return 1 if record is None else record.draws


def another_key(extra_args: dict[str, Any], *numbers: Any) -> dict[str, Any]:
    """The extra arguments of an ascent with another key, where there is one."""
    key = extra_args.get("key")
    if key is None:
        return extra_args
    for number in numbers:
        key = jax.random.fold_in(key, number)
    return extra_args | {"key": key}


def climb(
    ascent: optax.GradientTransformation, updates: Grads, state: PieceState, params: Params, **extra_args: Any
) -> tuple[Grads, PieceState, jax.Array]:
    """The perturbation of any ascent, its state, and the L2 norm of the perturbation.

    An ascent that knows that norm tells it: on a CPU, XLA would write the whole perturbation once more
    only to add up its squares.
    """
    record = record_of(ascent)
    if record is not None:
        return record.climb(updates, state, params, **extra_args)
    update = left_out.hiding(ascent)
    perturbation, new = update(updates, state, params, **extra_args)
    return perturbation, new, trees.norm(perturbation)
