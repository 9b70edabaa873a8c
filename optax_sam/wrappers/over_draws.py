"""Weighted means over random draws."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from optax_sam.arithmetic import means, trees
from optax_sam.engine import checks
from optax_sam.engine.aliases import Grads, Params
from optax_sam.engine.hyperparameters import Count, Number, ScalarOrSchedule, at_step
from optax_sam.engine.state import SharpnessAwareState, with_key_of_part
from optax_sam.engine.step_oracle import Given
from optax_sam.engine.transformation import Begun, Outcome, SharpnessAware, from_method
from optax_sam.wrappers.wrapper import Wrapper, flags_of, merged, method_of


@dataclasses.dataclass(frozen=True, eq=False)
class OverDraws(Wrapper):
    """See `over_draws`."""

    num_draws: int
    log_weight: Callable[[jax.Array, jax.Array], jax.Array]

    def begin(self, state: SharpnessAwareState, given: Given) -> Begun:
        return self._begin(0, state, given)

    def finish(
        self,
        grads: Grads,
        begun: Begun,
        state: SharpnessAwareState,
        params: Params,
        given: Given,
        perturb: bool | None,
    ) -> Outcome:
        def run(number, begun):
            own = trees.like_masked(params, begun.first.grads)
            state_of_draw = with_key_of_part(state, number)
            outcome = self.inner.finish(own, begun, state_of_draw, params, self._of(number, given), perturb)
            # An infinite loss, whose gradient may be finite, counts as the largest number.
            return outcome, jnp.nan_to_num(self.log_weight(outcome.loss, state.step))

        def one_more(carry, number):
            descent, total, largest, mean, cost = carry
            outcome, weight = run(number, self._begin(number, state, given))
            new_largest = jnp.maximum(largest, weight)
            old, new = total * jnp.exp(largest - new_largest), jnp.exp(weight - new_largest)
            total = old + new
            # A mean at every moment: a sum of what can be represented may not be.
            descent = trees.map_inexact(
                lambda t, x: trees.times(old / total, t) + trees.times(new / total, x.astype(t.dtype)),
                descent,
                outcome.descent,
            )
            mean = means.add(mean, 1 / self.num_draws, kept_of(outcome))
            return (descent, total, new_largest, mean, cost + outcome.state.diagnostics.cost), None

        def kept_of(outcome):
            return outcome.state, flags_of(outcome.state)

        first, weight = run(0, begun)
        kept = kept_of(first)
        mean = means.add(means.zeros_like(kept), 1 / self.num_draws, kept, is_first=True)
        cost = first.state.diagnostics.cost
        carry = (trees.widen(first.descent), jnp.ones_like(weight), weight, mean, cost)
        if self.num_draws > 1:  # `jax.disable_jit` knows no empty loop
            carry, _ = lax.scan(one_more, carry, jnp.arange(1, self.num_draws))
        descent, _, _, (mean, flags), cost = carry
        new = merged(state, trees.cast_like(mean, state), flags, cost)
        new = new._replace(key=state.key)  # and not that of the first draw
        return Outcome(trees.cast_like(descent, grads), self.settle(new, state), first.loss)

    def _begin(self, number: Any, state: SharpnessAwareState, given: Given) -> Begun:
        """The first gradient of one draw, with its own random numbers."""
        return self.inner.begin(with_key_of_part(state, number), self._of(number, given))

    def _of(self, number: Any, given: Given) -> Given:
        """What one draw is given: a key of its own for the loss function, if it is not the only one."""
        if self.num_draws == 1:
            return given
        return given.but(examples=given.examples.with_key(number))


def over_draws(
    method: SharpnessAware,
    num_draws: Count,
    log_weight: Callable[[jax.Array, jax.Array], jax.Array],
) -> SharpnessAware:
    """The weighted mean of several runs of a method that draws, each with its own random key.

    With `S_j` and `L_j` the descent and the perturbed loss of draw `j`, the descent is `sum_j a_j S_j`,
    `a = softmax(log_weight(L))`. An online softmax in a loop holds two gradient trees, however many draws
    there are. `info` has the mean over the draws.

    Args:
      method: a sharpness-aware method that draws, such as one with the start `at_random(...)`. If it does not
        draw, all runs are the same.
      num_draws: how many draws, 1 or more.
      log_weight: `(loss, step) -> float[]`, for example `tilted(tilt)`.

    Returns:
      A `SharpnessAware` transformation.

    Raises:
      TypeError: `method` is none of this library's, or `log_weight` is no function.
      ValueError: `num_draws` is below 1.

    Cost:
      `num_draws` times the gradients of `method`, one after the other.
    """
    checks.integer("num_draws", num_draws, low=1)
    checks.function("log_weight", log_weight, "(loss, step) -> float[], such as tilted(1.0)")
    return from_method(OverDraws(method_of(method), num_draws, log_weight))


@dataclasses.dataclass(frozen=True)
class Tilted:
    """See `tilted`."""

    tilt: ScalarOrSchedule

    def __call__(self, loss: jax.Array, step: jax.Array) -> jax.Array:
        return trees.times(at_step(self.tilt, step), loss)


def tilted(tilt: Number) -> Tilted:
    """Weights proportional to `exp(tilt loss)`: 0 is the plain mean, large values the worst draw."""
    checks.number_or_schedule("tilt", tilt)
    return Tilted(tilt)
