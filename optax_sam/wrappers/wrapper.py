"""What all wrappers are: methods around another one, whose state they share."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optax_sam.engine import state as states
from optax_sam.engine.aliases import Grads, Params
from optax_sam.engine.state import SharpnessAwareState
from optax_sam.engine.transformation import Method, SharpnessAware


@dataclasses.dataclass(frozen=True, eq=False)
class Wrapper(Method):
    """A method around another one, whose state it shares."""

    inner: Method

    @property
    def needs_oracle(self) -> bool:
        return True

    @property
    def perturbs_at_start(self) -> bool:
        return self.inner.perturbs_at_start

    @property
    def begins_clean(self) -> bool:
        return self.inner.begins_clean

    @property
    def is_optimizer(self) -> bool:
        return self.inner.is_optimizer

    @property
    def first_follows_gate(self) -> bool:
        return self.inner.first_follows_gate

    def due(self, state: SharpnessAwareState, grads: Grads) -> jax.Array:
        return self.inner.due(state, grads)

    def settle(self, mean: SharpnessAwareState, old: SharpnessAwareState) -> SharpnessAwareState:
        return self.inner.settle(mean, old)

    def init(self, params: Params) -> SharpnessAwareState:
        return self.inner.init(params)


def method_of(method: Any) -> Method:
    """What stands behind a transformation of this library. Refuses any other."""
    if not isinstance(method, SharpnessAware) or not isinstance(method.method, Method):
        repair = "pass one, for example optax_sam.sam()"
        if isinstance(method, SharpnessAware):
            repair = "a whole optimizer goes around it: pass followed_by(per_microbatch(sam(), 4), base)"
        raise TypeError(f"method={method!r} is no method of this library: {repair}.")
    return method.method


class Flags(NamedTuple):
    """What of a part's diagnostics is no mean of numbers, as numbers whose mean says what is wanted.

    Attributes:
      unknown: `float32[5]`, the part of the slices or draws in which a value is not known.
      perturbed: `float32[]`, the part that has paid for a perturbed gradient.
    """

    unknown: jax.Array
    perturbed: jax.Array


def flags_of(state: SharpnessAwareState) -> Flags:
    """Of one slice or draw."""
    found = state.diagnostics
    return Flags(1 - found.known.astype(jnp.float32), found.perturbed.astype(jnp.float32))


def merged(
    old: SharpnessAwareState, mean: SharpnessAwareState, flags: Flags, cost: jax.Array
) -> SharpnessAwareState:
    """The mean of the parts' states, with what is no mean: the flags, and the cost of the step."""
    diagnostics = mean.diagnostics._replace(
        known=flags.unknown == 0,
        perturbed=flags.perturbed != 0,
        gradients=states.add_gradients(old.diagnostics.gradients, cost),
        cost=cost,
    )
    return mean._replace(diagnostics=diagnostics)
