"""Radii that follow from what a step sees, each with one constant for all tasks. docs/radius.md judges them.

A rule is a direction whose length is that of the perturbation, at most `LARGEST`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax

from optax_sam import SharpnessAware, ascents, sharpness_aware
from optax_sam.arithmetic import trees
from optax_sam.pieces.bases import Direction, Step

# No tuned radius of SAM is much larger on any task here.
LARGEST = 1.0

REMEMBERED = 0.9
HELD_FROM = 0.1


def uphill(step: Step, length: Any) -> Any:
    """The gradient of the step, made as long, or as the largest radius."""
    length, unit = jnp.minimum(length, LARGEST), trees.divide(step.grads, step.first.norm)
    return trees.map_wide(lambda u: trees.times(length, u), unit)


@dataclasses.dataclass(frozen=True)
class AsLong(Direction):
    """The gradient, as long as a function of the step says."""

    length: Callable[[Step], jax.Array]
    needs_oracle: ClassVar[bool] = True
    asks_anew: ClassVar[bool] = False

    def read(self, state: Any, step: Step) -> tuple[Any, Any]:
        return uphill(step, self.length(step)), state


def rule(direction: Direction) -> SharpnessAware:
    """SAM whose perturbation is the direction itself."""
    return sharpness_aware(ascents.in_proportion(1.0), direction=direction)


def absolute_budget(constant: Any = 0.1) -> SharpnessAware:
    """`rho = c / ||g||`."""
    return rule(AsLong(lambda step: over_norm(constant, step)))


def relative_budget(constant: Any = 0.5) -> SharpnessAware:
    """`rho = c L / ||g||`."""
    return rule(AsLong(lambda step: over_norm(constant * step.first.loss, step)))


def noise_of_losses(constant: Any = 0.5) -> SharpnessAware:
    """`rho = c std(l_i) / ||g||`, the deviation that of the batch's losses."""
    return rule(AsLong(lambda step: over_norm(constant * jnp.std(step.first.losses), step)))


def over_norm(budget: Any, step: Step) -> jax.Array:
    """The radius at which the loss rises by the budget to first order."""
    return budget / jnp.maximum(step.first.norm, 1e-12)


def part_of_weights(constant: Any = 0.02) -> SharpnessAware:
    """`rho = c ||w||`."""
    return rule(AsLong(lambda step: constant * trees.norm(step.params)))


def edge_of_stability(learning_rate: optax.Schedule, constant: Any = 1.0) -> SharpnessAware:
    """`rho = c eta ||g||`: SAM then rests at the eigenvalue `2 q / eta`, with `c = (1 - q) / (2 q^2)`.

    SAM comes to rest where `lambda = (||g|| / 2 rho) (sqrt(1 + 8 rho / (eta ||g||)) - 1)`, gradient descent
    where `lambda = 2 / eta`.
    """
    return rule(AsLong(lambda step: constant * learning_rate(step.count) * step.first.norm))


@dataclasses.dataclass(frozen=True)
class ByCurvature(Direction):
    """`c g / k`, `k` the running mean of the curvature that the two losses show."""

    constant: Any
    needs_oracle: ClassVar[bool] = True
    asks_anew: ClassVar[bool] = False

    def init(self, params: Any, key: jax.Array) -> jax.Array:
        del params, key
        return jnp.ones([])

    def read(self, state: jax.Array, step: Step) -> tuple[Any, jax.Array]:
        return uphill(step, self.constant * step.first.norm / state), state

    def write(self, state: jax.Array, step: Step) -> jax.Array:
        length = jnp.maximum(trees.norm(step.perturbation), 1e-12)
        bent = step.perturbed.loss - step.first.loss - length * step.first.norm
        seen = 2 * jnp.abs(bent) / length**2
        return REMEMBERED * state + (1 - REMEMBERED) * jnp.clip(seen, 1e-3, 1e3)


def curvature(constant: Any = 1.0) -> SharpnessAware:
    """`rho = c ||g|| / k`, `k` the curvature along the gradient: a part of Newton's distance."""
    return rule(ByCurvature(constant))


@dataclasses.dataclass(frozen=True)
class ToRise(Direction):
    """A radius that grows or shrinks until the loss rises by a given part of itself; held from a step on."""

    rise: Any
    until: int | None
    needs_oracle: ClassVar[bool] = True
    asks_anew: ClassVar[bool] = False

    def init(self, params: Any, key: jax.Array) -> jax.Array:
        del params, key
        return jnp.log(jnp.full([], 0.01))

    def read(self, state: jax.Array, step: Step) -> tuple[Any, jax.Array]:
        return uphill(step, jnp.exp(state)), state

    def write(self, state: jax.Array, step: Step) -> jax.Array:
        seen = jnp.maximum(step.perturbed.loss / step.first.loss - 1, 1e-6)
        moved = state + (1 - REMEMBERED) * jnp.clip(jnp.log(self.rise / seen), -1.0, 1.0)
        return moved if self.until is None else jnp.where(step.count < self.until, moved, state)


def measured_rise(constant: Any = 0.5) -> SharpnessAware:
    """The radius at which `(L(w + e) - L(w)) / L(w)` is `c`, followed from step to step."""
    return rule(ToRise(constant, None))


def held_rise(total_steps: int, constant: Any = 0.5) -> SharpnessAware:
    """The same in the first tenth of the steps; what it has come to is then kept."""
    return rule(ToRise(constant, round(HELD_FROM * total_steps)))


RULES: dict[str, Callable[..., SharpnessAware]] = {
    "absolute_budget": absolute_budget,
    "relative_budget": relative_budget,
    "noise_of_losses": noise_of_losses,
    "part_of_weights": part_of_weights,
    "edge_of_stability": edge_of_stability,
    "curvature": curvature,
    "measured_rise": measured_rise,
    "held_rise": held_rise,
}
"""By their names on the command line; those that are methods already are not among them."""
