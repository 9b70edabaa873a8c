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
    """State of `times_interval`. Both change in perturbed steps.

    Attributes:
      last: `int32[]`, the count of the last perturbed step. -1 before any.
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

    `chained(to_radius(rho), times_interval())` has the radius `k rho` with `gates.every(k)`. With a gate that
    opens by chance or by what it measures, the same holds on average. From the first perturbed step on, the
    radii add up to `rho` for each step that has passed. `k` is 1 in the first perturbed step, however late it
    comes. With `gates.always()` it is 1 in every step.

    A gate that stays closed for long, such as `gates.when_gradient_is_large`, may make the radius very large.
    Put `within_leaf_norm` behind to bound it.
    """
    return transformation(TimesInterval())
