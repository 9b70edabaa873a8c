"""What a user's piece gets wrong is refused by the name of the piece."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_sam
from optax_sam import ascents, combinations, directions, gates, geometries, reuses, selections, starts
from optax_sam.pieces import bases
from tests.problem import init_params, losses, make_batch, make_indices
from tests.registry import one_step

RHO = 0.05


def test_all_missing_members_are_named_at_once():
    class Bare:
        def read(self, state, step):
            return step.grads, state

    with pytest.raises(
        TypeError, match=r"direction=.*asks_anew, init, needs_gradient, needs_oracle, settle, write"
    ):
        optax_sam.sharpness_aware(ascents.to_radius(RHO), direction=Bare())

    class Unfinished(bases.Reuse):
        pass

    with pytest.raises(TypeError, match="recall"):
        Unfinished()
    for kind, factory in {
        "start": starts.at_params,
        "direction": directions.gradient,
        "gate": gates.always,
        "selection": selections.everything,
        "combination": combinations.unit,
        "reuse": reuses.nothing,
    }.items():
        with pytest.raises(TypeError, match=f"{kind}=<function .*with its brackets"):
            optax_sam.sharpness_aware(ascents.to_radius(RHO), **{kind: factory})
    with pytest.raises(TypeError, match="geometry=<function"):
        ascents.to_radius(RHO, geometries.euclidean)


def first_leaf(tree, change):
    leaves, treedef = jax.tree.flatten(tree)
    return jax.tree.unflatten(treedef, [change(leaves[0]), *leaves[1:]])


@dataclasses.dataclass(frozen=True)
class Wrong(bases.Direction, bases.Combination, bases.Reuse):
    """Returns something else than was promised, by the name of what is wrong."""

    what: str

    def spoilt(self, tree):
        changes = {
            "structure": lambda: {"no": tree},
            "shape": lambda: first_leaf(tree, lambda x: x[..., None]),
            "dtype": lambda: first_leaf(tree, lambda x: x.astype(jnp.int32)),
        }
        return changes[self.what]()

    def read(self, state, step):
        return self.spoilt(step.grads), state

    def combine(self, step):
        return self.spoilt(step.perturbed_grads)

    def recall(self, state, step):
        return self.spoilt(step.grads), state


@pytest.mark.parametrize("what", ["structure", "shape", "dtype"])
@pytest.mark.parametrize("kind", ["direction", "combination", "reuse"])
def test_a_tree_that_is_not_like_the_parameters_is_refused_with_the_piece_s_name(kind, what):
    gate = gates.after(9) if kind == "reuse" else gates.always()
    method = optax_sam.sharpness_aware(ascents.to_radius(RHO), gate=gate, **{kind: Wrong(what)})
    words = {"structure": "a tree of the structure", "shape": "the shape", "dtype": "int32 at"}[what]
    with pytest.raises(ValueError, match=rf"^{kind}=Wrong\(what='{what}'\) returned {words}"):
        one_step(method, init_params(), make_batch())


@pytest.mark.parametrize("what", ["structure", "shape", "dtype"])
def test_an_ascent_that_returns_another_tree_is_refused(what):
    ascent = optax.stateless(lambda updates, params: Wrong(what).spoilt(updates))
    method = optax_sam.sharpness_aware(ascent)
    with pytest.raises(ValueError, match="^ascent=.* returned"):
        one_step(method, init_params(), make_batch())


@dataclasses.dataclass(frozen=True)
class WrongState(bases.Direction):
    """A state in bfloat16 that comes back as something else."""

    what: str

    def init(self, params, key):
        return {"mean": jnp.zeros([2], jnp.bfloat16)}

    def read(self, state, step):
        return step.grads, state

    def write(self, state, step):
        return {
            "dtype": {"mean": state["mean"].astype(jnp.float32)},
            "shape": {"mean": state["mean"][:1]},
            "structure": (state["mean"],),
        }[self.what]


@pytest.mark.parametrize("what", ["structure", "shape", "dtype"])
def test_a_state_that_changes_its_type_is_refused_with_the_piece_s_name(what):
    method = optax_sam.sharpness_aware(ascents.to_radius(RHO), direction=WrongState(what))
    with pytest.raises(ValueError, match=rf"^direction=WrongState\(what='{what}'\) returned (a|the) "):
        one_step(method, init_params(), make_batch())


@dataclasses.dataclass(frozen=True)
class Returns(bases.Direction, bases.Reuse, bases.Gate, bases.Start):
    """Returns what it is given, whatever was promised."""

    value: object

    def read(self, state, step):
        return self.value

    def recall(self, state, step):
        return self.value

    def due(self, state, step):
        return self.value

    def begin(self, state, step, climb):
        return self.value if not callable(self.value) else self.value(step)


WRONG = {
    "a direction alone": (
        "direction",
        jnp.ones(2),
        r"returned float32\[2\], no pair: return .direction, state.",
    ),
    "a descent alone": ("reuse", jnp.ones(2), r"returned float32\[2\], no pair: return .descent, state."),
    "no decision": ("gate", None, "returned a NoneType as its decision"),
    "a decision of another shape": ("gate", jnp.ones(1, bool), r"returned bool\[1\] as its decision"),
    "a number as decision": ("gate", jnp.ones([]), r"returned float32\[\] as its decision"),
    "no beginning": ("start", None, "returned a NoneType, no Began: return Began.point, oracle."),
    "a point in half precision": (
        "start",
        lambda step: bases.Began(jax.tree.map(lambda x: x.astype(jnp.float16), step.params), step.oracle),
        "returned float16 at .* where the parameter has float32",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_a_piece_returns_is_refused_by_its_name(name):
    kind, value, words = WRONG[name]
    others = {"gate": gates.after(9)} if kind == "reuse" else {}
    with pytest.raises(ValueError, match=rf"^{kind}=Returns.* {words}"):
        method = optax_sam.sharpness_aware(ascents.to_radius(RHO), **{kind: Returns(value)}, **others)
        one_step(method, init_params(), make_batch())


def test_an_initial_state_of_python_numbers_is_refused_with_the_piece_s_name():
    class Counts(bases.Direction):
        def init(self, params, key):
            return {"count": 0}

        def read(self, state, step):
            return step.grads, state

    method = optax_sam.sharpness_aware(ascents.to_radius(RHO), direction=Counts())
    with pytest.raises(ValueError, match=r"^direction.init=.* returned a int, no array, at \['count'\]"):
        method.init(init_params())


def test_a_selection_that_returns_no_oracle_is_refused():
    class Nothing(bases.Selection):
        def select(self, step):
            return step.oracle.batch

    method = optax_sam.sharpness_aware(ascents.to_radius(RHO), selection=Nothing())
    with pytest.raises(ValueError, match="selection=.* returned a dict, no StepOracle"):
        one_step(method, init_params(), make_batch())


def test_a_user_s_oracle_shows_what_a_user_gives():
    given = {
        "losses",
        "batch",
        "params",
        "has_aux",
        "indices",
        "weights",
        "whole_batch",
        "key",
        "loss_scale",
        "args",
    }
    assert {field.name for field in dataclasses.fields(optax_sam.Oracle)} == given
    method = optax_sam.ausam(48)
    state = method.init(init_params())
    *_, oracle = method.value_and_grad(losses)(
        init_params(), make_batch(), state=state, indices=make_indices()
    )
    assert isinstance(oracle, optax_sam.Oracle) and oracle.batch["label"].shape == (16,)
    assert set(vars(oracle)) - given == {"_objective", "_started"}


def test_a_start_that_compares_losses_refuses_a_selection_of_other_ones():
    """The scores would be differences between examples, or between losses, that have nothing in common."""
    params, rows = jnp.ones(3), jnp.linspace(-1.0, 2.0, 24).reshape(8, 3)
    of_rows = lambda w, rows: jnp.square(rows @ w)
    others = (
        selections.on_part(0, 2),
        selections.on_surrogate(lambda w, rows: 100 + rows @ w),
        selections.whole_batch(),
        selections.largest_increase(0.5),
    )
    same = (selections.everything(), selections.emphasized(lambda rows: jnp.abs(rows[:, 0])))

    def scored(selection, **arguments):
        start = starts.drawn_by_score(8, 0.5, **arguments)
        method = optax_sam.sharpness_aware(optax_sam.ascents.to_radius(0.1), start=start, selection=selection)
        step = optax_sam.step(optax.chain(method, optax.sgd(0.1)), of_rows)
        return step(params, (method.init(params), optax.sgd(0.1).init(params)), rows, indices=jnp.arange(8))

    for selection in others:
        with pytest.raises(ValueError, match=r"^start=.* compares .* selection=.* selections.everything\(\)"):
            scored(selection)
    for selection, arguments in [(s, {}) for s in same] + [(s, {"score": "gradient_norm"}) for s in others]:
        _, (state, _), _ = scored(selection, **arguments)
        drawn = state.start.times_scored > 0
        assert drawn.sum() == 4 and np.all(np.asarray(state.start.score_sum)[np.asarray(drawn)] > 0)
