"""Eigen-SAM's direction: the gradient, and the direction of largest curvature beside it."""

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from optax_sam.arithmetic import random_trees, sharding, trees
from optax_sam.engine import checks
from optax_sam.engine.aliases import Grads, Params
from optax_sam.engine.hyperparameters import Count, Number, ScalarOrSchedule, at_step
from optax_sam.pieces.bases import Direction, Step


class EigenvectorState(NamedTuple):
    """State of `with_top_eigenvector`.

    Attributes:
      vector: a unit vector, a tree like the parameters in float32 or wider. The conjugate of complex leaves
        points uphill, as with gradients. Changes when it is renewed.
      renewed: `bool[]`, whether it was renewed once. Before it is noise.
    """

    vector: Params
    renewed: jax.Array


@dataclasses.dataclass(frozen=True)
class WithTopEigenvector(Direction):
    """See `with_top_eigenvector`."""

    alpha: ScalarOrSchedule
    refresh_steps: int
    power_iterations: int

    asks_anew: ClassVar[bool] = False

    def init(self, params: Params, key: jax.Array) -> EigenvectorState:
        zeros = trees.widen(trees.memory_like(params))
        noise = sharding.split_like(random_trees.standard_normal(key, zeros), zeros)
        return EigenvectorState(trees.divide(noise, trees.norm(noise)), jnp.zeros([], bool))

    def read(self, state: EigenvectorState, step: Step) -> tuple[Grads, EigenvectorState]:
        renew = (step.count % self.refresh_steps == 0) | ~state.renewed
        vector = step.oracle.cond(renew, lambda: self._renewed(state.vector, step), lambda: state.vector)
        unit = trees.divide(trees.widen(step.grads), step.first.norm)
        weight = trees.times(at_step(self.alpha, step.count), jnp.sign(trees.inner(unit, vector)))
        uphill = trees.map_inexact(lambda u, v: u + trees.times(weight, v.astype(u.dtype)), unit, vector)
        return uphill, EigenvectorState(vector, jnp.ones_like(state.renewed))

    def settle(self, mean: EigenvectorState, old: EigenvectorState) -> EigenvectorState:
        return EigenvectorState(unit_or(mean.vector, old.vector), mean.renewed)

    def _renewed(self, vector: Params, step: Step) -> Params:
        def once(v, _):
            product = step.oracle.hessian_product(trees.conjugate(v))
            return unit_or(trees.map_inexact(cast, v, product), v), None

        def cast(old, new):
            return new.astype(old.dtype)

        found, _ = step.oracle.scan(once, vector, length=self.power_iterations)
        # An eigenvector has no sign: of slices and draws, which are averaged, all take the old one's.
        sign = jnp.where(trees.inner(found, vector) < 0, -1.0, 1.0)
        return trees.map_inexact(lambda v: trees.times(sign, v), found)


def unit_or(tree: Params, other: Params) -> Params:
    """`tree` with length one, or `other` where it has none."""
    norm = trees.norm(tree)
    return trees.where((norm > 0) & jnp.isfinite(norm), trees.divide(tree, norm), other)


def with_top_eigenvector(
    alpha: Number, refresh_steps: Count = 100, power_iterations: Count = 5
) -> WithTopEigenvector:
    """`g / ||g|| + alpha sign(<g, v>) v`, `v` the top eigenvector of the batch's Hessian (Eigen-SAM).

    `v` is a random unit vector at first. In every `refresh_steps`-th step, if it is perturbed,
    `v <- H v / ||H v||` is repeated `power_iterations` times, at the first point of the step and on its
    examples. Over slices, devices and draws, `v` is the unit vector along their mean.

    Args:
      alpha: a number, or a schedule of the step count.
      refresh_steps: 1 or more.
      power_iterations: 1 or more. Each costs a Hessian product, which counts as two gradients.
    """
    checks.number_or_schedule("alpha", alpha)
    checks.integer("refresh_steps", refresh_steps, low=1)
    checks.integer("power_iterations", power_iterations, low=1)
    return WithTopEigenvector(alpha, refresh_steps, power_iterations)
