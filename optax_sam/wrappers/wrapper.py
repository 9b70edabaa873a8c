"""What all wrappers are: methods around another one, whose state they share."""

import dataclasses
from typing import Any

import jax

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


def with_cost(old: SharpnessAwareState, new: SharpnessAwareState, cost: jax.Array) -> SharpnessAwareState:
    """The new state with the step's own cost. The cost is no weighted mean, as the rest of the state is."""
    total = states.add_gradients(old.diagnostics.gradients, cost)
    return new._replace(diagnostics=new.diagnostics._replace(gradients=total, cost=cost))
