"""Numbers and schedules of every public method: given directly, and under `optax.inject_hyperparams`."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_sam
from optax_sam.engine.hyperparameters import ScalarOrSchedule, declared
from tests.problem import (
    assert_trees_close,
    assert_trees_equal,
    init_params,
    losses,
    make_batch,
    make_indices,
)
from tests.registry import METHODS, over

STEPS = 6


def of_float(function):
    """A schedule: as is, the step count is an integer."""
    return lambda step: function(jnp.asarray(step).astype(jnp.float32))


SCHEDULES = {
    "rho": of_float(lambda t: 0.05 * (t + 1)),
    "radius": of_float(lambda t: jnp.where(t % 2 == 0, 0.1, 1.0)),
    "eta": of_float(lambda t: 0.1 * (t + 1)),
    "probability": of_float(lambda t: jnp.where(t % 3 == 1, 0.0, 1.0)),
    "alpha": of_float(lambda t: 0.5 + 0.25 * t),
    "tilt": of_float(lambda t: 20 * t),
    "noise_scale": of_float(lambda t: 0.02 * (t + 1)),
    "reuse_decay": of_float(lambda t: 0.9 / (t + 1)),
}
"""A schedule for every argument that is a number; a new one that is missing here fails the tests."""


def parameters(name):
    return inspect.signature(METHODS[name].method).parameters.values()


def constants(name):
    """The arguments that may be arrays with their defaults; not the seed, which `init` alone reads."""
    static = optax_sam.static_arguments(METHODS[name].method)
    found = {p.name: p.default for p in parameters(name) if p.name not in (*static, "seed")}
    return found | ({"alpha": 1.5} if name == "grst" else {}) | ({"radius": 0.1} if name == "tsam" else {})


def schedulable(name):
    """The arguments that may be schedules."""
    return [p.name for p in parameters(name) if declared(p.annotation)[0] == ScalarOrSchedule]


def structural(name):
    """The numbers that shape the program."""
    static = optax_sam.static_arguments(METHODS[name].method)
    values = {p.name: p.default for p in parameters(name)} | METHODS[name].required | METHODS[name].own
    return {k: values[k] for k in static if type(values[k]) in (int, float)}


every_kind = pytest.mark.parametrize("name", over(METHODS))
every_structural_argument = pytest.mark.parametrize(
    ("name", "argument"), [(n, argument) for n in METHODS for argument in structural(n)]
)
every_plain_number = pytest.mark.parametrize(
    ("name", "argument"), [(n, a) for n in METHODS for a in constants(n) if a not in schedulable(n)]
)


def inject(name, **arguments):
    """The method in `inject_hyperparams`, as the documentation shows it."""
    case = METHODS[name]
    static = optax_sam.static_arguments(case.method)
    factory = optax.inject_hyperparams(case.method, static_args=static)
    return factory(**{**case.required, **case.own, **constants(name), **arguments})


def jitted(tx):
    """One step at fixed parameters, with an oracle by hand: `step(state, number) -> descent, state`."""

    @jax.jit
    def update(params, state, batch, indices):
        oracle = optax_sam.Oracle(losses, batch, indices=indices)
        return tx.update(params, state, params, oracle=oracle)

    params = init_params()
    return lambda state, number: update(params, state, make_batch(number), make_indices(number))


@functools.cache
def injected_constants(name):
    """`(state, step)` under `inject_hyperparams`, which keeps the numbers in its state."""
    tx = inject(name)
    return jax.jit(tx.init)(init_params()), jitted(tx)


def step_with(name, values, inner_state, number):
    """A step with numbers set by hand, as Optax documents it: one program for all values."""
    state, step = injected_constants(name)
    values = {argument: jnp.asarray(value, jnp.float32) for argument, value in values.items()}
    state = state._replace(hyperparams=state.hyperparams | values, inner_state=inner_state)
    descent, after = step(state, number)
    return descent, after.inner_state


def run(tx):
    """`(state before, descent, state after)` of some steps."""
    state, step, seen = tx.init(init_params()), jitted(tx), []
    for number in range(STEPS):
        descent, after = step(state, number)
        seen.append((state, descent, after))
        state = after
    return seen


def at(arguments, number):
    return {argument: SCHEDULES[argument](number) for argument in arguments}


def assert_steps_are_those_of_constants(name, arguments, seen):
    """Every step is that with the schedules' values at that step, and not with their first ones.

    The decision for the next step is left to the caller.
    """
    frozen = dict.fromkeys(arguments, True)
    for number, (before, descent, after) in enumerate(seen):
        wanted, wanted_after = step_with(name, at(arguments, number), before, number)
        assert_trees_close(descent, wanted, rtol=1e-5, atol=1e-6)
        assert_trees_close(after._replace(due=wanted_after.due), wanted_after, rtol=1e-5, atol=1e-6)
        for argument in arguments:
            values = at(arguments, number) | at([argument], 0)
            other, other_after = step_with(name, values, before, number)
            same = optax.tree.norm(optax.tree.sub(other, descent)) < 1e-4 * optax.tree.norm(descent)
            frozen[argument] &= bool(same & (other_after.due == wanted_after.due))
    assert not any(frozen.values()), frozen


def decisions(seen):
    return [int(optax_sam.info(after)["perturbed"]) for _, _, after in seen]


@every_kind
def test_schedule_is_read_at_every_step(name):
    """Wherever the annotation allows one. The decision about a step is that of its own probability."""
    arguments = schedulable(name)
    seen = run(METHODS[name].make(**{**constants(name), **{a: SCHEDULES[a] for a in arguments}}))
    assert_steps_are_those_of_constants(name, arguments, seen)
    if "probability" in arguments:
        assert decisions(seen) == [SCHEDULES["probability"](number) for number in range(STEPS)]


@every_kind
def test_injected_schedule_is_read_at_every_step(name):
    """Any number may be one. A step is decided upon at the end of the one before, with the numbers of that
    one: a schedule of the probability acts one step late.
    """
    arguments = list(constants(name))
    seen = run(inject(name, **{argument: SCHEDULES[argument] for argument in arguments}))
    inner = [(before.inner_state, descent, after.inner_state) for before, descent, after in seen]
    assert_steps_are_those_of_constants(name, arguments, inner)
    for number, (_, _, after) in enumerate(seen):
        for argument, value in at(arguments, number).items():
            np.testing.assert_allclose(after.hyperparams[argument], value, rtol=1e-6)
    if "probability" in arguments:
        late = [0, *range(STEPS - 1)]
        assert decisions(seen) == [SCHEDULES["probability"](number) for number in late]


@every_kind
def test_injected_constants_are_those_given_directly(name):
    """Jitted `init` and `update`, with every default an array."""
    method = METHODS[name].make(**constants(name))
    state, _ = injected_constants(name)
    assert set(constants(name)) <= set(state.hyperparams)
    assert_trees_equal(state.inner_state, jax.jit(method.init)(init_params()))
    inner_state = state.inner_state
    for _, descent, after in run(method):
        got, inner_state = step_with(name, {}, inner_state, int(inner_state.step))
        assert_trees_close(got, descent, rtol=1e-5, atol=1e-6)
        assert_trees_close(inner_state, after, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@every_kind
def test_injected_numbers_are_in_the_dtype_of_the_parameters_and_types_stay(name, dtype):
    """As Optax converts them, which must not reach the types of the state."""
    tx, params = inject(name), init_params(dtype)
    state = tx.init(params)
    assert all(state.hyperparams[argument].dtype == dtype for argument in constants(name))

    def update(params, state):
        oracle = optax_sam.Oracle(losses, make_batch(dtype=dtype), indices=make_indices())
        return tx.update(params, state, params, oracle=oracle)

    types = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), tree)
    descent, after = jax.eval_shape(update, params, state)
    assert types(descent) == types(params)
    assert types(after) == types(state)
    inner = METHODS[name].make(**constants(name)).init(params)
    assert types(state.inner_state) == types(inner)


def test_injected_probability_has_its_reciprocal_as_strength_of_grst():
    """`alpha=None`: in a perturbed step `g + (g' - g) / p`."""
    tx, params = optax.inject_hyperparams(optax_sam.grst)(rho=0.5, probability=0.25), jnp.array([3.0, 4.0])
    update = jax.jit(lambda state: tx.update(params, state, params, grad_fn=lambda p: p, perturb=True))
    descent, _ = update(tx.init(params))
    np.testing.assert_allclose(descent, params * (1 + 4 * 0.5 / 5), rtol=1e-6)


@every_structural_argument
def test_structural_argument_as_an_array_or_schedule_shows_static_arguments(name, argument):
    case, value = METHODS[name], structural(name)[argument]
    wanted = rf"^{argument} is an array(.|\n)*inject_hyperparams(.|\n)*static_arguments"
    for array in (np.asarray(value), jnp.asarray(value)):
        with pytest.raises(TypeError, match=wanted):
            case.make(**{argument: array})
    others = set(optax_sam.static_arguments(case.method)) - {argument}
    factory = optax.inject_hyperparams(case.method, static_args=others)
    for given in (value, lambda step: jnp.asarray(value)):
        with pytest.raises(TypeError, match=wanted):
            factory(**{**case.required, **case.own, argument: given}).init(init_params())


@every_plain_number
def test_schedule_where_none_is_read_is_refused(name, argument):
    with pytest.raises(TypeError, match=rf"^{argument}=.*pass a number"):
        METHODS[name].make(**{argument: SCHEDULES[argument]})


@every_kind
def test_inject_hyperparams_needs_static_arguments_only_where_there_are_structural_ones(name):
    case = METHODS[name]
    tx = optax.inject_hyperparams(case.method)(**case.required, **case.own)
    if structural(name):
        with pytest.raises(TypeError, match=r"an array(.|\n)*static_arguments"):
            tx.init(init_params())
    else:
        assert_trees_equal(tx.init(init_params()).inner_state, case.make().init(init_params()))


@pytest.mark.parametrize(("argument", "wrong"), [("rho", -0.5), ("probability", 50.0), ("rho", float("inf"))])
def test_an_injected_number_is_refused_as_if_it_were_given_directly(argument, wrong):
    tx = optax.inject_hyperparams(optax_sam.rst)(**{argument: wrong})
    with pytest.raises(ValueError, match=rf"^{argument}=Array.*: pass "):
        tx.init(init_params())


@pytest.mark.parametrize(
    ("given", "error"), [(jnp.array([0.05]), ValueError), ("0.05", TypeError), (0.05 + 0.1j, TypeError)]
)
def test_a_schedule_that_gives_no_number_is_named(given, error):
    def falling(step):
        return given

    tx = optax.chain(optax_sam.sam(falling), optax.sgd(0.1))
    step = jax.jit(optax_sam.step(tx, losses))
    with pytest.raises(error, match=r"^what the schedule <function .*falling.* gives.*: pass .*number"):
        step(init_params(), tx.init(init_params()), make_batch())
