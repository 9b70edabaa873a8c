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

from optax_sam import checks, combinations, selections, trees
from optax_sam import state as states
from optax_sam.ascents import climb
from optax_sam.directions import gradient
from optax_sam.gates import always
from optax_sam.hyperparameters import Scalar
from optax_sam.method import Method, Outcome, SharpnessAware, from_method
from optax_sam.oracle import Evaluation, First, Oracle
from optax_sam.pieces import Combination, Context, Direction, Gate, Reuse, Selection, Start
from optax_sam.reuse import nothing
from optax_sam.starts import at_params
from optax_sam.state import SharpnessAwareState


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
        return self.start.needs_oracle or self.selection is not selections.everything

    @property
    def perturbs_at_start(self) -> bool:
        return self.start.perturbs

    def init(self, params: Any) -> SharpnessAwareState:
        params = trees.plain(params)
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

    def begin(self, state: SharpnessAwareState, opt_state: Any, params: Any, oracle: Oracle) -> Oracle:
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
        uphill = optax.tree.conj(direction)
        perturbation, ascent_state, length = climb(self.ascent, uphill, state.ascent, params, state.step)
        seen = self.selection(oracle, here, context["selection"])
        there = self._evaluate_at(perturbation, seen.with_key(1), params)
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
            finite=finite,
            loss=here.loss,
            perturbed_loss=there.loss if seen is oracle else None,
            grad_norm=grad_norm,
            perturbed_grad_norm=perturbed_grad_norm,
            perturbation_norm=length,
        )
        return Outcome(optax.tree.cast_like(descent, grads), new, there.loss)

    def _plain_step(self, here, grad_norm, state, params, oracle) -> Outcome:
        context = {kind: _context(state, kind, params, oracle) for kind in _KINDS}
        descent, reuse_state = self.reuse.recall(state.reuse, here.grads, context["reuse"])
        finite = jnp.isfinite(grad_norm)
        new = self._with_pieces(
            state,
            finite,
            start=state.start,
            direction=self.direction.write(state.direction, here.grads, descent, context["direction"]),
            gate=self.gate.update(state.gate, here.grads, None, context["gate"]),
            ascent=state.ascent,
            reuse=reuse_state,
        )
        new = _with_diagnostics(
            new,
            cost=oracle.fraction,
            perturbed=False,
            finite=finite,
            loss=here.loss,
            grad_norm=grad_norm,
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
        kept = {name: trees.where(finite, new, getattr(state, name)) for name, new in pieces.items()}
        return state._replace(step=optax.safe_increment(state.step), **kept)

    def _decide_next(self, state: SharpnessAwareState) -> SharpnessAwareState:
        return state._replace(due=self.gate.due(state.gate, _context(state, "gate")))


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

    Example:
      >>> from optax_sam import every, sharpness_aware, to_radius
      >>> method = sharpness_aware(to_radius(0.05), gate=every(5))
    """
    if not (hasattr(ascent, "init") and hasattr(ascent, "update")):
        raise TypeError(
            f"ascent={ascent!r} is no Optax transformation: pass one, for example to_radius(0.05)."
        )
    checks.seed(seed)
    for name, piece, method in (
        ("start", start, "begin"),
        ("direction", direction, "read"),
        ("gate", gate, "due"),
        ("reuse", reuse, "recall"),
    ):
        checks.piece(name, piece, method)
    checks.function("selection", selection, "(oracle, here, context) -> oracle, such as everything")
    checks.function("combination", combination, "(grads, perturbed_grads, context) -> descent, such as unit")
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


def _context(state: SharpnessAwareState, kind: str, params: Any = None, oracle: Any = None) -> Context:
    """What the pieces of one kind may know of the step that begins with `state`."""
    key = jax.random.wrap_key_data(state.key, impl="threefry2x32")
    key = jax.random.fold_in(jax.random.fold_in(key, state.step), _KINDS.index(kind))
    return Context(state.step, key, params, oracle)


def _with_diagnostics(
    state: SharpnessAwareState,
    *,
    cost: float,
    perturbed: bool,
    finite: jax.Array,
    **values: jax.Array | None,
) -> SharpnessAwareState:
    numbers, known = states.measured(**values)
    paid = jnp.asarray(cost, jnp.float32)
    return state._replace(
        diagnostics=states.Diagnostics(
            values=numbers,
            known=known,
            perturbed=jnp.asarray(perturbed),
            gradients=states.add_gradients(state.diagnostics.gradients, paid),
            cost=paid,
            not_finite=1 - finite.astype(jnp.float32),
        )
    )
