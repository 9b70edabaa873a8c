"""The assembly: one step of any method, from its pieces.

SAM is the gradient direction, always perturbed, to a radius. ASAM is the same with another geometry. RST is
SAM with a random gate. G-RST mixes the two gradients. vSAM has a gate that watches the second gradient and a
reuse that remembers it. AUSAM is SAM with a start that draws examples.
"""

import contextlib
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_sam.arithmetic import sharding, trees
from optax_sam.engine import checks
from optax_sam.engine import state as states
from optax_sam.engine.aliases import Grads, Params
from optax_sam.engine.arrays import like_arrays
from optax_sam.engine.hyperparameters import Scalar, Seed
from optax_sam.engine.meter import Spent, judge, metered, spend
from optax_sam.engine.objective import Evaluation
from optax_sam.engine.state import SharpnessAwareState
from optax_sam.engine.step_oracle import Given, StepOracle
from optax_sam.engine.transformation import Begun, Climb, Method, Outcome, SharpnessAware, from_method
from optax_sam.pieces import bases, combinations, directions, gates, reuses, selections, starts
from optax_sam.pieces.bases import Combination, Direction, Gate, Reuse, Selection, Start, Step


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
        return any(piece.needs_oracle for piece in self._pieces)

    @property
    def perturbs_at_start(self) -> bool:
        return self.start.perturbs

    @property
    def begins_clean(self) -> bool:
        return self.start.is_clean

    @property
    def first_follows_gate(self) -> bool:
        return self.start.follows_gate

    @property
    def _pieces(self) -> tuple[bases.Piece, ...]:
        """All pieces but the ascent, which may be any Optax transformation."""
        return self.start, self.direction, self.gate, self.selection, self.combination, self.reuse

    def init(self, params: Params) -> SharpnessAwareState:
        params = like_arrays("params", trees.plain(params))
        state = states.initial(self.seed)
        first = Step(jnp.full([], -1, jnp.int32), base_key=states.key_of(state))
        state = state._replace(
            due=() if self.gate.needs_gradient else jnp.zeros([], bool),
            ascent=self.ascent.init(params),
            **{kind: getattr(self, kind).init(params, first._replace(kind=kind).key) for kind in REMEMBERING},
        )
        for kind in REMEMBERING:
            remembered = trees.without_keys_of(params, getattr(state, kind))
            checks.arrays(f"{kind}.init", getattr(self, kind), remembered)
        return self._decide_next(state)

    def due(self, state: SharpnessAwareState, grads: Grads) -> jax.Array:
        if not self.gate.needs_gradient or grads is None:
            return states.due(state)
        due = self.gate.due(state.gate, step_of(state, "gate", first=Evaluation(grads)))
        return checks.decision("gate", self.gate, due)

    def settle(self, mean: SharpnessAwareState, old: SharpnessAwareState) -> SharpnessAwareState:
        settled = {k: getattr(self, k).settle(getattr(mean, k), getattr(old, k)) for k in REMEMBERING}
        for kind in REMEMBERING:
            checks.kept(f"{kind}.settle", getattr(self, kind), settled[kind], getattr(old, kind))
        finite = mean.diagnostics.not_finite == 0
        return self._decide_next(states.kept_if(finite, mean._replace(**settled), old))

    def begin(self, state: SharpnessAwareState, given: Given) -> Begun:
        examples = given.examples.with_spare(given.params)
        oracle = StepOracle(given, examples, given.params, given.params)
        step = step_of(state, "start", params=given.params, oracle=oracle, opt_state=given.opt_state)
        with metered() as meter:
            began = self.start.begin(state.start, step, lambda: self._climb(state, step))
            checks.instance("start", self.start, began, bases.Began, "return Began(point, oracle)")
            checks.like_params("start", self.start, began.point, given.params, same_dtypes=True)
            examples = began.oracle.examples.with_spare(given.params)
            first = began.oracle.on(examples).evaluate_unjudged(began.point)
        climb = began.climb and began.climb._replace(perturbation=None)
        point = None if began.point is given.params else began.point
        begun = Begun(first, point, examples, examples.total, climb, meter.spent.as_arrays())
        if any(piece.asks_anew for piece in self._pieces) or bases.asks_anew(self.ascent):
            self._ask_beforehand(begun, state, given)
        return begun

    def _ask_beforehand(self, begun: Begun, state: SharpnessAwareState, given: Given) -> None:
        """Calls the loss for all shapes of the step now, as it is now; nothing of this is computed.

        A mask around the method is not in sight before `update`. It is guessed from the states: of the
        pieces, else of the ascent, which may have a mask of its own.
        """

        def ask(visible):
            grads = trees.like_masked(visible, begun.first.grads)
            taken_up = self._taken_up(grads, begun, state, visible, given)
            jax.eval_shape(lambda: self._perturbed_step(*taken_up))
            if self.gate.constant is None and self.reuse.asks_anew:
                jax.eval_shape(lambda: self._plain_step(*taken_up))

        if not trees.has_masked(state):
            ask(given.params)
            return
        pieces = [getattr(state, kind) for kind in REMEMBERING]
        guesses = [trees.hidden_as_in(pieces, given.params), trees.hidden_as_in(state.ascent, given.params)]
        for visible in guesses:
            # A wrong guess fails; what fails whatever is hidden fails again in `update`, and says why.
            with contextlib.suppress(AttributeError, TypeError, ValueError):
                ask(visible)
                return

    def finish(
        self,
        grads: Grads,
        begun: Begun,
        state: SharpnessAwareState,
        params: Params,
        given: Given,
        perturb: bool | None,
    ) -> Outcome:
        arguments = self._taken_up(grads, begun, state, params, given)
        decision = self.gate.constant if perturb is None else perturb
        due = self.due(state, grads) if decision is None else None
        if due is not None and not trees.is_traced((due, grads, params)):
            # The conditional would be compiled anew in each call, and both of its branches.
            decision = bool(due)
        first = arguments[1].first
        with trees.known_norm(first.grads, first.norm):
            if decision is None:
                paid, unpaid = (lambda f=f: f(*arguments) for f in (self._perturbed_step, self._plain_step))
                outcome = Outcome(*sharding.cond(due, paid, unpaid))
            else:
                outcome = (self._perturbed_step if decision else self._plain_step)(*arguments)
        return outcome._replace(state=self._decide_next(outcome.state))

    def _taken_up(self, grads, begun, state, params, given) -> tuple[SharpnessAwareState, Step, Begun]:
        """The step where `begin` has left it, its first gradient judged."""
        point = given.params if begun.point is None else begun.point
        examples = given.examples if begun.examples is None else begun.examples
        oracle = StepOracle(given, examples, point, params)
        first = begun.first._replace(grads=grads, norm=trees.norm(grads))
        finite = jnp.isfinite(first.norm) & trees.hidden_is_finite(grads, begun.first.grads)
        spent = begun.spent.plus(Spent(0.0, finite))
        return (
            state,
            step_of(state, "start", params=params, oracle=oracle, first=first),
            begun._replace(spent=spent),
        )

    def _perturbed_step(self, state: SharpnessAwareState, step: Step, begun: Begun) -> Outcome:
        with metered() as meter:
            spend(*begun.spent)
            if begun.climb is None:
                climbed = self._climb(state, step)
                point = step.oracle.moved(climbed.perturbation)
                step = step._replace(
                    direction=climbed.direction,
                    perturbation=climbed.perturbation,
                    distance=climbed.length,
                    point=point,
                )
                seen = self.selection.select(step._replace(kind="selection"))
                repair = "return step.oracle, or the oracle of other examples that its methods make"
                checks.instance("selection", self.selection, seen, StepOracle, repair)
                if self.combination.reads_loss and not seen.is_of_its_loss:
                    raise ValueError(
                        f"combination={self.combination!r} reads the loss of the second gradient, but "
                        f"start={self.start!r} or selection={self.selection!r} changes the gradient "
                        "alone: choose starts.at_params() and selections.everything()."
                    )
                there = seen.with_key(1).evaluate(point)
                same = seen.examples.see_the_same(step.oracle.examples)
                if self.start.compares and not same:
                    raise ValueError(
                        f"start={self.start!r} compares the losses of both evaluations, but "
                        f"selection={self.selection!r} takes the second one on other examples, or of another "
                        f"loss: choose selections.everything(), or the start's score='gradient_norm'."
                    )
            else:
                climbed, there, same = begun.climb, step.first, False
                direction = trees.like_masked(step.params, climbed.direction)
                step = step._replace(direction=direction, distance=climbed.length, point=step.oracle.point)
            step = step._replace(perturbed=there)
            descent = self.combination.combine(step._replace(kind="combination"))
            checks.like_params("combination", self.combination, descent, step.grads)
            judge(descent, step.grads, descent is there.grads or descent is step.grads)
            step = step._replace(descent=descent)
            new = {
                "start": self.start.update(state.start, step._replace(kind="start")),
                "direction": self.direction.write(climbed.direction_state, step._replace(kind="direction")),
                "gate": self.gate.update(state.gate, step._replace(kind="gate")),
                "ascent": climbed.ascent_state,
                "reuse": self.reuse.refresh(state.reuse, step._replace(kind="reuse")),
            }
        is_first = there is step.first
        diagnostics = states.diagnostics(
            state.diagnostics,
            meter.spent,
            perturbed=True,
            loss=step.first.loss,
            perturbed_loss=there.loss if same else None,
            grad_norm=step.first.norm,
            perturbed_grad_norm=None if is_first else there.norm,
            perturbation_norm=climbed.length,
        )
        return self._outcome(state, step, new, diagnostics, meter.spent, there.loss)

    def _plain_step(self, state: SharpnessAwareState, step: Step, begun: Begun) -> Outcome:
        with metered() as meter:
            spend(*begun.spent)
            recalled = self.reuse.recall(state.reuse, step._replace(kind="reuse"))
            descent, reuse = checks.pair("reuse", self.reuse, recalled, "(descent, state)")
            checks.like_params("reuse", self.reuse, descent, step.grads)
            judge(descent, step.grads, descent is step.grads)
            step = step._replace(descent=descent)
            new = {
                "direction": self.direction.write(state.direction, step._replace(kind="direction")),
                "gate": self.gate.update(state.gate, step._replace(kind="gate")),
                "reuse": reuse,
            }
        diagnostics = states.diagnostics(
            state.diagnostics,
            meter.spent,
            perturbed=False,
            loss=step.first.loss,
            grad_norm=step.first.norm,
        )
        return self._outcome(state, step, new, diagnostics, meter.spent, step.first.loss)

    def _climb(self, state: SharpnessAwareState, step: Step) -> Climb:
        read = self.direction.read(state.direction, step._replace(kind="direction"))
        direction, direction_state = checks.pair("direction", self.direction, read, "(direction, state)")
        params = step.params
        if trees.has_masked(direction):  # ahead of the step's gradient the full parameters are in sight
            params = trees.like_masked(direction, params)
        checks.like_params("direction", self.direction, direction, params)
        uphill = trees.conjugate(direction)
        extra = {"step": step.count, "key": step._replace(kind="ascent").key, "oracle": step.oracle}
        perturbation, ascent_state, length = bases.climb(self.ascent, uphill, state.ascent, params, **extra)
        checks.like_params("ascent", self.ascent, perturbation, params)
        return Climb(direction, perturbation, length, direction_state, ascent_state)

    def _outcome(
        self,
        state: SharpnessAwareState,
        step: Step,
        new: dict[str, Any],
        diagnostics: states.Diagnostics,
        spent: Spent,
        loss: Any,
    ) -> Outcome:
        """The descent in the gradient's dtypes; pieces keep their state after padding or infinities."""
        for kind, own in new.items():
            checks.kept(kind, getattr(self, kind), own, getattr(state, kind))
        count = jnp.asarray(optax.safe_increment(state.step))
        after = state._replace(step=count, diagnostics=diagnostics, **new)
        after = states.kept_if(spent.finite & step.oracle.has_examples, after, state)
        return Outcome(trees.cast_like(step.descent, step.grads), after, loss)

    def _decide_next(self, state: SharpnessAwareState) -> SharpnessAwareState:
        if self.gate.needs_gradient:
            return state
        due = checks.decision("gate", self.gate, self.gate.due(state.gate, step_of(state, "gate")))
        return state._replace(due=due)


NEUTRAL = {
    "start": starts.at_params,
    "direction": directions.gradient,
    "gate": gates.always,
    "selection": selections.everything,
    "combination": combinations.perturbed,
    "reuse": reuses.nothing,
}
"""The answers that make SAM: what is not given."""

REMEMBERING = ("start", "direction", "gate", "reuse")
"""The kinds of pieces whose state is kept, beside the ascent."""


def step_of(state: SharpnessAwareState, kind: str, **known: Any) -> Step:
    """What the pieces may know of the step that begins with `state`."""
    due = None if isinstance(state.due, tuple) else state.due
    return Step(state.step, due=due, base_key=states.key_of(state), kind=kind, **known)


def sharpness_aware(
    ascent: optax.GradientTransformation,
    *,
    start: Start | None = None,
    direction: Direction | None = None,
    gate: Gate | None = None,
    selection: Selection | None = None,
    combination: Combination | None = None,
    reuse: Reuse | None = None,
    seed: Seed = 0,
) -> SharpnessAware:
    """A sharpness-aware method from its pieces: one answer to each of seven questions.

    With `g` the first gradient and `d` the direction, a perturbed step descends along the combination of `g`
    and `grad L(w + ascent(d))`. An unperturbed step descends along what the reuse makes of `g`. The gate
    decides which. All that is not given is neutral: `sharpness_aware(ascents.to_radius(rho))` is SAM.

    Args:
      ascent: how far uphill. Any Optax transformation from the direction (for complex leaves, its conjugate)
        to the perturbation: `optax.scale(0.1)`, not `optax.sgd(0.1)`, which points downhill. It gets the
        extra arguments `step` (the step count), `key` and `oracle`. Take `optax.masked(to_radius(rho), mask)`
        for a part of the parameters, `optax.partition({...}, labels)` for a radius per group.
      start: where and on which examples the first gradient is, by default `starts.at_params()`.
      direction: what points uphill, by default `directions.gradient()`.
      gate: whether a step is perturbed, by default `gates.always()`.
      selection: which examples see the second gradient, by default `selections.everything()`.
      combination: how the two gradients become one, by default `combinations.perturbed()`.
      reuse: what an unperturbed step remembers, by default `reuses.nothing()`.
      seed: an integer, or an integer array, for the pieces that draw.

    Returns:
      A `SharpnessAware` transformation.

    Raises:
      TypeError: `ascent` is no Optax transformation, another piece is none of its kind (all that it lacks is
        named), or `seed` is no integer.
      ValueError: two pieces contradict each other. `starts.ahead()` takes no direction that needs the step's
        gradient, and no gate, selection, combination or reuse. A start that follows the gate takes no gate
        that must see the gradient. A start that compares losses takes no selection of other examples or of
        another loss, and a combination that reads the loss no gradient of other weights. Or a piece returns a
        tree unlike the parameters, or a state unlike the one before.

    Example:
      >>> from optax_sam import ascents, gates, sharpness_aware
      >>> method = sharpness_aware(ascents.to_radius(0.05), gate=gates.every(5))
    """
    checks.transformation("ascent", ascent, "ascents.to_radius(0.05)")
    checks.seed(seed)
    checks.piece("start", start, Start, "starts.at_params()")
    checks.piece("direction", direction, Direction, "directions.gradient()")
    checks.piece("gate", gate, Gate, "gates.every(5)")
    checks.piece("selection", selection, Selection, "selections.everything()")
    checks.piece("combination", combination, Combination, "combinations.unit()")
    checks.piece("reuse", reuse, Reuse, "reuses.nothing()")
    given = {
        "start": start,
        "direction": direction,
        "gate": gate,
        "selection": selection,
        "combination": combination,
        "reuse": reuse,
    }
    pieces: Any = {kind: NEUTRAL[kind]() if piece is None else piece for kind, piece in given.items()}
    method = Assembly(ascent=ascent, seed=seed, **pieces)
    _check_fit(method)
    return from_method(method)


def _check_fit(method: Assembly) -> None:
    """Refuses pieces that contradict each other."""
    if method.start.follows_gate and method.gate.needs_gradient:
        raise ValueError(
            f"start={method.start!r} takes the gradient that the gate chooses, but gate={method.gate!r} must "
            f"see it first: choose a gate that needs none, such as gates.every(5), or starts.at_params()."
        )
    if not method.start.climbs:
        return
    if method.direction.needs_gradient:
        raise ValueError(
            f"direction={method.direction!r} needs the gradient of the step, but start={method.start!r} "
            f"moves before it is taken: choose a direction that needs none, such as "
            f"directions.previous_descent(), or starts.at_params()."
        )
    for name in ("gate", "selection", "combination", "reuse"):
        if (piece := getattr(method, name)) != NEUTRAL[name]():
            raise ValueError(
                f"{name}={piece!r}, but start={method.start!r} takes the one gradient of the step itself, "
                f"and descends along it: leave {name} out."
            )
