"""How every method is called: the training step, the transformation, and what both refuse."""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_sam import checks, trees
from optax_sam import state as states
from optax_sam.closures import as_of_now
from optax_sam.gradient_oracle import GradientOracle, like_params
from optax_sam.oracle import Oracle
from optax_sam.state import SharpnessAwareState


class Outcome(NamedTuple):
    """What a step gives.

    Attributes:
      descent: the sharpness-aware gradient, a tree like the gradient.
      state: the state after the step.
      loss: at the perturbed point, or at the start in an unperturbed step; None where not known.
    """

    descent: Any
    state: SharpnessAwareState
    loss: Any


class Method(abc.ABC):
    """What stands behind a `SharpnessAware`: an assembly of pieces, or a wrapper of one."""

    @property
    @abc.abstractmethod
    def needs_oracle(self) -> bool:
        """Whether a gradient function alone is too little."""

    @property
    @abc.abstractmethod
    def perturbs_at_start(self) -> bool:
        """Whether the first gradient is not the one at the parameters."""

    @property
    def first_follows_gate(self) -> bool:
        """Whether the first gradient of a perturbed step is another one than that of an unpaid step."""
        return False

    def due(self, state: SharpnessAwareState, grads: Any) -> jax.Array:
        """Whether the next step is perturbed; `grads` only for gates that must see them."""
        del grads
        return states.due(state)

    @abc.abstractmethod
    def init(self, params: Any) -> SharpnessAwareState:
        """The initial state."""

    @abc.abstractmethod
    def begin(self, state: SharpnessAwareState, opt_state: Any, params: Any, oracle: Oracle) -> Oracle:
        """Takes the first gradient, where and on which examples the method wants it."""

    @abc.abstractmethod
    def finish(
        self,
        grads: Any,
        state: SharpnessAwareState,
        params: Any,
        oracle: Any,
        perturb: bool | None,
    ) -> Outcome:
        """Takes the further gradients, and makes one of all."""

    def update(
        self,
        updates: Any,
        state: SharpnessAwareState,
        params: Any = None,
        *,
        oracle: Oracle | None = None,
        grad_fn: Callable[[Any], Any] | None = None,
        perturb: bool | None = None,
        **extra_args: Any,
    ) -> tuple[Any, SharpnessAwareState]:
        """Turns the first gradient of a step into the sharpness-aware one.

        Args:
          updates: the gradient that `value_and_grad` returned, or the user's own at `params`.
          state: the state of this transformation.
          params: the parameters.
          oracle: what `value_and_grad` returned, or an `Oracle` made by hand; with one that was not
            started by this method, the method takes its first gradient itself and does not read
            `updates`.
          grad_fn: in place of an oracle, `grad_fn(params) -> grads`, of the same examples.
          perturb: None lets the gate decide inside the program; True or False compiles that branch
            alone.
          **extra_args: accepted and ignored.

        Returns:
          The sharpness-aware gradient, with the dtypes of `updates`, and the new state.

        Raises:
          ValueError: `params` is missing; not exactly one of `oracle` and `grad_fn`; the method needs
            what `grad_fn` cannot give; a tree that differs from `params`; `perturb=False` for a
            method whose first gradient is already perturbed.
          TypeError: `perturb` is an array.
        """
        del extra_args
        if params is None:
            raise ValueError("params=None: pass the parameters, update(grads, state, params, ...).")
        self.check_call(oracle, grad_fn, perturb)
        structure = jax.tree.structure(updates)
        oracle = self.with_params(oracle, grad_fn, params)
        params = jax.tree.map(jnp.asarray, trees.plain(params))
        updates = like_params("grads", updates, params)
        if isinstance(oracle, GradientOracle):
            oracle = dataclasses.replace(oracle, grads=updates)
        if isinstance(oracle, Oracle):
            updates, oracle = self.started(updates, state, params, oracle, perturb)
        perturb = None if perturb is None else bool(perturb)
        outcome = self.finish(updates, state, params, oracle, perturb)
        return jax.tree.unflatten(structure, jax.tree.leaves(outcome.descent)), outcome.state

    def started(
        self, grads: Any, state: SharpnessAwareState, params: Any, oracle: Oracle, perturb: bool | None
    ) -> tuple[Any, Oracle]:
        """The first gradient and its oracle; taken now if `value_and_grad` took none, or another branch's."""
        forced = perturb is not None and self.first_follows_gate
        if oracle.method is self and not forced:
            return grads, oracle
        decided = state._replace(due=jnp.asarray(bool(perturb))) if forced else state
        oracle = self.begin(decided, state, oracle.params, oracle.origin or oracle)
        first = trees.like_masked(params, oracle.first.evaluation.grads)
        return optax.tree.cast_like(first, grads), oracle

    def with_params(self, oracle, grad_fn, params) -> Any:
        """The oracle with the full parameters; or the gradient function as one."""
        hidden = trees.has_masked(params)
        if oracle is None:
            if hidden:
                raise ValueError(
                    "grad_fn is given inside optax.masked or optax.partition, where the full "
                    "parameters are out of sight: pass the oracle of value_and_grad, or "
                    "oracle=Oracle(losses, batch, params=params)."
                )
            return GradientOracle(grad_fn, jax.tree.structure(params))
        if oracle.params is not None:
            return oracle
        if hidden:
            raise ValueError(
                "oracle.params=None inside optax.masked or optax.partition, where the full "
                "parameters are out of sight: pass oracle=Oracle(losses, batch, params=params)."
            )
        return dataclasses.replace(oracle, params=params)

    def check_call(self, oracle: Any, grad_fn: Any, perturb: Any) -> None:
        if (oracle is None) == (grad_fn is None):
            given = "none" if oracle is None else "both"
            raise ValueError(
                f"{given} of oracle and grad_fn is given: pass exactly one, the oracle that "
                f"value_and_grad returned, or grad_fn(params) -> grads."
            )
        if oracle is not None and not isinstance(oracle, Oracle):
            raise TypeError(
                f"oracle={oracle!r} is no Oracle: pass the third result of value_and_grad, or "
                f"optax_sam.Oracle(losses, batch)."
            )
        if grad_fn is not None and not callable(grad_fn):
            raise TypeError(f"grad_fn={grad_fn!r} is no function: pass grad_fn(params) -> grads.")
        if grad_fn is not None and self.needs_oracle:
            raise ValueError(
                "grad_fn is given, but this method needs examples, losses or a start of its own: "
                "pass the oracle of value_and_grad, or oracle=optax_sam.Oracle(losses, batch)."
            )
        if perturb is not None and not isinstance(perturb, bool | np.bool_):
            raise TypeError(
                f"perturb={perturb!r} is no Python bool: pass None, or a Python bool "
                f"such as bool(sam.due(opt_state)); it chooses which program is compiled."
            )
        if perturb is not None and not perturb and self.perturbs_at_start:
            raise ValueError(
                "perturb=False, but this method's first gradient is already perturbed: pass "
                "perturb=None or True."
            )


class SharpnessAware(optax.GradientTransformationExtraArgs):
    """A method: an Optax transformation that stands first in the chain, and its training step.

    `init` and `update` are bound to one frozen record, the method; see `Method.update` for the
    arguments of `update`.
    """

    @property
    def method(self) -> Method:
        """The assembly, or the wrapper, that `init` and `update` are bound to."""
        bound: Any = self.update
        return bound.__self__

    def value_and_grad(
        self, loss_fn: Callable[[Any, Any], Any], has_aux: bool = False
    ) -> Callable[..., tuple[Any, Any, Oracle]]:
        """The first gradient of a step, where and on which examples the method wants it.

        Args:
          loss_fn: `loss_fn(params, batch)` returns one loss per example, shape `[batch]`, or
            `(losses, aux)` with `has_aux`. A scalar (their mean) is accepted by methods that need no
            losses of single examples.
          has_aux: whether `loss_fn` returns a pair.

        Returns:
          A function `(params, batch, *, state, indices=None, weights=None, whole_batch=False, key=None,
          loss_scale=None)` that returns `loss, grads, oracle`, or `(loss, aux), grads, oracle`. `state`
          is any optimizer state that holds this transformation's; the other arguments are those of
          `Oracle`. Pass the gradient and the oracle on: `tx.update(grads, state, params, oracle=oracle)`.
          Later passes see the variables that `loss_fn` closes over as they were in the first one.

        Raises:
          ValueError: `state` holds no state of ours, several, or one inside `optax.MultiSteps`; see
            `Oracle` for the rest.

        Example:
          >>> import jax.numpy as jnp, optax, optax_sam
          >>> sam = optax_sam.sam(rho=5.0)
          >>> tx = optax.chain(sam, optax.sgd(0.5))
          >>> params = jnp.array([3.0, 4.0])
          >>> state = tx.init(params)
          >>> losses = lambda w, batch: 0.5 * jnp.sum(w**2) * jnp.ones_like(batch)
          >>> loss, grads, oracle = sam.value_and_grad(losses)(params, jnp.ones(2), state=state)
          >>> updates, state = tx.update(grads, state, params, oracle=oracle)
          >>> print(loss, updates.round(2))
          12.5 [-3. -4.]
        """
        checks.function("loss_fn", loss_fn, "loss_fn(params, batch) -> [batch]")

        def value_and_grad(
            params,
            batch,
            *,
            state,
            indices=None,
            weights=None,
            whole_batch=False,
            key=None,
            loss_scale=None,
        ) -> tuple[Any, Any, Oracle]:
            own = states.find(state)
            states.check_no_multi_steps(state)
            oracle = Oracle(
                as_of_now(loss_fn),
                batch,
                params=params,
                has_aux=has_aux,
                indices=indices,
                weights=weights,
                whole_batch=whole_batch,
                key=key,
                loss_scale=loss_scale,
            )
            oracle = self.method.begin(own, state, oracle.params, oracle)
            first = oracle.first.evaluation
            grads = jax.tree.unflatten(jax.tree.structure(params), jax.tree.leaves(first.grads))
            return (first.loss, first.aux) if has_aux else first.loss, grads, oracle

        return value_and_grad

    def due(self, state: Any, grads: Any = None) -> jax.Array:
        """Whether the next step will pay for a perturbed gradient, `bool[]`, read from the state.

        Args:
          state: any optimizer state that holds this transformation's.
          grads: the step's first gradient; only for gates that must see it before they decide.

        Raises:
          ValueError: `state` holds no state of ours, or several; the gate must see `grads`.
        """
        return self.method.due(states.find(state), grads)


def from_method(method: Method) -> SharpnessAware:
    """The transformation of a method."""
    bound: Any = method
    return SharpnessAware(bound.init, bound.update)
