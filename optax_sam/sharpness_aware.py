"""The assembly: one step of any method, from its pieces.

SAM is the gradient direction, always perturbed, to a radius. ASAM is the same with another geometry.
RST is SAM with a random gate; G-RST mixes the two gradients; vSAM has a gate that watches the second
gradient and a reuse that remembers it. AUSAM is SAM with a start that draws examples.
"""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from optax_sam import checks, combinations, selections, trees
from optax_sam import state as states
from optax_sam.directions import gradient
from optax_sam.gates import always
from optax_sam.oracle import Evaluation, First, GradientOracle, Oracle, check_like_params
from optax_sam.pieces import Combination, Context, Direction, Gate, Reuse, Selection, Start
from optax_sam.reuse import nothing
from optax_sam.starts import at_params
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
    loss: jax.Array | None


class Method(abc.ABC):
    """What stands behind a `SharpnessAware`: an assembly of pieces, or a wrapper of one."""

    needs_oracle: bool
    """Whether a gradient function alone is too little."""
    perturbs_at_start: bool
    """Whether the first gradient is not the one at the parameters."""

    @abc.abstractmethod
    def init(self, params: Any) -> SharpnessAwareState:
        """The initial state."""

    @abc.abstractmethod
    def begin(
        self, state: SharpnessAwareState, opt_state: Any, params: Any, oracle: Oracle
    ) -> Oracle:
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
        self._check_call(oracle, grad_fn, perturb)
        check_like_params("grads", updates, params)
        oracle = self._started(oracle, grad_fn, updates, state, params)
        if isinstance(oracle, Oracle) and oracle.method is not self:
            oracle = self.begin(state, state, oracle.params, oracle.origin or oracle)
            first = trees.like_masked(params, oracle.first.evaluation.grads)
            updates = optax.tree.cast_like(first, updates)
        perturb = None if perturb is None else bool(perturb)
        outcome = self.finish(updates, state, params, oracle, perturb)
        return outcome.descent, outcome.state

    def _started(self, oracle, grad_fn, updates, state, params) -> Any:
        """The oracle with the full parameters; or the gradient function as one."""
        hidden = trees.has_masked(params)
        if oracle is None:
            if hidden:
                raise ValueError(
                    "grad_fn is given inside optax.masked or optax.partition, where the full "
                    "parameters are out of sight: pass the oracle of value_and_grad, or "
                    "oracle=Oracle(losses, batch, params=params)."
                )
            return GradientOracle(grad_fn, updates)
        if oracle.params is not None:
            return oracle
        if hidden:
            raise ValueError(
                "oracle.params=None inside optax.masked or optax.partition, where the full "
                "parameters are out of sight: pass oracle=Oracle(losses, batch, params=params)."
            )
        return dataclasses.replace(oracle, params=params)

    def _check_call(self, oracle: Any, grad_fn: Any, perturb: Any) -> None:
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
                f"perturb={perturb!r} is a {type(perturb).__name__}: pass None, or a Python bool "
                f"such as bool(sam.due(opt_state)); it chooses which program is compiled."
            )
        if perturb is not None and not perturb and self.perturbs_at_start:
            raise ValueError(
                "perturb=False, but this method's first gradient is already perturbed: pass "
                "perturb=None or True."
            )


@dataclasses.dataclass(frozen=True, eq=False)
class Assembly(Method):
    """See `sharpness_aware`."""

    ascent: optax.GradientTransformation
    start: Start
    direction: Direction
    gate: Gate
    selection: Selection
    combination: Combination
    reuse: Reuse
    seed: chex.Numeric

    @property
    def needs_oracle(self) -> bool:
        return self.start.needs_oracle or self.selection is not selections.everything

    @property
    def perturbs_at_start(self) -> bool:
        return self.start.perturbs

    def init(self, params: Any) -> SharpnessAwareState:
        key = jax.random.key_data(jax.random.key(self.seed, impl="threefry2x32"))
        state = SharpnessAwareState(
            step=jnp.zeros([], jnp.int32),
            key=key,
            due=jnp.zeros([], bool),
            start=self.start.init(params),
            direction=self.direction.init(params),
            gate=self.gate.init(params),
            ascent=self.ascent.init(params),
            reuse=self.reuse.init(params),
            diagnostics=states.no_diagnostics(),
        )
        return self._decide_next(state)

    def begin(
        self, state: SharpnessAwareState, opt_state: Any, params: Any, oracle: Oracle
    ) -> Oracle:
        context = _context(state, "start", params, oracle)
        point, seen = self.start.begin(state.start, opt_state, context)
        first = First(None if point is params else point, seen.evaluate(point))
        return dataclasses.replace(seen, method=self, first=first, origin=oracle)

    def finish(
        self,
        grads: Any,
        state: SharpnessAwareState,
        params: Any,
        oracle: Any,
        perturb: bool | None,
    ) -> Outcome:
        here = oracle.first.evaluation._replace(grads=grads)
        grad_norm = trees.norm(grads)
        decision = self.gate.constant if perturb is None else perturb

        def paid():
            return self._perturbed_step(here, grad_norm, state, params, oracle)

        def unpaid():
            return self._plain_step(here, grad_norm, state, params, oracle)

        if decision is None:
            descent, new, loss = lax.cond(state.due, paid, unpaid)
        else:
            descent, new, loss = paid() if decision else unpaid()
        return Outcome(descent, self._decide_next(new), loss)

    def _perturbed_step(self, here, grad_norm, state, params, oracle) -> Outcome:
        context = {kind: _context(state, kind, params, oracle) for kind in _KINDS}
        grads = here.grads
        direction = self.direction.read(state.direction, grads, context["direction"])
        ascent = optax.with_extra_args_support(self.ascent)
        perturbation, ascent_state = ascent.update(
            optax.tree.conj(direction), state.ascent, params, step=state.step
        )
        seen = self.selection(oracle, here, context["selection"])
        there = self._evaluate_at(perturbation, seen, params)
        descent = self.combination(grads, there.grads, context["combination"])
        perturbed_grad_norm = trees.norm(there.grads)
        finite = jnp.isfinite(grad_norm) & jnp.isfinite(perturbed_grad_norm)
        new = self._with_pieces(
            state,
            finite,
            start=self.start.update(state.start, here, there, context["start"]),
            direction=self.direction.write(state.direction, grads, descent, context["direction"]),
            gate=self.gate.update(state.gate, grads, there.grads, context["gate"]),
            ascent=ascent_state,
            reuse=self.reuse.refresh(state.reuse, grads, there.grads, context["reuse"]),
        )
        new = _with_diagnostics(
            new,
            cost=(1 + self.start.evaluations) * oracle.fraction + seen.fraction,
            perturbed=True,
            loss=here.loss,
            perturbed_loss=there.loss if seen is oracle else None,
            grad_norm=grad_norm,
            perturbed_grad_norm=perturbed_grad_norm,
            perturbation_norm=trees.norm(perturbation),
        )
        return Outcome(optax.tree.cast_like(descent, grads), new, there.loss)

    def _plain_step(self, here, grad_norm, state, params, oracle) -> Outcome:
        context = {kind: _context(state, kind, params, oracle) for kind in _KINDS}
        descent, reuse_state = self.reuse.recall(state.reuse, here.grads, context["reuse"])
        new = self._with_pieces(
            state,
            jnp.isfinite(grad_norm),
            start=state.start,
            direction=self.direction.write(
                state.direction, here.grads, descent, context["direction"]
            ),
            gate=self.gate.update(state.gate, here.grads, None, context["gate"]),
            ascent=state.ascent,
            reuse=reuse_state,
        )
        new = _with_diagnostics(
            new, cost=oracle.fraction, perturbed=False, loss=here.loss, grad_norm=grad_norm
        )
        return Outcome(optax.tree.cast_like(descent, here.grads), new, here.loss)

    def _evaluate_at(self, perturbation: Any, oracle: Any, params: Any) -> Evaluation:
        """The evaluation at the start moved by `perturbation`, as far as it is visible here."""
        full = params if oracle.params is None else oracle.params
        point = full if oracle.first.point is None else oracle.first.point
        there = oracle.evaluate(trees.add_perturbation(point, perturbation))
        return there._replace(grads=trees.like_masked(params, there.grads))

    def _with_pieces(self, state, finite, **pieces) -> SharpnessAwareState:
        """The state with the pieces' new states, unless a gradient of this step was not finite."""
        kept = {
            name: trees.where(finite, new, getattr(state, name)) for name, new in pieces.items()
        }
        return state._replace(step=optax.safe_increment(state.step), **kept)

    def _decide_next(self, state: SharpnessAwareState) -> SharpnessAwareState:
        return state._replace(due=self.gate.due(state.gate, _context(state, "gate")))


class SharpnessAware(optax.GradientTransformationExtraArgs):
    """A method: an Optax transformation that stands first in the chain, and its training step.

    `init` and `update` are bound to one frozen record, the method; see `Method.update` for the
    arguments of `update`.
    """

    @property
    def method(self) -> Method:
        """The assembly, or the wrapper, that `init` and `update` are bound to."""
        return self.update.__self__

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
          A function `(params, batch, *, state, indices=None, weights=None, whole_batch=False)` that
          returns `loss, grads, oracle`, or `(loss, aux), grads, oracle`. `state` is any optimizer
          state that holds this transformation's; the other arguments are those of `Oracle`. Pass the
          gradient and the oracle on: `tx.update(grads, state, params, oracle=oracle)`.

        Raises:
          ValueError: `state` holds no state of ours, several, or one inside `optax.MultiSteps`; see
            `Oracle` for the rest.

        Example:
          >>> import jax.numpy as jnp, optax, optax_sam
          >>> sam = optax_sam.sam(rho=0.5)
          >>> tx = optax.chain(sam, optax.sgd(0.1))
          >>> params = jnp.array([3.0, 4.0])
          >>> state = tx.init(params)
          >>> losses = lambda w, batch: 0.5 * jnp.sum(w**2) * jnp.ones_like(batch)
          >>> loss, grads, oracle = sam.value_and_grad(losses)(params, jnp.ones(2), state=state)
          >>> updates, state = tx.update(grads, state, params, oracle=oracle)
          >>> print(loss, updates)
          12.5 [-0.33 -0.44]
        """

        def value_and_grad(
            params, batch, *, state, indices=None, weights=None, whole_batch=False
        ) -> tuple[Any, Any, Oracle]:
            own = states.find(state)
            states.check_no_multi_steps(state)
            oracle = Oracle(
                loss_fn,
                batch,
                params=params,
                has_aux=has_aux,
                indices=indices,
                weights=weights,
                whole_batch=whole_batch,
            )
            oracle = self.method.begin(own, state, params, oracle)
            first = oracle.first.evaluation
            return (first.loss, first.aux) if has_aux else first.loss, first.grads, oracle

        return value_and_grad

    def due(self, state: Any, grads: Any = None) -> jax.Array:
        """Whether the next step will pay for a perturbed gradient, `bool[]`, read from the state.

        Args:
          state: any optimizer state that holds this transformation's.
          grads: the step's first gradient; only for gates that must see it before they decide.

        Raises:
          ValueError: `state` holds no state of ours, or several.
        """
        del grads
        return states.due(state)


def from_method(method: Method) -> SharpnessAware:
    """The transformation of a method."""
    return SharpnessAware(method.init, method.update)


def sharpness_aware(
    ascent: optax.GradientTransformation,
    *,
    start: Start | None = None,
    direction: Direction | None = None,
    gate: Gate | None = None,
    selection: Selection = selections.everything,
    combination: Combination = combinations.perturbed,
    reuse: Reuse | None = None,
    seed: chex.Numeric = 0,
) -> SharpnessAware:
    """A sharpness-aware method from its pieces: one answer to each of seven questions.

    With `g` the first gradient and `d` the direction, a perturbed step descends along
    `combination(g, grad L(w + ascent(d)))`, an unperturbed one along `reuse(g)`; the gate decides
    which. All that is not given is neutral, so that `sharpness_aware(to_radius(rho))` is SAM.

    Args:
      ascent: how far uphill: any Optax transformation, from the direction (for complex leaves, its
        conjugate) to the perturbation. It gets the step count as the extra argument `step`.
      start: where and on which examples the first gradient is; `at_params()`.
      direction: what points uphill; `gradient()`.
      gate: whether a step is perturbed; `always()`.
      selection: which examples see the second gradient; `everything`.
      combination: how the two gradients become one; `perturbed`.
      reuse: what an unperturbed step remembers; `nothing()`.
      seed: an integer, or an integer array, for the pieces that draw.

    Returns:
      A `SharpnessAware` transformation.

    Raises:
      TypeError: `ascent` is no Optax transformation, or `seed` is no integer.

    Example:
      >>> from optax_sam import every, sharpness_aware, to_radius
      >>> method = sharpness_aware(to_radius(0.05), gate=every(5))
    """
    if not (hasattr(ascent, "init") and hasattr(ascent, "update")):
        raise TypeError(
            f"ascent={ascent!r} is no Optax transformation: pass one, for example to_radius(0.05)."
        )
    checks.seed(seed)
    return from_method(
        Assembly(
            ascent=ascent,
            start=at_params() if start is None else start,
            direction=gradient() if direction is None else direction,
            gate=always() if gate is None else gate,
            selection=selection,
            combination=combination,
            reuse=nothing() if reuse is None else reuse,
            seed=seed,
        )
    )


_KINDS = ("start", "direction", "gate", "selection", "combination", "reuse")


def _context(
    state: SharpnessAwareState, kind: str, params: Any = None, oracle: Any = None
) -> Context:
    """What the pieces of one kind may know of the step that begins with `state`."""
    key = jax.random.wrap_key_data(state.key, impl="threefry2x32")
    key = jax.random.fold_in(jax.random.fold_in(key, state.step), _KINDS.index(kind))
    return Context(state.step, key, params, oracle)


def _with_diagnostics(
    state: SharpnessAwareState, *, cost: float, perturbed: bool, **values: jax.Array | None
) -> SharpnessAwareState:
    numbers, known = states.measured(**values)
    cost = jnp.asarray(cost, jnp.float32)
    return state._replace(
        diagnostics=states.Diagnostics(
            values=numbers,
            known=known,
            perturbed=jnp.asarray(perturbed),
            gradients=states.add_gradients(state.diagnostics.gradients, cost),
            cost=cost,
        )
    )
