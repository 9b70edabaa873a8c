"""What happens to the state, over every public method: transformations of JAX, dtypes, bad gradients."""

import copy
import functools
import inspect
import pickle

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_sam
from tests.problem import (
    assert_trees_close,
    assert_trees_equal,
    init_params,
    losses,
    make_batch,
    make_indices,
)
from tests.registry import GATED, VARIANTS, WRAPPED, compiled, first_step, make_step, one_step, over, train

every_kind = pytest.mark.parametrize("name", over(WRAPPED), scope="module")
every_gated = pytest.mark.parametrize("name", GATED)


@every_kind
def test_state_of_weakly_typed_parameters_is_strongly_typed(name):
    method = VARIANTS[name].make()
    params = jax.tree.map(lambda x: jnp.full(x.shape, 0.1), init_params())
    assert all(x.weak_type for x in jax.tree.leaves(params))
    state = method.init(params)
    after = jax.eval_shape(lambda: one_step(method, params, make_batch(), state=state))[1]
    for tree in (state, after):
        assert not any(x.weak_type for x in jax.tree.leaves(tree))


@every_kind
def test_state_of_numpy_arrays_and_python_numbers_is_that_of_arrays(name):
    params = {"w": np.ones([2, 3]), "b": 0.5}
    state = VARIANTS[name].make().init(params)
    wanted = VARIANTS[name].make().init(jax.tree.map(jnp.asarray, params))
    chex.assert_trees_all_equal(state, wanted)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, wanted)


@every_kind
def test_scan_cond_and_one_trace_for_two_calls(name):
    tx, shared = compiled(name)
    params, traces = init_params(), []

    def step(params, state, batch, indices):  # by this name, it is found in the compilation cache
        traces.append(1)
        return shared.__wrapped__(params, state, batch, indices)

    jitted = jax.jit(step)
    looped = params, tx.init(params)
    for _ in range(3):
        looped = jitted(*looped, make_batch(), make_indices())[:2]
    assert len(traces) == 1

    @jax.jit
    def scanned(params, state, true):
        def body(carry, _):
            return jax.lax.cond(
                true, lambda: step(*carry, make_batch(), make_indices())[:2], lambda: carry
            ), None

        return jax.lax.scan(body, (params, state), length=3)[0]

    assert_trees_close(scanned(params, tx.init(params), True), looped, rtol=1e-5, atol=1e-6)


@every_kind
def test_buffers_may_be_donated_twice(name):
    method = VARIANTS[name].make()
    tx = optax.chain(method, optax.sgd(0.1, momentum=0.9))
    step = jax.jit(make_step(method, tx), donate_argnums=(0, 1))
    for _ in range(2):
        params = init_params()
        state = tx.init(params)
        for _ in range(2):
            params, state, _ = step(params, state, make_batch(), make_indices())
    chex.assert_tree_all_finite(params)


@every_kind
def test_vmap_over_seeds_and_trajectories(name):
    tx, step = compiled(name)
    params, rows = init_params(), (make_batch(), make_indices())

    @jax.jit
    def both(stacked, *rows):
        states = jax.vmap(tx.init)(stacked)
        return jax.vmap(step.__wrapped__, in_axes=(0, 0, None, None))(stacked, states, *rows)

    together = both(jax.tree.map(lambda x: jnp.stack([x, 1.5 * x]), params), *rows)
    alone = step(params, tx.init(params), *rows)
    first = jax.tree.map(lambda x: x[0], together)
    assert_trees_close(first[0], alone[0], rtol=1e-5, atol=1e-6)
    assert optax_sam.info(together[1])["loss"].shape == (2,)


def test_vmap_over_a_gate_pays_for_both_branches():
    method = optax_sam.rst(probability=0.0)
    step = make_step(method, method)
    params, rows = init_params(), (make_batch(), make_indices())

    def flops(step, params, **fixed):
        return jax.jit(step).lower(params, state, *rows).compile().cost_analysis()["flops"]

    stacked = jax.tree.map(lambda x: jnp.stack([x, x]), params)
    state = jax.vmap(method.init)(stacked)
    together = flops(jax.vmap(step, in_axes=(0, 0, None, None)), stacked)
    state = method.init(params)
    closed, taken = (
        flops(lambda p, s, b, i, perturb=perturb: one_step(method, p, b, state=s, perturb=perturb), params)
        for perturb in (False, True)
    )
    assert together > 1.8 * taken > 3 * closed


@functools.cache
def in_float32(name):
    return train(name, steps=2)[0]


@every_kind
@pytest.mark.parametrize(
    ("x64", "debug_nans", "dtype"),
    [
        pytest.param(True, True, jnp.float64, id="x64 and debug_nans"),
        pytest.param(True, False, jnp.float32, id="x64, float32 parameters", marks=pytest.mark.slow),
        pytest.param(False, True, jnp.float32, id="debug_nans", marks=pytest.mark.slow),
    ],
)
def test_in_every_mode_of_jax_dtypes_are_kept_and_nothing_is_nan(name, x64, debug_nans, dtype):
    wanted, start = in_float32(name), jax.device_get(init_params())
    with jax.enable_x64(x64), jax.debug_nans(debug_nans):
        start = jax.tree.map(lambda x: jnp.asarray(x, dtype), start)
        params, state, _ = train(VARIANTS[name].make(), steps=2, params=start, dtype=dtype)
        assert all(x.dtype == dtype for x in jax.tree.leaves(params))
        chex.assert_tree_all_finite((params, state))
        if "tsam" not in name and "ausam" not in name:  # they draw in the dtype at hand
            narrow = jax.tree.map(lambda x: x.astype(jnp.float32), params)
            assert_trees_close(narrow, wanted, rtol=1e-4, atol=1e-5)


@every_kind
def test_state_never_absorbs_a_non_finite_gradient(name):
    method, params = VARIANTS[name].make(), init_params()
    _, state, _ = first_step(name, perturb=True)

    def broken(params, batch):
        return losses(params, batch) * jnp.inf

    _, after, _ = one_step(method, params, make_batch(1), broken, state, perturb=True)
    for piece in ("start", "direction", "gate", "reuse"):
        assert_trees_equal(getattr(after, piece), getattr(state, piece))
    chex.assert_tree_all_finite(after)


@every_kind
def test_method_survives_copy_pickle_replace_and_tree_map(name):
    method = VARIANTS[name].make()
    wanted = first_step(name)[0]
    forms = [
        copy.copy(method),
        copy.deepcopy(method),
        method._replace(),
        jax.tree.map(lambda f: f, method),
        pickle.loads(pickle.dumps(method)),
    ]
    for form in forms:
        assert isinstance(form, optax_sam.SharpnessAware)
        assert form.init(init_params()).due == method.init(init_params()).due
    assert_trees_equal(one_step(forms[-1], init_params(), make_batch())[0], wanted)
    init, update = method
    assert callable(init) and callable(update)


DRAWING = [n for n in WRAPPED if "seed" in inspect.signature(VARIANTS[n].method).parameters]


@pytest.mark.parametrize("name", DRAWING)
def test_seed_may_be_an_array(name):
    case = VARIANTS[name]

    def first_key(seed):
        return case.make(seed=seed).init(init_params()).key

    keys = jax.vmap(first_key)(jnp.arange(3))
    assert keys.shape == (3, 2) and keys.dtype == jnp.uint32
    assert_trees_equal(keys[1], first_key(1))
