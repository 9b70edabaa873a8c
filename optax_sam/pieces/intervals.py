"""A perturbation that grows with the steps from one perturbed step to the next."""

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_sam.arithmetic import trees
from optax_sam.engine.aliases import Grads, Params
from optax_sam.pieces.bases import Ascent, transformation


class IntervalState(NamedTuple):
    """State of `times_interval`; both change in perturbed steps.

    Attributes:
      last: `int32[]`, the count of the last perturbed step; -1 before any.
      interval: `int32[]`, from the one before to it.
    """

    last: jax.Array
    interval: jax.Array


@dataclasses.dataclass(frozen=True)
class TimesInterval(Ascent):
    """See `times_interval`."""

    asks_anew: ClassVar[bool] = False
    says_how_far: ClassVar[bool] = False
    draws: ClassVar[int] = 0

    def init(self, params: Params) -> IntervalState:
        del params
        return IntervalState(jnp.full([], -1, jnp.int32), jnp.ones([], jnp.int32))

    def update(
        self,
        updates: Grads,
        state: IntervalState,
        params: Params = None,
        *,
        step: Any = None,
        **extra_args: Any,
    ) -> tuple[Grads, IntervalState]:
        del params, extra_args
        if step is None:
            raise ValueError(
                "times_interval() counts steps, but step=None: pass the step count, update(..., step=step)."
            )
        count = jnp.asarray(step).astype(state.last.dtype)
        # A second climb of the same step, in `repeated`, is as long as the first.
        is_kept = (state.last < 0) | (count == state.last)
        interval = jnp.where(is_kept, state.interval, count - state.last)
        scaled = trees.map_wide(lambda e: trees.times(interval, e), updates)
        return scaled, IntervalState(count, interval)


def times_interval() -> optax.GradientTransformationExtraArgs:
    """`k e`, `k` the steps since the last perturbed step: for gates that leave steps unperturbed.

    `chained(to_radius(rho), times_interval())` has the radius `k rho` behind `gates.every(k)`, and the same
    on average behind a gate that opens by chance or by what it measures: from the first perturbed step on,
    the radii add up to `rho` for each step that has passed. In the first perturbed step `k` is 1, however
    late it comes, and behind `gates.always()` in every step.

    A gate that may stay closed for long, such as `gates.when_gradient_is_large`, asks for a radius that is
    as much larger. `within_leaf_norm` behind it bounds it.
    """
    return transformation(TimesInterval())
