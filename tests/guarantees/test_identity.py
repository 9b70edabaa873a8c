"""Equal methods are one method; unequal ones in the step and in the chain are told apart by name."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_sam
from optax_sam import ascents, gates, reuses
from optax_sam.engine.identity import difference
from tests.problem import assert_trees_equal, init_params, losses, make_batch
from tests.registry import CASES, make_step

SEEN = [n for n, case in CASES.items()]


@pytest.mark.parametrize("name", SEEN)
def test_a_method_made_twice_is_one(name):
    case = CASES[name]
    if name.startswith("m_") or name == "accumulated" or case.method.__module__.startswith("optax_sam"):
        assert difference(case.make().method, case.make().method) is None


def test_a_factory_called_twice_steps_as_one_object_does():
    """Momentum SAM sees the base optimizer's momentum, and the loss is traced once."""

    def made():
        sam = optax_sam.momentum_sam(0.3)
        return sam, optax.chain(sam, optax.clip_by_global_norm(1.0), optax.sgd(0.1, momentum=0.9))

    calls = []

    def counted(params, batch):
        calls.append(1)
        return losses(params, batch)

    found = []
    for sam, tx in ((made()[0], made()[1]), made()):
        step, run = jax.jit(make_step(sam, tx, counted)), (init_params(), tx.init(init_params()))
        for number in range(3):
            *run, _ = step(*run, make_batch(number), jnp.arange(16))
        found.append(run)
    assert_trees_equal(*found)
    assert len(calls) == 2 and optax_sam.info(found[0][1])["gradients"] == 3


def finish(sam, other):
    state = sam.init(init_params())
    _, grads, oracle = sam.value_and_grad(losses)(init_params(), make_batch(), state=state)
    return other.update(grads, other.init(init_params()), init_params(), oracle=oracle)


def schedule():
    return optax.linear_schedule(0.1, 0.2, 10)


UNEQUAL = {
    "a number": (optax_sam.sam(0.1), optax_sam.sam(0.2), "method.ascent.*rho is 0.1 in one and 0.2"),
    "a kind": (
        optax_sam.sam(),
        optax_sam.asam(0.05),
        "method.ascent.*geometry is Euclidean.* in one and Elem",
    ),
    "a piece": (optax_sam.sam(), optax_sam.rst(), "method.gate is Always"),
    "a seed": (optax_sam.rst(seed=1), optax_sam.rst(seed=2), "method.seed is 1 in one and 2"),
    "an array": (optax_sam.sam(np.float32(0.1)), optax_sam.sam(np.float32(0.2)), "rho is .*0.1.* and .*0.2"),
    "a wrapper": (
        optax_sam.per_microbatch(optax_sam.sam(), 2),
        optax_sam.per_microbatch(optax_sam.sam(), 4),
        "method.num_microbatches is 2 in one and 4",
    ),
    "two schedules of one formula": (
        optax_sam.sam(schedule()),
        optax_sam.sam(schedule()),
        "rho is a function of its own in each",
    ),
    "two chains": (
        optax_sam.sharpness_aware(optax.chain(ascents.to_radius(0.1))),
        optax_sam.sharpness_aware(optax.chain(ascents.to_radius(0.1))),
        "method.ascent.init is a function of its own",
    ),
}


@pytest.mark.parametrize("name", UNEQUAL)
def test_unequal_methods_are_an_error_that_names_the_first_difference(name):
    one, other, words = UNEQUAL[name]
    with pytest.raises(ValueError, match=words) as error:
        finish(one, other)
    assert re.search(r"Use one object .* optax_sam.step\(tx, losses\)", str(error.value))
    finish(one, one)


def test_injected_numbers_cannot_be_compared_and_say_what_to_do():
    tx = optax.inject_hyperparams(optax_sam.sam)(rho=0.05)
    sam, params = optax_sam.sam(0.05), init_params()

    @jax.jit
    def step(params):
        _, grads, oracle = sam.value_and_grad(losses)(params, make_batch(), state=sam.init(params))
        return tx.update(grads, tx.init(params), params, oracle=oracle)

    with pytest.raises(ValueError, match="rho is .* optax_sam.step"):
        step(params)


@dataclasses.dataclass(frozen=True, eq=False)
class Record:
    """Compared field by field, whatever `==` says."""

    value: object


def test_values_are_compared_by_dtype_and_content():
    def f():
        return 1

    same = [
        (Record(jnp.ones(2)), Record(jnp.ones(2))),
        (Record(float("nan")), Record(float("nan"))),
        (Record({"a": (1, np.float32(2))}), Record({"a": (1, np.float32(2))})),
        (Record(f), Record(f)),
        (Record(1), Record(1.0)),
        (Record(0.1), Record(np.float64(0.1))),
        (Record(jax.random.key(1)), Record(jax.random.key(1))),
        (gates.every(3), gates.every(3)),
        (ascents.to_radius(0.1), ascents.to_radius(0.1)),
    ]
    other = [
        (Record(jnp.ones(2)), Record(jnp.ones(2, jnp.int32))),
        (Record(jnp.ones(2)), Record(jnp.zeros(2))),
        (Record(1), Record(1.5)),
        (Record(True), Record(1)),
        (Record([1]), Record((1,))),
        (Record({"a": 1}), Record({"b": 1})),
        (Record((1, 2)), Record((1, 2, 3))),
        (Record(lambda: 1), Record(lambda: 1)),
        (Record(jax.random.key(1)), Record(jax.random.key(2))),
        (gates.every(3), gates.after(3)),
        (reuses.decayed_difference(0.5, 3), reuses.decayed_difference(0.5, 4)),
    ]
    assert [difference(x, y) for x, y in same] == [None] * len(same)
    assert all(difference(x, y) is not None for x, y in other)


def test_a_momentum_with_nothing_behind_it_may_point_either_way():
    """Heavy ball with the rate inside: the trace points downhill."""
    base = optax.chain(optax.scale_by_learning_rate(0.1), optax.trace(0.9))
    params, batch = jnp.asarray([0.3, -0.2, 0.5]), jnp.eye(3)
    losses = lambda params, batch: jnp.square(jnp.tanh(batch @ params) - 1)
    guessed = optax.chain(optax_sam.momentum_sam(0.5), base)
    named = optax.named_chain(
        ("sam", optax_sam.momentum_sam(0.5)), ("mean", optax.trace(0.9)), ("rate", optax.scale(-0.1))
    )
    optax_sam.step(named, losses)(params, named.init(params), batch)
    with pytest.raises(ValueError, match="which way is uphill, read_momentum="):
        optax_sam.step(guessed, losses)(params, guessed.init(params), batch)
    uphill = lambda state: jax.tree.map(jnp.negative, state[1][1].trace)
    told = optax.chain(optax_sam.momentum_sam(0.5, read_momentum=uphill), base)
    usual = optax.chain(optax_sam.momentum_sam(0.5), optax.sgd(0.1, momentum=0.9))
    found = []
    for tx in (told, usual):
        step, moved, state = jax.jit(optax_sam.step(tx, losses)), params, tx.init(params)
        for _ in range(4):
            moved, state, _ = step(moved, state, batch)
        found.append(moved)
    np.testing.assert_allclose(*found, rtol=1e-5)


BEFORE_THE_MOMENTUM = {
    "a chain": lambda: optax.chain(optax.scale_by_learning_rate(0.1), optax.trace(0.9)),
    "rmsprop": lambda: optax.rmsprop(0.05, momentum=0.9),
    "lars": lambda: optax.lars(0.05),
    "a trace alone": lambda: optax.trace(0.9),
}
TREES = {"an array": lambda w: w, "a dict": lambda w: {"w": w}, "a list": lambda w: [w, (w, {"v": w})]}


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("base", BEFORE_THE_MOMENTUM)
def test_a_momentum_with_nothing_behind_it_is_refused_in_every_tree(base, tree, as_optax_promotes):
    params = TREES[tree](jnp.asarray([0.3, -0.2, 0.5]))
    losses = lambda params, batch: sum(jnp.square(batch @ w) for w in jax.tree.leaves(params))
    tx = optax.chain(optax_sam.momentum_sam(0.5), BEFORE_THE_MOMENTUM[base]())
    with pytest.raises(ValueError, match="which way is uphill, read_momentum="):
        optax_sam.step(tx, losses)(params, tx.init(params), jnp.eye(3))
    for behind in (optax.sgd(0.1, momentum=0.9), optax.adam(0.1), optax.nadamw(0.1)):
        tx = optax.chain(optax_sam.momentum_sam(0.5), behind)
        optax_sam.step(tx, losses)(params, tx.init(params), jnp.eye(3))


def test_a_momentum_of_no_parameters_is_no_reason_to_refuse():
    """A group of a partition that nobody is in, a mask that hides all, a model without parameters."""
    sam = optax.chain(optax_sam.momentum_sam(0.5), optax.sgd(0.1, momentum=0.9))
    params, losses = {"w": jnp.array([0.3, -0.2, 0.5])}, lambda params, batch: jnp.square(batch @ params["w"])
    for tx in (
        optax.partition({"sam": sam, "other": optax.sgd(0.1)}, {"w": "other"}),
        optax.masked(sam, {"w": False}),
    ):
        optax_sam.step(tx, losses)(params, tx.init(params), jnp.eye(3))
    optax_sam.step(sam, lambda params, batch: jnp.sum(batch, -1))({}, sam.init({}), jnp.eye(3))


def test_momentum_sam_follows_the_momentum_of_its_base_by_every_door_or_refuses():
    """With an oracle by hand it is in sight inside `followed_by`, and not in a chain."""
    rows, start = jnp.asarray([[1.0, 0.2, -0.5], [0.3, -1.2, 0.4]]), jnp.asarray([1.0, -0.5, 0.2])
    of_array = lambda w, rows: jnp.square(jnp.tanh(rows @ w) - 0.5)
    of_tree = lambda params, rows: of_array(params["w"], rows) + 0 * params["b"]
    sam, base = optax_sam.momentum_sam(0.5), optax.sgd(0.3, momentum=0.2)
    wanted, v = start, jnp.zeros(3)
    for _ in range(4):
        away = 0.5 * v / jnp.where(jnp.any(v != 0), jnp.linalg.norm(v), 1.0)
        v = 0.2 * v + jax.grad(lambda w: of_array(w, rows).mean())(wanted - away)
        wanted = wanted - 0.3 * v

    tx = optax.partition({"a": optax.chain(sam, base), "b": optax.sgd(0.1)}, {"w": "a", "b": "b"})
    params = {"w": start, "b": jnp.asarray(0.3)}
    state, step = tx.init(params), jax.jit(optax_sam.step(tx, of_tree))
    assert optax_sam.directions.where_momentum_is(state, params).endswith("[1][0].trace")
    for _ in range(4):
        params, state, _ = step(params, state, rows)
    np.testing.assert_allclose(params["w"], wanted, rtol=1e-5)

    whole, oracle = optax_sam.followed_by(sam, base), optax_sam.Oracle(of_array, rows)
    params, state = start, whole.init(start)
    update = jax.jit(lambda params, state: whole.update(params, state, params, oracle=oracle))
    for _ in range(4):
        updates, state = update(params, state)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(params, wanted, rtol=1e-5)

    tx = optax.chain(sam, base)
    with pytest.raises(ValueError, match=r"^oracle was made by hand.* optax_sam.step\(tx, losses\)"):
        tx.update(start, tx.init(start), start, oracle=oracle)


def test_where_momentum_sam_finds_the_momentum_is_told_and_can_be_chosen():
    params, where = init_params(), optax_sam.directions.where_momentum_is
    sam = optax_sam.momentum_sam(0.3)
    assert (
        where(optax.chain(sam, optax.sgd(0.1, momentum=0.9)).init(params), params) == "opt_state[1][0].trace"
    )
    assert where(optax.chain(sam, optax.adam(0.1)).init(params), params) == "opt_state[1][0].mu"
    assert where(optax.chain(sam, optax.sgd(0.1)).init(params), params) == "own"
    both = optax.chain(sam, optax.adam(0.1), optax.trace(0.5))
    with pytest.raises(ValueError, match=r"2 momenta .* opt_state\[2\].trace, opt_state\[1\]\[0\].mu: say"):
        where(both.init(params), params)
    with pytest.raises(ValueError, match="read_momentum=lambda opt_state"):
        optax_sam.step(both, losses)(params, both.init(params), make_batch())

    def run(method, base):
        tx = optax.chain(method, base)
        step, run = jax.jit(optax_sam.step(tx, losses)), (params, tx.init(params))
        for number in range(3):
            *run, _ = step(*run, make_batch(number))
        return run[0]

    base = optax.sgd(0.1, momentum=0.9)
    chosen = optax_sam.momentum_sam(0.3, read_momentum=lambda state: state[1][0].trace)
    assert_trees_equal(run(chosen, base), run(sam, base))
    wrong = optax_sam.momentum_sam(0.3, read_momentum=lambda state: state[1][0].trace["layer_0"])
    with pytest.raises(ValueError, match="read_momentum returned a tree of the structure"):
        run(wrong, base)


def test_a_trace_inside_the_ascent_is_no_momentum_of_the_base():
    ascent = optax.chain(optax.trace(0.5), optax_sam.ascents.to_radius(0.1))
    pieces = optax_sam.starts.ahead(), optax_sam.directions.descent_momentum()
    method = optax_sam.sharpness_aware(ascent, start=pieces[0], direction=pieces[1])
    tx, params = optax.chain(method, optax.sgd(0.05)), jnp.ones(3)
    state, batch = tx.init(params), jnp.asarray(np.random.default_rng(0).normal(size=(8, 3)), jnp.float32)
    assert optax_sam.directions.where_momentum_is(state, params) == "own"
    step = optax_sam.step(tx, lambda params, batch: jnp.square(batch @ params - 1))
    for _ in range(2):
        params, state, _ = step(params, state, batch)
    np.testing.assert_allclose(optax_sam.info(state)["perturbation_norm"], 0.1, rtol=1e-5)


def test_a_state_that_is_fetched_to_the_host_goes_on_outside_jit():
    tx = optax.chain(optax_sam.ausam(6, 0.1), optax.sgd(0.1))
    step = optax_sam.step(tx, lambda params, batch: jnp.square(batch @ params - 1))
    batch, params = jnp.asarray(np.random.default_rng(0).normal(size=(6, 3)), jnp.float32), jnp.ones(3)
    state = tx.init(params)
    wanted = step(params, state, batch, indices=jnp.arange(6))
    found = step(params, jax.device_get(state), batch, indices=jnp.arange(6))
    jax.tree.map(np.testing.assert_array_equal, found, wanted)
