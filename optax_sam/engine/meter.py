"""What a step spends: gradients are counted, and judged, where they are taken.

A meter is open while a step is traced. Whatever takes a gradient tells the innermost open one, so that a
piece, however it is wrapped, cannot be miscounted. `scan` and `cond` hand out what their insides have
spent. A loop or conditional that does not is refused, since its insides would be counted once.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from optax_sam.arithmetic import sharding, trees

try:
    from jax.extend.core import get_opaque_trace_state
except ImportError:  # JAX 0.8
    from jax.core import get_opaque_trace_state


class Spent(NamedTuple):
    """What was spent so far.

    Attributes:
      gradients: `float32[]`, or a Python number, in units of one gradient of the full batch.
      finite: `bool[]`, or a Python bool: whether every gradient was finite.
    """

    gradients: Any = 0.0
    finite: Any = True

    def plus(self, other: "Spent") -> "Spent":
        """Both together."""
        finite = other.finite if self.finite is True else self.finite & other.finite
        return Spent(self.gradients + other.gradients, finite)

    def as_arrays(self) -> "Spent":
        """The same, of the types that leave a loop or a conditional."""
        return Spent(jnp.asarray(self.gradients, jnp.float32), jnp.asarray(self.finite))


class Meter:
    """Adds up what is spent in one trace.

    Attributes:
      spent: so far.
    """

    def __init__(self):
        self.spent = Spent()
        self.trace = get_opaque_trace_state()


_OPEN: contextvars.ContextVar[tuple[Meter, ...]] = contextvars.ContextVar("open_meters", default=())


@contextlib.contextmanager
def metered() -> Iterator[Meter]:
    """A meter of what is spent inside; an outer meter hears nothing of it."""
    meter = Meter()
    token = _OPEN.set((*_OPEN.get(), meter))
    try:
        yield meter
    finally:
        _OPEN.reset(token)


@contextlib.contextmanager
def unmetered() -> Iterator[None]:
    """Inside, nothing is counted: what is differentiated may take gradients of its own, in any loop."""
    token = _OPEN.set(())
    try:
        yield
    finally:
        _OPEN.reset(token)


def spend(gradients: Any, finite: Any = True) -> None:
    """Tells the innermost open meter.

    Raises:
      ValueError: in another trace than the meter's, where it could not be counted.
    """
    if not _OPEN.get():
        return
    meter = _OPEN.get()[-1]
    if meter.trace != get_opaque_trace_state():
        raise ValueError(
            "a piece asks the oracle inside a loop, conditional, vmap, grad or jit of its own, where its "
            "gradients cannot be counted: use oracle.scan for a loop, oracle.cond for a conditional, and "
            "oracle.hessian_product for grad."
        )
    meter.spent = meter.spent.plus(Spent(gradients, finite))


def judge(descent: Any, grads: Any, is_known: bool) -> None:
    """Whether a descent is finite in the dtypes of the gradient, in which it is given.

    Args:
      descent: a tree like the gradient, perhaps in wider dtypes.
      grads: the gradient.
      is_known: whether it has been judged in its own dtypes.
    """
    given = trees.cast_like(descent, grads)
    is_cast = any(x.dtype != y.dtype for x, y in zip(*map(jax.tree.leaves, (given, descent)), strict=True))
    if is_cast or not is_known:
        spend(0.0, trees.all_finite(given))


def scan(function: Callable[..., Any], init: Any, xs: Any = None, length: int | None = None) -> Any:
    """`lax.scan` whose body may ask the oracle."""

    def body(carry, x):
        with metered() as meter:
            carry, y = function(carry, x)
        return carry, (y, meter.spent.as_arrays())

    carry, (ys, spent) = lax.scan(body, init, xs, length)
    spend(jnp.sum(spent.gradients), jnp.all(spent.finite))
    return carry, ys


def cond(condition: Any, paid: Callable[..., Any], unpaid: Callable[..., Any], *operands: Any) -> Any:
    """`lax.cond` whose branches may ask the oracle."""

    def counted(branch):
        def run(*operands):
            with metered() as meter:
                result = branch(*operands)
            return result, meter.spent.as_arrays()

        return run

    result, spent = sharding.cond(condition, counted(paid), counted(unpaid), *operands)
    spend(*spent)
    return result
