"""What the pieces of a method are: one protocol for each question that a step answers.

Pieces are frozen dataclasses: they print well, compare by value, copy and pickle. Their state is a
pytree whose structure, shapes and dtypes are final at `init`.
"""

from typing import Any, ClassVar, NamedTuple, Protocol

import jax

from optax_sam.oracle import Evaluation, Oracle


class Context(NamedTuple):
    """What every piece may know of the present step.

    Attributes:
      step: `int32[]`, how many steps were taken before this one.
      key: a typed PRNG key, another one for every step and every kind of piece.
      params: the parameters; inside `optax.masked` only the visible ones.
      oracle: further losses and gradients of this step, an `Oracle` or, where only a gradient function
        is known, a `GradientOracle`; None when the next step is decided.
      due: `bool[]`, whether the step is perturbed; None where only its gradient can tell.
      opt_state: the state of the whole optimizer, where the first gradient is taken; else None.
    """

    step: jax.Array
    key: jax.Array
    params: Any = None
    oracle: Any = None
    due: Any = None
    opt_state: Any = None


class Gradients(NamedTuple):
    """What a step has made: trees like the parameters.

    Attributes:
      first: the first gradient.
      descent: what the step descends along.
      direction: what pointed uphill; None in a step that was not perturbed.
      perturbed: the gradient at the perturbed point (with the start `ahead()`, the first one); None
        in a step that was not perturbed.
    """

    first: Any
    descent: Any
    direction: Any = None
    perturbed: Any = None


class Start(Protocol):
    """Where, and on which examples, is the first gradient of a step?"""

    needs_oracle: ClassVar[bool]
    """Whether a gradient function alone is too little."""
    perturbs: ClassVar[bool]
    """Whether the first gradient is not the one at the parameters."""

    follows_gate: ClassVar[bool]
    """Whether the first gradient of a perturbed step is another one than that of an unpaid step."""

    reweights: ClassVar[bool]
    """Whether examples count otherwise in the first gradient than in its loss."""

    @property
    def evaluations(self) -> int:
        """Gradients that `update` takes itself."""

    def init(self, params: Any) -> Any:
        """The initial state."""

    def begin(self, state: Any, context: Context) -> tuple[Any, Oracle]:
        """The point of the first gradient (`context.params` itself for no move), and its examples."""

    def update(self, state: Any, here: Evaluation, there: Evaluation, context: Context) -> Any:
        """The state after both evaluations of a perturbed step."""


class Direction(Protocol):
    """What points uphill?"""

    needs_gradient: ClassVar[bool]
    """Whether it reads the gradient of this step: if not, it can be followed before any is taken."""
    needs_oracle: ClassVar[bool]
    """Whether a gradient function alone is too little."""

    def init(self, params: Any) -> Any:
        """The initial state."""

    def read(self, state: Any, grads: Any, context: Context) -> Any:
        """The direction, a tree like the parameters, before the ascent; `grads` may be None."""

    def evaluations(self, context: Context) -> Any:
        """Gradients that `read` takes itself."""

    def write(self, state: Any, step: Gradients, context: Context) -> Any:
        """The state at the end of every step, perturbed or not."""


class Gate(Protocol):
    """Is a second gradient worth paying for?"""

    constant: ClassVar[bool | None]
    """The decision of every step where it never changes: the program then has no conditional."""
    needs_gradient: ClassVar[bool]
    """Whether the decision hangs on the first gradient of the same step."""

    def init(self, params: Any) -> Any:
        """The initial state."""

    def due(self, state: Any, grads: Any, context: Context) -> jax.Array:
        """Whether the step of `context` is perturbed, `bool[]`; `grads` None before its first gradient."""

    def update(self, state: Any, grads: Any, perturbed_grads: Any, context: Context) -> Any:
        """The state after a step; `perturbed_grads` is None where it was not perturbed."""


class Combination(Protocol):
    """How do the two gradients become one? One with `evaluations` takes so many gradients itself."""

    def __call__(self, grads: Any, perturbed_grads: Any, context: Context) -> Any:
        """The descent gradient, a tree like `grads`."""


class Reuse(Protocol):
    """What does an unpaid step remember? One with `evaluations` takes so many gradients in `refresh`."""

    def init(self, params: Any) -> Any:
        """The initial state."""

    def refresh(self, state: Any, grads: Any, perturbed_grads: Any, context: Context) -> Any:
        """The state after a perturbed step."""

    def recall(self, state: Any, grads: Any, context: Context) -> tuple[Any, Any]:
        """The descent gradient of an unperturbed step, and the state after it."""


class Selection(Protocol):
    """Which examples see the second gradient?"""

    def __call__(self, oracle: Any, here: Evaluation, there: Any, context: Context) -> Any:
        """The oracle of the second gradient, which is taken at the point `there`."""
