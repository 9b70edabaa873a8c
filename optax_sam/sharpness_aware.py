"""The assembly: one step of any method, from its pieces.

SAM is the gradient direction, always perturbed, to a radius. ASAM is the same with another geometry.
RST is SAM with a random gate; G-RST mixes the two gradients; vSAM has a gate that watches the second
gradient and a reuse that remembers it. AUSAM is SAM with a start that draws examples.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from optax_sam import checks, trees
from optax_sam import state as states
from optax_sam.hyperparameters import Scalar
from optax_sam.oracle import Climb, First, Oracle, weighted_mean
from optax_sam.pieces import combinations, selections
from optax_sam.pieces.ascents import climb, evaluations
from optax_sam.pieces.directions import gradient
from optax_sam.pieces.gates import always
from optax_sam.pieces.protocols import (
    Combination,
    Context,
    Direction,
    Gate,
    Gradients,
    Reuse,
    Selection,
    Start,
)
from optax_sam.pieces.reuse import nothing
from optax_sam.pieces.starts import Ahead, at_params
from optax_sam.state import SharpnessAwareState
from optax_sam.transformation import Method, Outcome, SharpnessAware, from_method


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
    seed: Scalar

    @property
    def needs_oracle(self) -> bool:
        chosen = self.selection is not selections.everything
        pieces = (self.start, self.direction, self.combination, self.reuse)
        return chosen or any(getattr(piece, "needs_oracle", False) for piece in pieces)

    @property
    def perturbs_at_start(self) -> bool:
        return self.start.perturbs

    @property
    def first_follows_gate(self) -> bool:
        return self.start.follows_gate

    def init(self, params: Any) -> SharpnessAwareState:
        params = trees.plain(params)
        state = states.initial(
            self.seed,
            due=() if self.gate.needs_gradient else jnp.zeros([], bool),
            start=self.start.init(params),
            direction=self.direction.init(params),
            gate=self.gate.init(params),
            ascent=self.ascent.init(params),
            reuse=self.reuse.init(params),
        )
        return self._decide_next(state)

    def due(self, state: SharpnessAwareState, grads: Any) -> jax.Array:
        if not self.gate.needs_gradient or grads is None:
            return states.due(state)
        return self.gate.due(state.gate, grads, _context(state, "gate"))

    def begin(self, state: SharpnessAwareState, opt_state: Any, params: Any, oracle: Oracle) -> Oracle:
        context = _context(state, "start", params, oracle, opt_state)
        point, seen = self.start.begin(state.start, context)
        climbed = None
        if self._is_ahead:
            climbed = self._climb(None, state, params, oracle, opt_state)
            point = oracle.moved(climbed.perturbation, params)
            climbed = climbed._replace(perturbation=None)
        found = seen.evaluate(point)
        if self.start.reweights:
            found = found._replace(loss=weighted_mean(found.losses, oracle.weights, params))
        first = First(None if point is params else point, found, climbed)
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
        if self._is_ahead:
            return self._step_from_ahead(here, grad_norm, state, params, oracle)
        decision = self.gate.constant if perturb is None else perturb

        def paid():
            return self._perturbed_step(here, grad_norm, state, params, oracle)

        def unpaid():
            return self._plain_step(here, grad_norm, state, params, oracle)

        if decision is None:
            outcome = Outcome(*lax.cond(self.due(state, grads), paid, unpaid))
        else:
            outcome = paid() if decision else unpaid()
        return outcome._replace(state=self._decide_next(outcome.state))

    def _perturbed_step(self, here, grad_norm, state, params, oracle) -> Outcome:
        context = {kind: _context(state, kind, params, oracle) for kind in _KINDS}
        climbed = self._climb(here.grads, state, params, oracle)
        point = oracle.moved(climbed.perturbation, params)
        seen = self.selection(oracle, here, point, context["selection"])
        there = seen.with_key(1).evaluate(point)
        there = there._replace(grads=trees.like_masked(params, there.grads))
        descent = self.combination(here.grads, there.grads, context["combination"])
        perturbed_grad_norm = trees.norm(there.grads)
        finite = jnp.isfinite(grad_norm) & jnp.isfinite(perturbed_grad_norm)
        made = Gradients(here.grads, descent, climbed.direction, there.grads)
        new = self._with_pieces(
            state,
            finite,
            start=self.start.update(state.start, here, there, context["start"]),
            direction=self.direction.write(state.direction, made, context["direction"]),
            gate=self.gate.update(state.gate, here.grads, there.grads, context["gate"]),
            ascent=climbed.state,
            reuse=self.reuse.refresh(state.reuse, here.grads, there.grads, context["reuse"]),
        )
        further = sum(
            getattr(piece, "evaluations", 0) for piece in (self.start, self.combination, self.reuse)
        )
        further += self.direction.evaluations(context["direction"]) + evaluations(climbed.state)
        diagnostics = states.diagnostics(
            state.diagnostics,
            cost=(1 + further) * oracle.fraction + seen.fraction,
            perturbed=True,
            finite=finite,
            loss=here.loss,
            perturbed_loss=there.loss if _see_the_same(seen, oracle) else None,
            grad_norm=grad_norm,
            perturbed_grad_norm=perturbed_grad_norm,
            perturbation_norm=climbed.length,
        )
        new = new._replace(diagnostics=diagnostics)
        return Outcome(optax.tree.cast_like(descent, here.grads), new, there.loss)

    def _plain_step(self, here, grad_norm, state, params, oracle) -> Outcome:
        context = {kind: _context(state, kind, params, oracle) for kind in _KINDS}
        descent, reuse_state = self.reuse.recall(state.reuse, here.grads, context["reuse"])
        made, finite = Gradients(here.grads, descent), jnp.isfinite(grad_norm)
        new = self._with_pieces(
            state,
            finite,
            direction=self.direction.write(state.direction, made, context["direction"]),
            gate=self.gate.update(state.gate, here.grads, None, context["gate"]),
            reuse=reuse_state,
        )
        diagnostics = states.diagnostics(
            state.diagnostics,
            cost=oracle.fraction,
            perturbed=False,
            finite=finite,
            loss=here.loss,
            grad_norm=grad_norm,
        )
        new = new._replace(diagnostics=diagnostics)
        return Outcome(optax.tree.cast_like(descent, here.grads), new, here.loss)

    def _step_from_ahead(self, here, grad_norm, state, params, oracle) -> Outcome:
        """The step whose one gradient was taken at the perturbed point."""
        context = _context(state, "direction", params, oracle)
        climbed, finite = oracle.first.climb, jnp.isfinite(grad_norm)
        direction = trees.like_masked(params, climbed.direction)
        made = Gradients(here.grads, here.grads, direction, here.grads)
        new = self._with_pieces(
            state,
            finite,
            direction=self.direction.write(state.direction, made, context),
            ascent=climbed.state,
        )
        further = self.direction.evaluations(context) + evaluations(climbed.state)
        diagnostics = states.diagnostics(
            state.diagnostics,
            cost=(1 + further) * oracle.fraction,
            perturbed=True,
            finite=finite,
            loss=here.loss,
            grad_norm=grad_norm,
            perturbation_norm=climbed.length,
        )
        new = self._decide_next(new._replace(diagnostics=diagnostics))
        return Outcome(here.grads, new, here.loss)

    def _climb(self, grads, state, params, oracle, opt_state=None) -> Climb:
        """The perturbation, along the direction that the piece finds."""
        context = _context(state, "direction", params, oracle, opt_state)
        direction = self.direction.read(state.direction, grads, context)
        return climb(self.ascent, direction, state.ascent, _context(state, "ascent", params, oracle))

    @property
    def _is_ahead(self) -> bool:
        return isinstance(self.start, Ahead)

    def _with_pieces(self, state, finite, **pieces) -> SharpnessAwareState:
        """The state with the pieces' new states, unless a gradient of this step was not finite."""
        kept = {name: trees.where(finite, new, getattr(state, name)) for name, new in pieces.items()}
        return state._replace(step=optax.safe_increment(state.step), **kept)

    def _decide_next(self, state: SharpnessAwareState) -> SharpnessAwareState:
        if self.gate.needs_gradient:
            return state
        return state._replace(due=self.gate.due(state.gate, None, _context(state, "gate")))


def sharpness_aware(
    ascent: optax.GradientTransformation,
    *,
    start: Start | None = None,
    direction: Direction | None = None,
    gate: Gate | None = None,
    selection: Selection = selections.everything,
    combination: Combination = combinations.perturbed,
    reuse: Reuse | None = None,
    seed: Scalar = 0,
) -> SharpnessAware:
    """A sharpness-aware method from its pieces: one answer to each of seven questions.

    With `g` the first gradient and `d` the direction, a perturbed step descends along
    `combination(g, grad L(w + ascent(d)))`, an unperturbed one along `reuse(g)`; the gate decides
    which. All that is not given is neutral, so that `sharpness_aware(to_radius(rho))` is SAM.

    Args:
      ascent: how far uphill: any Optax transformation, from the direction (for complex leaves, its
        conjugate) to the perturbation: `optax.scale(0.1)`, not `optax.sgd(0.1)`, which points downhill.
        It gets the step count as the extra argument `step`. For a part of the parameters,
        `optax.masked(to_radius(rho), mask)`; for a radius per group, `optax.partition({...}, labels)`.
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
      TypeError: `ascent` is no Optax transformation, another piece is none of its kind, or `seed` is no
        integer.
      ValueError: two pieces contradict each other: `ahead()` with a direction that needs the step's
        gradient or with a gate, selection, combination or reuse; a start that follows the gate with a
        gate that must see the gradient.

    Example:
      >>> from optax_sam import every, sharpness_aware, to_radius
      >>> method = sharpness_aware(to_radius(0.05), gate=every(5))
    """
    checks.transformation("ascent", ascent, "to_radius(0.05)")
    checks.seed(seed)
    checks.piece("start", start, "begin", "a start, such as at_params()")
    checks.piece("direction", direction, "read", "a direction, such as gradient()")
    checks.piece("gate", gate, "due", "a gate, such as every(5)")
    checks.piece("reuse", reuse, "recall", "a reuse, such as nothing()")
    checks.function("selection", selection, "(oracle, here, there, context) -> oracle, such as everything")
    checks.function("combination", combination, "(grads, perturbed_grads, context) -> descent, such as unit")
    method = Assembly(
        ascent=ascent,
        start=at_params() if start is None else start,
        direction=gradient() if direction is None else direction,
        gate=always() if gate is None else gate,
        selection=selection,
        combination=combination,
        reuse=nothing() if reuse is None else reuse,
        seed=seed,
    )
    _check_fit(method)
    return from_method(method)


def _check_fit(method: Assembly) -> None:
    """Refuses pieces that contradict each other."""
    if method.start.follows_gate and method.gate.needs_gradient:
        raise ValueError(
            f"start={method.start!r} takes the gradient that the gate chooses, but gate={method.gate!r} must "
            f"see it first: choose a gate that needs none, such as every(5), or at_params()."
        )
    if not isinstance(method.start, Ahead):
        return
    if method.direction.needs_gradient:
        raise ValueError(
            f"direction={method.direction!r} needs the gradient of the step, but start=ahead() moves before "
            f"it is taken: choose a direction that needs none, such as previous_descent(), or at_params()."
        )
    if method.gate.constant is not True or method.selection is not selections.everything:
        raise ValueError(
            "start=ahead() takes the one gradient of the step itself: leave gate and selection out."
        )
    if method.combination is not combinations.perturbed or method.reuse != nothing():
        raise ValueError(
            "start=ahead() descends along the one gradient of the step: leave combination and reuse out."
        )


_KINDS = ("start", "direction", "gate", "selection", "combination", "reuse", "ascent")


def _context(
    state: SharpnessAwareState, kind: str, params: Any = None, oracle: Any = None, opt_state: Any = None
) -> Context:
    """What the pieces of one kind may know of the step that begins with `state`."""
    key = jax.random.fold_in(jax.random.fold_in(states.key_of(state), state.step), _KINDS.index(kind))
    due = None if isinstance(state.due, tuple) else state.due
    return Context(state.step, key, params, oracle, due, opt_state)


def _see_the_same(oracle: Any, other: Any) -> bool:
    """Whether two oracles have the same losses of the same examples."""
    if oracle is other:
        return True
    pairs = zip(jax.tree.leaves(oracle.batch), jax.tree.leaves(other.batch), strict=True)
    return oracle.losses is other.losses and all(x is y for x, y in pairs)
