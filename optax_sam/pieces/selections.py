"""Which examples see a gradient: a static number of them, drawn or chosen."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import lax

from optax_sam.arithmetic import batch_axis, shares, trees
from optax_sam.engine import checks
from optax_sam.engine.aliases import Batch
from optax_sam.engine.examples import Examples
from optax_sam.engine.hyperparameters import Count, CountOrZero, Fraction
from optax_sam.engine.step_oracle import StepOracle
from optax_sam.pieces.bases import Selection, Step

__all__ = [
    "emphasized",
    "everything",
    "largest_increase",
    "on_part",
    "on_surrogate",
    "through_outputs",
    "whole_batch",
]


@dataclasses.dataclass(frozen=True)
class Everything(Selection):
    """See `everything`."""

    needs_oracle: ClassVar[bool] = False
    asks_anew: ClassVar[bool] = False

    def select(self, step: Step) -> StepOracle:
        return step.oracle


def everything() -> Everything:
    """The second gradient sees the examples that the first one saw."""
    return Everything()


@dataclasses.dataclass(frozen=True)
class WholeBatch(Selection):
    """See `whole_batch`."""

    def select(self, step: Step) -> StepOracle:
        return step.oracle.as_given()


def whole_batch() -> WholeBatch:
    """The second gradient sees the batch as the caller gave it, whatever the first one saw."""
    return WholeBatch()


@dataclasses.dataclass(frozen=True)
class LargestIncrease(Selection):
    """See `largest_increase`."""

    fraction: float
    strata: int

    def select(self, step: Step) -> StepOracle:
        oracle = step.oracle
        if oracle.whole_batch:
            return oracle
        increase = oracle.losses_at(step.point) - step.first.losses
        increase = jnp.where(step.distance > 0, increase, 0.0)  # not what rounding makes of the same point
        return take_highest(oracle, increase, self.fraction, self.strata)


def largest_increase(fraction: Fraction, strata: Count = 1) -> LargestIncrease:
    """The examples whose loss rises most from the first point to the perturbed one (ESAM).

    Costs one forward pass on all examples. Padding comes last. The first examples are chosen among equal
    increases. All increases are zero in a step whose perturbation is zero.

    Args:
      fraction: `int(fraction B / strata)` examples of each stratum, 1 or more.
      strata: the number of contiguous parts of the batch. Each part is chosen from separately.
    """
    check_fraction(fraction)
    checks.integer("strata", strata, low=1)
    return LargestIncrease(fraction, strata)


@dataclasses.dataclass(frozen=True)
class OnPart(Selection):
    """See `on_part`."""

    part: int
    num_parts: int
    strata: int

    def select(self, step: Step) -> StepOracle:
        given = step.oracle.as_given()
        return given if given.whole_batch else take_part(given, self.part, self.num_parts, self.strata)


def on_part(part: CountOrZero, num_parts: Count, strata: Count = 1) -> OnPart:
    """One of several equal parts of the batch, in the order of its rows. Padding is dealt out evenly.

    As a selection, it lets the second gradient see that part. `starts.on_part` does the same for the first
    gradient.

    Args:
      part: from 0 to `num_parts - 1`.
      num_parts: 1 or more. `num_parts` times `strata` must divide the batch.
      strata: the number of contiguous parts of the batch, each of which is split by itself.
    """
    checks.integer("num_parts", num_parts, low=1)
    checks.integer("part", part, low=0, high=num_parts - 1)
    checks.integer("strata", strata, low=1)
    return OnPart(part, num_parts, strata)


@dataclasses.dataclass(frozen=True)
class OnSurrogate(Selection):
    """See `on_surrogate`."""

    surrogate_losses: Callable[[Any, Any], Any]

    def select(self, step: Step) -> StepOracle:
        return step.oracle.of_surrogate(self.surrogate_losses)


def on_surrogate(surrogate_losses: Callable[[Any, Any], Any]) -> OnSurrogate:
    """The second gradient is that of another, cheaper loss of the same parameters (FGSAM).

    Args:
      surrogate_losses: takes and returns what the loss function of `value_and_grad` does.
    """
    checks.function("surrogate_losses", surrogate_losses, "surrogate_losses(params, batch) -> [batch]")
    return OnSurrogate(surrogate_losses)


@dataclasses.dataclass(frozen=True)
class Outputs(Selection):
    """See `through_outputs`."""

    outputs: Callable[..., Any]
    output_losses: Callable[[Any, Any], Any]

    def select(self, step: Step) -> StepOracle:
        return step.oracle.through_outputs(self.outputs, self.output_losses)


def through_outputs(outputs: Callable[..., Any], output_losses: Callable[[Any, Any], Any]) -> Outputs:
    """The second gradient is `J(w + e)^T dl/dz (w)`: the loss's own gradient stays the clean one.

    Costs a forward pass beside the gradient, for the outputs `z` at the first point. XLA may share it with
    the first gradient.

    Args:
      outputs: `outputs(params, batch)`, `z`: a tree of float arrays, such as logits. It is called with all
        arguments of the loss function of `value_and_grad`.
      output_losses: `output_losses(outputs, batch)`, `l`: one loss per example, shape `[batch]`, or their
        mean.
    """
    checks.function("outputs", outputs, "outputs(params, batch) -> logits")
    checks.function("output_losses", output_losses, "output_losses(outputs, batch) -> [batch]")
    return Outputs(outputs, output_losses)


@dataclasses.dataclass(frozen=True)
class Emphasized(Selection):
    """See `emphasized`."""

    emphasis: Callable[[Batch], jax.Array]

    def select(self, step: Step) -> StepOracle:
        return step.oracle.emphasized(self.emphasis(trees.anew(step.oracle.batch)))


def emphasized(emphasis: Callable[[Batch], jax.Array]) -> Emphasized:
    """All examples, of which `i` counts `c_i` times its weight in the second gradient (Focal-SAM).

    Args:
      emphasis: `emphasis(batch) -> float[batch]`, `c`, 0 or more.
    """
    checks.function("emphasis", emphasis, "emphasis(batch) -> float[batch]")
    return Emphasized(emphasis)


def take_highest(oracle: StepOracle, scores: jax.Array, fraction: float, strata: int) -> StepOracle:
    """The oracle of the examples with the highest scores, those of weight 0 last."""
    if fraction == 1:
        return oracle
    if oracle.weights is not None:
        scores = jnp.where(oracle.weights != 0, scores, -jnp.inf)
    number = number_of(fraction, oracle.examples, strata)
    _, positions = lax.top_k(batch_axis.whole_parts(scores, strata), number)
    return oracle.take(jnp.sort(positions, axis=1))


def take_part(oracle: StepOracle, part: int, num_parts: int, strata: int) -> StepOracle:
    """The oracle of one of `num_parts` equal parts of each stratum."""
    of_each = f" of each of strata={strata}" if strata > 1 else ""
    number = oracle.examples.per_part(
        num_parts * strata,
        f"{num_parts} parts{of_each} do not divide",
        "take a batch of which they are a divisor, or pad it with examples of weight 0",
    )
    if oracle.weights is None:
        positions = part * number + jnp.arange(number, dtype=jnp.int32)
        return oracle.take(jnp.broadcast_to(positions, [strata, number]))
    real = batch_axis.whole_parts(oracle.weights != 0, strata)
    return oracle.take(_part_of_real_rows(real, part, num_parts))


def _part_of_real_rows(real: jax.Array, part: int, num_parts: int) -> jax.Array:
    """Positions `int[strata, rows]` of a part of the real rows, filled up with padding.

    The parts differ by one real row at most. A part that would have none shares the row of another.
    """
    strata, size = real.shape
    order = jnp.argsort(~real, axis=1, stable=True).astype(jnp.int32)
    count = jnp.sum(real, axis=1, keepdims=True, dtype=jnp.int32)
    first, last = (-(-share * count // num_parts) for share in (part, part + 1))
    first = jnp.minimum(first, jnp.maximum(count - 1, 0))
    last = jnp.maximum(last, first + 1)
    places = first + jnp.arange(size // num_parts, dtype=jnp.int32)[None]
    places = jnp.where(places < last, places, size - 1)  # the last one is padding, where there is any
    return jnp.take_along_axis(order, places, axis=1)


def number_of(fraction: float, examples: Examples, strata: int) -> int:
    """How many examples of each stratum a fraction is."""
    size = strata * examples.per_part(strata, f"strata={strata} does not divide", "choose a divisor")
    number = shares.down(fraction, size / strata)
    if number < 1:
        enough = math.ceil(1000 * strata / size) / 1000
        raise ValueError(
            f"fraction={fraction} of a batch of {size} examples in strata={strata} "
            f"parts leaves no example: raise fraction to {enough:g} or more, or take a larger batch."
        )
    return number


def check_fraction(fraction: Any, name: str = "fraction") -> None:
    """Refuses what is no Python number above 0, up to 1."""
    checks.static_number(name, fraction, low=0, high=1)
    if fraction == 0:
        raise ValueError(f"{name}=0 leaves no example: pass a number above 0, up to 1.")


def draw(log_weights: jax.Array, num_drawn: int, strata: int, key: jax.Array) -> jax.Array:
    """Positions drawn without replacement, one after the other, with the given weights.

    Adding Gumbel noise and taking the largest is the same draw as taking examples one by one with
    probabilities proportional to the weights of those left. Its size is static.

    Args:
      log_weights: `float[batch]`, logarithms of weights of any scale. -inf comes last.
      num_drawn: how many from each stratum.
      strata: the number of contiguous parts of the batch. Each part is drawn from separately.
      key: a typed PRNG key.

    Returns:
      `int[strata, num_drawn]`: positions inside each part, in ascending order.
    """
    noisy = log_weights + jax.random.gumbel(key, log_weights.shape, log_weights.dtype)
    _, positions = lax.top_k(batch_axis.whole_parts(noisy, strata), num_drawn)
    return jnp.sort(positions, axis=1)
