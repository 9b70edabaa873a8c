"""Arguments of methods: numbers, schedules of the step, and what shapes the compiled program."""

import dataclasses
import functools
import inspect
import operator
import types
import typing
from collections.abc import Callable
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_sam.engine import checks

Scalar = float | int | jax.Array | np.ndarray
"""A real number: Python's, or an array of shape `[]`, traced or not."""

ScalarOrSchedule = Scalar | optax.Schedule
"""A number, or an Optax schedule: a function of the step count."""


@dataclasses.dataclass(frozen=True)
class Range:
    """Which numbers an argument accepts: what its signature declares, and its function enforces.

    Attributes:
      low: the smallest.
      high: the largest.
      without_low: whether the smallest itself is refused.
      without_high: whether the largest itself is refused.
      infinite_too: whether infinity is a number here.
    """

    low: float = -float("inf")
    high: float = float("inf")
    without_low: bool = False
    without_high: bool = False
    infinite_too: bool = False


@dataclasses.dataclass(frozen=True)
class SeedOfDraws:
    """An argument that takes an integer, or an array of one integer, which may change between runs."""


# Numbers and schedules of the step, or numbers alone ("fixed"): arrays too.
Number = Annotated[ScalarOrSchedule, Range()]
NotNegative = Annotated[ScalarOrSchedule, Range(0)]
Radius = NotNegative
Cap = Annotated[ScalarOrSchedule, Range(0, infinite_too=True)]
PositiveNumber = Annotated[ScalarOrSchedule, Range(0, without_low=True)]
Probability = Annotated[ScalarOrSchedule, Range(0, 1)]
FixedNumber = Annotated[Scalar, Range()]
FixedNotNegative = Annotated[Scalar, Range(0)]
FixedPositive = Annotated[Scalar, Range(0, without_low=True)]
FixedAboveOne = Annotated[Scalar, Range(1, without_low=True, infinite_too=True)]
FixedProbability = Annotated[Scalar, Range(0, 1)]
FixedBelowOne = Annotated[Scalar, Range(0, 1, without_high=True)]
Seed = Annotated[Scalar, SeedOfDraws()]

# Python numbers, which shape the compiled program.
Count = Annotated[int, Range(1)]
CountOrZero = Annotated[int, Range(0)]
Fraction = Annotated[float, Range(0, 1, without_low=True)]
Share = Annotated[float, Range(0, 1)]
AtLeastZero = Annotated[float, Range(0)]
AtLeastOne = Annotated[float, Range(1)]

_MAY_BE_ARRAYS = (Scalar, ScalarOrSchedule)


def declared(annotation: Any) -> tuple[Any, Range | SeedOfDraws | None]:
    """The plain type of an argument, None left out, and what its signature declares of its values.

    Args:
      annotation: as it stands in the signature, such as `Radius`, `int` or `Count | None`.
    """
    if typing.get_origin(annotation) is Annotated:
        kind, *others = typing.get_args(annotation)
        return kind, next((x for x in others if isinstance(x, Range | SeedOfDraws)), None)
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        members = [x for x in typing.get_args(annotation) if x is not type(None)]
        if len(members) == 1:
            return declared(members[0])
        return functools.reduce(operator.or_, members), None
    return annotation, None


def at_step(value: ScalarOrSchedule, step: Any, infinite_too: bool = False) -> Any:
    """The number, or what the schedule gives at `step`. Infinity where the number may be infinite.

    Raises:
      TypeError, ValueError: the schedule gives no real number.
    """
    if not callable(value):
        return value
    given = value(step)
    checks.number(f"what the schedule {value!r} gives", given, infinite_too=infinite_too)
    return given


@dataclasses.dataclass(frozen=True)
class Scaled:
    """A schedule times a number."""

    schedule: optax.Schedule
    factor: Scalar

    def __call__(self, step: Any) -> Any:
        return jnp.asarray(at_step(self.schedule, step), float) * jnp.asarray(self.factor, float)


def scaled(value: ScalarOrSchedule, factor: Scalar) -> ScalarOrSchedule:
    """A number, or a schedule, times a number."""
    return Scaled(value, factor) if callable(value) else value * factor


@dataclasses.dataclass(frozen=True)
class Linear:
    """From `start` to `end` within `total_steps` steps, then `end`."""

    start: Scalar
    end: Scalar
    total_steps: int

    def __call__(self, step: Any) -> Any:
        part = jnp.minimum(jnp.asarray(step, float) / self.total_steps, 1)
        return part * self.end + (1 - part) * self.start


@dataclasses.dataclass(frozen=True)
class Reciprocal:
    """`1 / probability(t)`, and 1 where the probability is 0: then the value is never used.

    Attributes:
      probability: a number, or a schedule of the step count.
    """

    probability: ScalarOrSchedule

    def __call__(self, step: Any) -> Any:
        p = jnp.asarray(at_step(self.probability, step), float)
        return 1 / jnp.where(p > 0, p, jnp.ones_like(p))


def static_arguments(method: Callable[..., Any]) -> tuple[str, ...]:
    """The arguments of a method that shape the compiled program, and must be Python values.

    Args:
      method: a method of this library, not yet called, such as `optax_sam.vsam`.

    Returns:
      Their names, as `optax.inject_hyperparams` wants them: it turns every number into an array,
      defaults included, unless the argument is named static.

    Raises:
      TypeError: `method` is no function.

    Example:
      >>> import optax, optax_sam
      >>> optax_sam.static_arguments(optax_sam.tsam)
      ('num_samples', 'noise')
      >>> static = optax_sam.static_arguments(optax_sam.vsam)
      >>> tx = optax.inject_hyperparams(optax_sam.vsam, static_args=static)(rho=0.05)
    """
    if not inspect.isroutine(method):
        raise TypeError(
            f"method={method!r} is no function: pass the method itself, for example optax_sam.vsam."
        )
    parameters = inspect.signature(method).parameters.values()
    return tuple(p.name for p in parameters if declared(p.annotation)[0] not in _MAY_BE_ARRAYS)
