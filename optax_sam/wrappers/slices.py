"""m-sharpness: every slice of the batch with its own perturbation."""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_sam import means, sharding, trees
from optax_sam.oracle import Evaluation, First, Oracle
from optax_sam.state import SharpnessAwareState, with_key_of_part
from optax_sam.transformation import Outcome
from optax_sam.wrappers.wrapper import Wrapper, with_gradients_of


class Slice(NamedTuple):
    """What travels of a slice from its first gradient to its further ones: the arrays of its oracle."""

    batch: Any
    indices: Any
    weights: Any
    key: Any
    first: First
    slices: Any


class Shared(NamedTuple):
    """What is whole in every slice: all arrays that do not travel with one."""

    state: SharpnessAwareState
    opt_state: Any
    params: Any
    full_params: Any
    key: Any
    loss_scale: Any
    closed_over: Any


@dataclasses.dataclass(frozen=True, eq=False)
class PerSlice(Wrapper):
    """Runs the inner method on every slice; how the slices are gone through is the subclass's."""

    @abc.abstractmethod
    def num_slices(self, oracle: Oracle) -> int:
        """How many slices there are."""

    def closure(self, function: Callable[..., Any]) -> tuple[Any, Callable[[Any], Callable[..., Any]]]:
        """What `function` needs handed to it in every slice, and how it is made anew with that."""
        return (), lambda nothing: function

    @abc.abstractmethod
    def each(self, function: Callable[[Any, Any], Any], parts: Any, shared: Any) -> Any:
        """`function(part, shared)` of every slice, stacked."""

    @abc.abstractmethod
    def mean(self, function: Callable[[Any, Any], Any], shares: jax.Array, parts: Any, shared: Any) -> Any:
        """The mean of `function(part, shared)` over the slices."""

    def due(self, state: SharpnessAwareState, grads: Any) -> jax.Array:
        if isinstance(state.due, tuple) and grads is not None:
            raise ValueError(
                "grads is the mean over slices, but every slice decides by its own gradient: leave the "
                "decision to the program, perturb=None."
            )
        return super().due(state, grads)

    def begin(self, state: SharpnessAwareState, opt_state: Any, params: Any, oracle: Oracle) -> Oracle:
        number_of_slices = self.num_slices(oracle)
        arrays, rebuild = self.closure(oracle.losses)
        seen = []

        def on_slice(part, shared):
            own = _of_slice(part, shared, oracle, rebuild)
            state = _slice_state(shared.state, part[1])
            started = self.inner.begin(state, shared.opt_state, shared.params, own)
            # Only arrays may leave the loop; all else is the same for every slice.
            gone = (*Slice._fields, "params", "loss_scale", "origin", "opt_state", "weight_before_draw")
            nothing: dict[str, Any] = dict.fromkeys(gone) | {"batch": (), "losses": oracle.losses}
            seen.append(dataclasses.replace(started, **nothing))
            return Slice(*(getattr(started, name) for name in Slice._fields)), started.whole_weight

        shared = Shared(state, opt_state, params, oracle.params, oracle.key, oracle.loss_scale, arrays)
        parts = oracle.split(number_of_slices), jnp.arange(number_of_slices)
        slices, weights = self.each(on_slice, parts, shared)
        shares = means.shares(weights, number_of_slices, oracle.params)
        found = slices.first.evaluation
        grads = sharding.split_like(means.mean(shares, found.grads), params)
        mean = Evaluation(grads, means.mean(shares, found.loss), aux=found.aux)
        return dataclasses.replace(
            oracle,
            method=self,
            first=First(None, mean),
            slices=(slices, shares),
            of_slice=seen[0],
            opt_state=opt_state,
            origin=oracle,
        )

    def finish(
        self, grads: Any, state: SharpnessAwareState, params: Any, oracle: Oracle, perturb: bool | None
    ) -> Outcome:
        slices, shares = oracle.slices
        arrays, rebuild = self.closure(oracle.losses)

        def on_slice(part, shared):
            part, started = part
            origin = _of_slice(part, shared, oracle.origin, rebuild)
            own = dataclasses.replace(
                oracle.of_slice,
                **started._asdict(),
                losses=origin.losses,
                params=shared.full_params,
                loss_scale=shared.loss_scale,
                opt_state=shared.opt_state,
                origin=origin,
            )
            visible = trees.like_masked(shared.params, own.first.evaluation.grads)
            return self.inner.finish(
                visible, _slice_state(shared.state, part[1]), shared.params, own, perturb
            )

        shared = Shared(state, oracle.opt_state, params, oracle.params, oracle.key, oracle.loss_scale, arrays)
        parts = oracle.split(len(shares)), jnp.arange(len(shares))
        mean = self.mean(on_slice, shares, (parts, slices), shared)
        descent = optax.tree.cast_like(sharding.split_like(mean.descent, params), grads)
        new = with_gradients_of(state, sharding.split_like(mean.state, state), repeats=1)
        return Outcome(descent, new, mean.loss)


def _of_slice(part: Any, shared: Shared, oracle: Oracle, rebuild: Callable[..., Any]) -> Oracle:
    """The oracle of one slice, before the first gradient."""
    rows, number = part
    whole = dataclasses.replace(
        oracle,
        losses=rebuild(shared.closed_over),
        params=shared.full_params,
        key=shared.key,
        loss_scale=shared.loss_scale,
        **rows._asdict(),
    )
    return whole.with_key(number)


def _slice_state(state: SharpnessAwareState, number: Any) -> SharpnessAwareState:
    """The state with random numbers of the slice's own; those of the first are the method's."""
    own = with_key_of_part(state, number)
    return own._replace(key=jnp.where(number == 0, state.key, own.key))
