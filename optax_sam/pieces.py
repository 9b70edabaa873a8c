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
    """

    step: jax.Array
    key: jax.Array
    params: Any = None
    oracle: Any = None


class Start(Protocol):
    """Where, and on which examples, is the first gradient of a step?"""

    needs_oracle: ClassVar[bool]
    """Whether a gradient function alone is too little."""
    perturbs: ClassVar[bool]
    """Whether the first gradient is not the one at the parameters."""

    @property
    def evaluations(self) -> int:
        """Gradients that `update` takes itself."""

    def init(self, params: Any) -> Any:
        """The initial state."""

    def begin(self, state: Any, opt_state: Any, context: Context) -> tuple[Any, Oracle]:
        """The point of the first gradient (`context.params` itself for no move), and its examples."""

    def update(self, state: Any, here: Evaluation, there: Evaluation, context: Context) -> Any:
        """The state after both evaluations of a perturbed step."""


class Direction(Protocol):
    """What points uphill?"""

    def init(self, params: Any) -> Any:
        """The initial state."""

    def read(self, state: Any, grads: Any, context: Context) -> Any:
        """The direction, a tree like `grads`, before the ascent."""

    def write(self, state: Any, grads: Any, descent: Any, context: Context) -> Any:
        """The state at the end of every step, perturbed or not."""


class Gate(Protocol):
    """Is a second gradient worth paying for?"""

    constant: ClassVar[bool | None]
    """The decision of every step where it never changes: the program then has no conditional."""

    def init(self, params: Any) -> Any:
        """The initial state."""

    def due(self, state: Any, context: Context) -> jax.Array:
        """Whether the step of `context` is perturbed, `bool[]`."""

    def update(self, state: Any, grads: Any, perturbed_grads: Any, context: Context) -> Any:
        """The state after a step; `perturbed_grads` is None where it was not perturbed."""


class Combination(Protocol):
    """How do the two gradients become one?"""

    def __call__(self, grads: Any, perturbed_grads: Any, context: Context) -> Any:
        """The descent gradient, a tree like `grads`."""


class Reuse(Protocol):
    """What does an unpaid step remember?"""

    def init(self, params: Any) -> Any:
        """The initial state."""

    def refresh(self, state: Any, grads: Any, perturbed_grads: Any, context: Context) -> Any:
        """The state after a perturbed step."""

    def recall(self, state: Any, grads: Any, context: Context) -> tuple[Any, Any]:
        """The descent gradient of an unperturbed step, and the state after it."""


class Selection(Protocol):
    """Which examples see the second gradient?"""

    def __call__(self, oracle: Any, here: Evaluation, context: Context) -> Any:
        """The oracle of the second gradient."""
