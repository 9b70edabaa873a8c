"""m-sharpness: every slice of the batch has its own perturbation."""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from optax_sam.arithmetic import means, sharding, trees
from optax_sam.engine.aliases import Grads, Params
from optax_sam.engine.examples import Slices
from optax_sam.engine.meter import Spent
from optax_sam.engine.objective import Evaluation
from optax_sam.engine.state import SharpnessAwareState, with_key_of_part
from optax_sam.engine.step_oracle import Given
from optax_sam.engine.transformation import Begun, Outcome
from optax_sam.wrappers.wrapper import Wrapper, flags_of, merged


@dataclasses.dataclass(frozen=True, eq=False)
class PerSlice(Wrapper):
    """Runs the inner method on every slice. The subclass says how it goes through the slices.

    Attributes:
      apart: whether each slice lies on devices of its own.
    """

    apart: ClassVar[bool] = False

    @abc.abstractmethod
    def num_slices(self, given: Given) -> int:
        """How many slices there are. Refuses what cannot be sliced."""

    @abc.abstractmethod
    def each(self, function: Callable[[Any, Any], Any], parts: Any, shared: Any) -> Any:
        """`function(part, shared)` of every slice, stacked."""

    @abc.abstractmethod
    def mean_and_sum(
        self, function: Callable[[Any, Any], tuple[Any, Any]], shares: jax.Array, parts: Any, shared: Any
    ) -> tuple[Any, Any]:
        """The mean of what `function(part, shared)` returns first, by shares, and the sum of the second."""

    def due(self, state: SharpnessAwareState, grads: Grads) -> jax.Array:
        if isinstance(state.due, tuple) and grads is not None:
            raise ValueError(
                "grads is the mean over slices, but every slice decides by its own gradient: leave the "
                "decision to the program, perturb=None."
            )
        return super().due(state, grads)

    def begin(self, state: SharpnessAwareState, given: Given) -> Begun:
        number_of_slices = self.num_slices(given)

        def on_slice(part, shared):
            own, state = of_slice(part, shared, number_of_slices)
            return self.inner.begin(state, own)

        parts, shared = parts_and_shared(number_of_slices, state, given, self.apart)
        begun = self.each(on_slice, parts, shared)
        shares = means.shares(begun.total, number_of_slices, given.params)
        found = begun.first
        grads = sharding.split_like(means.mean(shares, found.grads), given.params)
        of_aux = means.shares_within(shares, found.shares)
        mean = Evaluation(grads, means.mean(shares, found.loss), aux=found.aux, shares=of_aux)
        total = None if begun.total is None else begun.total.sum()
        return Begun(mean, total=total, spent=Spent().as_arrays(), parts=(begun, shares))

    def finish(
        self,
        grads: Grads,
        begun: Begun,
        state: SharpnessAwareState,
        params: Params,
        given: Given,
        perturb: bool | None,
    ) -> Outcome:
        slices, shares = begun.parts

        def on_slice(part, shared):
            (part, begun), (shared, params) = part, shared
            own, state = of_slice(part, shared, len(shares))
            visible = trees.like_masked(params, begun.first.grads)
            outcome = self.inner.finish(visible, begun, state, params, own, perturb)
            return (outcome, flags_of(outcome.state)), outcome.state.diagnostics.cost

        parts, shared = parts_and_shared(len(shares), state, given, self.apart)
        (mean, flags), cost = self.mean_and_sum(on_slice, shares, (parts, slices), (shared, params))
        descent = trees.cast_like(sharding.split_like(mean.descent, params), grads)
        new = merged(state, sharding.split_like(mean.state, state), flags, cost / len(shares))
        new = new._replace(key=state.key)  # that of the first slice may be another one
        return Outcome(descent, self.settle(new, state), mean.loss)


def parts_and_shared(
    number: int, state: SharpnessAwareState, given: Given, apart: bool = False
) -> tuple[Slices, Any]:
    """What each slice has of its own, and what is whole in all of them."""
    parts = given.examples.split(number, apart)
    whole = given.but(examples=given.examples.shared_by(number))
    if given.examples.is_part:  # slices of slices are numbered from 1: see `of_slice`
        parts = parts._replace(number=parts.number + 1)
    return parts, (state, whole)


def of_slice(part: Slices, shared: Any, number: int) -> tuple[Given, SharpnessAwareState]:
    """What one of a number of slices is given, and the state with random numbers of its own.

    Number 0, the first slice of the batch, has the method's random numbers. No slice of a slice has those of
    what it is cut from: else slice 1 of slice 0 would have those of slice 0 of slice 1.

    A single slice has the step's key for the loss too. The first of several has not, since the second pass
    makes another slice's key of it.
    """
    state, whole = shared
    examples = whole.examples.of_slice(part)
    if number == 1:
        return whole.but(examples=examples.but(key=whole.examples.key)), state
    own = with_key_of_part(state, part.number)
    return whole.but(examples=examples), own._replace(key=jnp.where(part.number == 0, state.key, own.key))
