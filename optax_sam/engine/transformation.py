"""How every method is called: the training step, the transformation, and what both refuse."""

import abc
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_sam.arithmetic import trees
from optax_sam.engine import checks, meter
from optax_sam.engine import state as states
from optax_sam.engine.aliases import Grads, OptState, Params
from optax_sam.engine.arrays import as_arrays
from optax_sam.engine.calls import (
    check_call,
    check_first,
    check_outside_multi_steps,
    check_same_structure,
    check_state,
    check_state_outside_multi_steps,
    check_unconditional,
    check_visible,
)
from optax_sam.engine.examples import Examples, Rows
from optax_sam.engine.gradient_function import GradientFunction, check_mean
from optax_sam.engine.identity import check_same
from optax_sam.engine.objective import Arguments, Evaluation, like_params
from optax_sam.engine.oracle import Oracle, Started, given_by, started
from optax_sam.engine.state import SharpnessAwareState
from optax_sam.engine.step_oracle import Given


class Climb(NamedTuple):
    """A perturbation that was made.

    Attributes:
      direction: what pointed uphill.
      perturbation: a tree like the parameters. None where it is no longer needed.
      length: `float[]`, the L2 norm of the perturbation.
      direction_state: of the direction, after it.
      ascent_state: of the ascent, after it.
    """

    direction: Grads
    perturbation: Grads
    length: jax.Array
    direction_state: Any
    ascent_state: Any


class Begun(NamedTuple):
    """The beginning of a step. It holds arrays alone, so that it may leave a loop over slices.

    Attributes:
      first: the first evaluation, not yet judged.
      point: where it was taken. None for the parameters themselves.
      examples: what it saw. None for all that the step was given.
      total: `float[]`, the sum of the weights of what it stands for. None where all examples count alike.
      climb: the perturbation that led to the point. None where none has.
      spent: so far.
      parts: what a wrapper keeps for its end.
    """

    first: Evaluation
    point: Params = None
    examples: Examples | None = None
    total: Any = None
    climb: Climb | None = None
    spent: meter.Spent = meter.Spent()
    parts: Any = None


class Outcome(NamedTuple):
    """What a step gives.

    Attributes:
      descent: the sharpness-aware gradient, a tree like the gradient.
      state: the state after the step.
      loss: at the perturbed point, or at the start in an unperturbed step. None where not known.
    """

    descent: Grads
    state: SharpnessAwareState
    loss: Any


class Probe:
    """Stands in place of an oracle: `update` raises the method that it belongs to, wherever it stands."""


class Found(Exception):
    """Carries a method out of a chain that was asked with a `Probe`."""

    def __init__(self, method: "Method"):
        super().__init__("a probe is no oracle")
        self.method = method


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
    def begins_clean(self) -> bool:
        """Whether the first gradient is that of all examples at the parameters."""
        return False

    @property
    def is_optimizer(self) -> bool:
        """Whether its descent is to be added to the parameters; else it is a gradient."""
        return False

    @property
    def first_follows_gate(self) -> bool:
        """Whether the first gradient of a perturbed step is another one than that of an unpaid step."""
        return False

    @property
    def of_step(self) -> "Method":
        """The method whose step `value_and_grad` begins."""
        return self

    def due(self, state: SharpnessAwareState, grads: Grads) -> jax.Array:
        """Whether the next step is perturbed. `grads` only for gates that must see them."""
        del grads
        return states.due(state)

    def settle(self, mean: SharpnessAwareState, old: SharpnessAwareState) -> SharpnessAwareState:
        """The mean of the states of several slices or draws, repaired where a mean is no state."""
        del old
        return mean

    @abc.abstractmethod
    def init(self, params: Params) -> SharpnessAwareState:
        """The initial state."""

    @abc.abstractmethod
    def begin(self, state: SharpnessAwareState, given: Given) -> Begun:
        """Takes the first gradient, where and on which examples the method wants it."""

    @abc.abstractmethod
    def finish(
        self,
        grads: Grads,
        begun: Begun,
        state: SharpnessAwareState,
        params: Params,
        given: Given,
        perturb: bool | None,
    ) -> Outcome:
        """Takes the further gradients, and makes one of all."""

    def update(
        self,
        updates: Grads,
        state: SharpnessAwareState,
        params: Params = None,
        *,
        oracle: Oracle | None = None,
        grad_fn: Callable[[Params], Grads] | None = None,
        perturb: bool | None = None,
        **extra_args: Any,
    ) -> tuple[Grads, SharpnessAwareState]:
        """Turns the first gradient of a step into the sharpness-aware one.

        Args:
          updates: the gradient that `value_and_grad` returned, or the user's own at `params`.
          state: the state of this transformation.
          params: the parameters.
          oracle: what `value_and_grad` returned, or an `Oracle` made by hand. With one made by hand the
            method takes its first gradient itself and does not read `updates`. (What `optax.masked` or
            `optax.partition` hides descends on `updates`: pass the gradient there.)
          grad_fn: in place of an oracle, `grad_fn(params) -> grads`, of the same examples.
          perturb: None lets the gate decide inside the program. True or False compiles that branch
            alone.
          **extra_args: accepted and ignored.

        Returns:
          The sharpness-aware gradient, with the dtypes of the first one, and the new state.

        Raises:
          ValueError: `params` is missing. Not exactly one of `oracle` and `grad_fn` is given. The method
            needs what `grad_fn` cannot give. Another method has started the oracle. A tree differs from
            `params`. `updates` are the parameters, and some of these are hidden. `perturb` is False for a
            method whose first gradient is already perturbed.
          TypeError: `perturb` is an array.
        """
        del extra_args
        if oracle is not None or grad_fn is not None:
            check_outside_multi_steps()
        if isinstance(oracle, Probe):
            raise Found(self)
        if params is None:
            raise ValueError("params=None: pass the parameters, update(grads, state, params, ...).")
        check_call(self, oracle, grad_fn, perturb)
        structure = jax.tree.structure(updates)
        check_visible(updates, params, oracle, grad_fn)
        arrays = as_arrays("params", trees.plain(params))
        updates = like_params("grads", updates, arrays)
        state = states.as_jax(state)
        check_state(self, state, arrays)
        if oracle is None:
            given = given_by_function(grad_fn, params, arrays)
            begun = Begun(Evaluation(updates), spent=meter.Spent(1.0))
        else:
            updates, begun, given = self.started(updates, state, arrays, params, oracle, perturb)
        perturb = None if perturb is None else bool(perturb)
        outcome = self.finish(updates, begun, state, arrays, given, perturb)
        descent = jax.tree.unflatten(structure, jax.tree.leaves(outcome.descent))
        return descent, states.split_alike(outcome.state, state)

    def started(
        self,
        grads: Grads,
        state: SharpnessAwareState,
        visible: Params,
        params: Params,
        oracle: Oracle,
        perturb: bool | None,
        opt_state: OptState = None,
    ) -> tuple[Grads, Begun, Given]:
        """The first gradient, taken now unless `value_and_grad` has taken the same one.

        `opt_state` is that of the whole optimizer, where it is known.
        """
        step = oracle._started
        if step is not None and step.method is not None:
            check_same(step.method, self)
        told = None if step is None else step.perturb
        forced = perturb is not None and self.first_follows_gate and perturb != told
        if step is not None:
            check_same_structure(step.given.params, visible)
        if step is not None and not forced:
            return grads, step.begun, step.given
        decided = state._replace(due=jnp.asarray(bool(perturb))) if forced else state
        full = params if oracle.params is None else oracle.params
        given = given_by(oracle, full, opt_state) if step is None else step.given
        begun = self.begin(decided, given)
        return trees.like_masked(visible, begun.first.grads), begun, given


def given_by_function(grad_fn: Any, params: Params, arrays: Params) -> Given:
    """What a step is given by a gradient function."""
    check_mean(grad_fn, params)
    objective = GradientFunction(grad_fn, jax.tree.structure(params))
    return Given(objective, Examples(Rows(())), Arguments([]), arrays)


class SharpnessAware(optax.GradientTransformationExtraArgs):
    """A method: an Optax transformation that stands first in the chain, and its training step.

    `init` and `update` are bound to one frozen record, the method. See `Method.update` for the
    arguments of `update`.
    """

    @property
    def method(self) -> Method:
        """The assembly, or the wrapper, that `init` and `update` are bound to."""
        bound: Any = self.update
        return bound.__self__

    def value_and_grad(
        self, loss_fn: Callable[..., Any], has_aux: bool = False
    ) -> Callable[..., tuple[Any, Grads, Oracle]]:
        """The first gradient of a step, where and on which examples the method wants it.

        Args:
          loss_fn: `loss_fn(params, batch, *args)` returns one loss per example, shape `[batch]`, or
            `(losses, aux)` with `has_aux`. A scalar (their mean) is accepted by methods that need no
            losses of single examples.
          has_aux: whether `loss_fn` returns a pair.

        Returns:
          A function `(params, batch, *args, state, indices=None, weights=None, whole_batch=False, key=None,
          loss_scale=None)` that returns `loss, grads, oracle`, or `(loss, aux), grads, oracle`. `state` is
          any optimizer state that holds this transformation's. `args` go to every pass unchanged. The others
          are those of `Oracle`. Pass the gradient and the oracle on:
          `tx.update(grads, state, params, oracle=oracle)`. Later passes see what `loss_fn` closes over as it
          was in the first one.

        Raises:
          ValueError: `state` holds no state of this library, several, or one inside `optax.MultiSteps`. See
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
            params: Params,
            batch: Any,
            *args: Any,
            state: OptState = None,
            indices: Any = None,
            weights: Any = None,
            whole_batch: bool = False,
            key: Any = None,
            loss_scale: Any = None,
        ) -> tuple[Any, Grads, Oracle]:
            oracle = Oracle(
                loss_fn,
                batch,
                params=params,
                has_aux=has_aux,
                indices=indices,
                weights=weights,
                whole_batch=whole_batch,
                key=key,
                loss_scale=loss_scale,
                args=args,
            )
            check_state_outside_multi_steps(state)
            return begin(self.method.of_step, oracle, state)

        return value_and_grad

    def due(self, state: OptState, grads: Grads = None) -> jax.Array:
        """Whether the next step will pay for a perturbed gradient, `bool[]`, read from the state.

        Args:
          state: any optimizer state that holds this transformation's.
          grads: the step's first gradient. Only for gates that must see it before they decide.

        Raises:
          ValueError: `state` holds no state of this library, or several. The gate must see `grads`.
        """
        return self.method.due(states.find(state), grads)


def begin(
    method: Method, oracle: Oracle, opt_state: OptState, is_sure: bool = False
) -> tuple[Any, Grads, Oracle]:
    """The beginning of a step: `loss, grads, oracle`, the loss with aux where the oracle has it.

    Args:
      method: whose step it is.
      oracle: with the full parameters.
      opt_state: of the whole optimizer.
      is_sure: whether the step is known to be this method's, and not to be compared at its end.
    """
    own = states.find(opt_state)
    check_first(opt_state)
    check_unconditional(method, opt_state)
    given = given_by(oracle, oracle.params, opt_state)
    if not trees.has_masked(own):  # what a mask hides is not in sight before `update`
        check_state(method, own, given.params)
    begun = method.begin(own, given)
    first = begun.first
    grads = jax.tree.unflatten(jax.tree.structure(oracle.params), jax.tree.leaves(first.grads))
    step = Started(None if is_sure else method, given, begun)
    return (first.loss, first.aux) if oracle.has_aux else first.loss, grads, started(oracle, step)


def from_method(method: Method) -> SharpnessAware:
    """The transformation of a method."""
    bound: Any = method
    return SharpnessAware(bound.init, bound.update)
