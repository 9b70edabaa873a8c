"""Every guarantee, over every public method. Each test is named after the clause that it proves."""

import copy
import inspect
import pickle

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_sam
from tests.registry import (
    BATCH,
    GATED,
    METHODS,
    VARIANTS,
    WRAPPED,
    assert_trees_close,
    assert_trees_equal,
    base_trajectory,
    init_params,
    losses,
    make_batch,
    make_indices,
    make_step,
    train,
)

every_method = pytest.mark.parametrize("name", WRAPPED)
every_gated = pytest.mark.parametrize("name", GATED)


def one_step(method, params, batch, loss_fn=losses, state=None, indices=None, **fixed):
    """`(descent, state, first gradient)` of one jitted step of the method alone."""
    state = method.init(params) if state is None else state
    indices = make_indices() if indices is None else indices

    @jax.jit
    def step(params, state, batch, indices):
        _, grads, oracle = method.value_and_grad(loss_fn)(params, batch, state=state, indices=indices)
        return *method.update(grads, state, params, oracle=oracle, **fixed), grads

    return step(params, state, batch, indices)


def test_every_public_method_is_registered():
    methods = {
        name
        for name, value in vars(optax_sam).items()
        if inspect.isfunction(value) and value.__module__.startswith("optax_sam.methods.")
    }
    assert methods == set(METHODS)


def test_every_public_name_has_a_docstring():
    for name, value in vars(optax_sam).items():
        if not name.startswith("_"):
            assert inspect.getdoc(value), name


@every_method
def test_zero_radius_is_the_base_optimizer(name):
    case = VARIANTS[name]
    if case.without_radius is None:
        pytest.skip("its descent is a unit vector, whatever the radius")
    params, _, _ = train(case.make(**case.without_radius))
    assert_trees_close(params, base_trajectory(), rtol=2e-6, atol=2e-7)


@every_gated
def test_closed_gate_hands_the_gradient_on(name):
    method = VARIANTS[name].make()
    descent, state, grads = one_step(method, init_params(), make_batch(), perturb=False)
    if name.startswith("m_"):
        assert_trees_close(descent, grads)
    else:
        assert_trees_equal(descent, grads)
    assert optax_sam.info(state)["perturbed"] == 0


@every_method
def test_zero_gradient_gives_zero_perturbation(name):
    params = init_params()

    def flat(params, batch):
        return 0 * losses(params, batch)

    with jax.debug_nans(True):
        descent, state, _ = one_step(VARIANTS[name].make(), params, make_batch(), flat, perturb=True)
    assert all(np.all(np.asarray(x) == 0) for x in jax.tree.leaves(descent))
    assert optax_sam.info(state)["perturbation_norm"] == 0
    chex.assert_tree_all_finite(state)


@every_method
def test_none_empty_integer_leaves_pass_through(name):
    params = init_params() | {"none": None, "empty": jnp.zeros([0, 3]), "count": jnp.arange(3)}
    seen = []

    def look(params, batch):
        seen.append(params["count"])
        return losses(params, batch) + 0 * jnp.sum(params["empty"])

    descent, _, grads = one_step(VARIANTS[name].make(), params, make_batch(), look, perturb=True)
    for tree in (descent, grads):
        assert tree["none"] is None and tree["empty"].shape == (0, 3)
        assert tree["count"].dtype == params["count"].dtype
        assert np.all(np.asarray(tree["count"]) == 0)
    assert all(x.dtype == jnp.int32 for x in seen)
    without = one_step(VARIANTS[name].make(), init_params(), make_batch(), perturb=True)[0]
    if "tsam" not in name:  # its noise depends on the number of leaves
        assert_trees_close({k: descent[k] for k in without}, without)


@every_method
def test_complex_leaf_is_perturbed_uphill(name):
    params = {"w": jnp.array([1.0 + 2.0j, -0.5 + 0.3j])}
    target = jnp.array([0.3 - 1.0j, 1.2 + 0.4j])

    def distance(params, batch):
        return batch["image"][:, 0] ** 2 * jnp.sum(jnp.abs(params["w"] - target) ** 2)

    _, state, _ = one_step(VARIANTS[name].make(), params, make_batch(), distance, perturb=True)
    info = optax_sam.info(state)
    assert info["perturbed_loss"] > info["loss"]
    if name == "sam":  # the rise of a straight climb
        np.testing.assert_allclose(info["sharpness"], 0.05 * info["grad_norm"], rtol=0.1)


@every_method
def test_norms_do_not_overflow_in_float16(name):
    params = {"w": jnp.ones([1000], jnp.float16)}
    slope = jnp.full([1000], 300.0, jnp.float32)

    def linear(params, batch):
        return jnp.sum(slope * params["w"].astype(jnp.float32)) * jnp.ones_like(batch["image"][:, 0])

    _, state, grads = one_step(VARIANTS[name].make(), params, make_batch(), linear, perturb=True)
    info = optax_sam.info(state)
    assert grads["w"].dtype == jnp.float16
    np.testing.assert_allclose(info["grad_norm"], 300 * 1000**0.5, rtol=2e-3)
    radius = {"pugd": 1.0, "ausam": 0.1}.get(name.split("_")[0], 0.05)
    if name == "asam":
        radius = 0.5 * 1.01  # at weights of 1: rho (|w| + eta)
    np.testing.assert_allclose(info["perturbation_norm"], radius, rtol=5e-3)


@every_method
def test_huge_and_tiny_gradients_have_the_right_norm(name):
    for scale in (1e30, 1e-30):

        def scaled(params, batch, scale=scale):
            return scale * losses(params, batch)

        _, state, _ = one_step(VARIANTS[name].make(), init_params(), make_batch(), scaled, perturb=True)
        _, plain, _ = one_step(VARIANTS[name].make(), init_params(), make_batch(), perturb=True)
        got, wanted = optax_sam.info(state), optax_sam.info(plain)
        np.testing.assert_allclose(got["grad_norm"] / scale, wanted["grad_norm"], rtol=1e-5)
        np.testing.assert_allclose(got["perturbation_norm"], wanted["perturbation_norm"], rtol=1e-5)


@every_method
def test_state_keeps_structure_shapes_and_dtypes(name):
    method = VARIANTS[name].make()
    tx = optax.chain(method, optax.sgd(0.1, momentum=0.9))
    params = init_params()
    state = tx.init(params)
    step = make_step(method, tx)
    after = jax.eval_shape(step, params, state, make_batch(), make_indices())[1]
    assert jax.tree.structure(after) == jax.tree.structure(state)
    chex.assert_trees_all_equal_shapes_and_dtypes(after, jax.eval_shape(lambda s: s, state))
    assert not any(jax.tree.leaves(jax.tree.map(lambda x: x.weak_type, after)))
    chex.assert_trees_all_equal_shapes_and_dtypes(jax.eval_shape(tx.init, params), state)


@every_method
def test_scan_cond_and_one_trace_for_two_calls(name):
    method = VARIANTS[name].make()
    tx = optax.chain(method, optax.sgd(0.1, momentum=0.9))
    params, traces = init_params(), []
    step = make_step(method, tx)

    def counted(params, state, batch, indices):
        traces.append(1)
        return step(params, state, batch, indices)

    jitted = jax.jit(counted)
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


@every_method
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


@every_method
def test_vmap_over_seeds_and_trajectories(name):
    method = VARIANTS[name].make()
    tx = optax.chain(method, optax.sgd(0.1))
    step = make_step(method, tx)
    params = init_params()
    stacked = jax.tree.map(lambda x: jnp.stack([x, 1.5 * x]), params)
    states = jax.vmap(tx.init)(stacked)
    batch, indices = make_batch(), make_indices()
    together = jax.jit(jax.vmap(step, in_axes=(0, 0, None, None)))(stacked, states, batch, indices)
    alone = jax.jit(step)(params, tx.init(params), batch, indices)
    first = jax.tree.map(lambda x: x[0], together)
    assert_trees_close(first[0], alone[0], rtol=1e-5, atol=1e-6)
    assert optax_sam.info(together[1])["loss"].shape == (2,)


@every_method
def test_x64_keeps_float64(name):
    with jax.enable_x64(True):
        params, state, _ = train(VARIANTS[name].make(), steps=2, dtype=jnp.float64)
        assert all(x.dtype == jnp.float64 for x in jax.tree.leaves(params))
        chex.assert_tree_all_finite((params, state))


@every_method
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_gradient_dtype_is_kept(name, dtype):
    params = init_params(dtype)

    def wide(params, batch):
        return losses(jax.tree.map(lambda x: x.astype(jnp.float32), params), batch)

    method = VARIANTS[name].make()
    descent, state, _ = one_step(method, params, make_batch(), wide)
    assert all(x.dtype == dtype for x in jax.tree.leaves(descent))
    chex.assert_trees_all_equal_shapes_and_dtypes(state, method.init(params))
    chex.assert_tree_all_finite(descent)


@every_method
def test_unknown_extra_arguments_are_ignored(name):
    method = VARIANTS[name].make()
    first = one_step(method, init_params(), make_batch())[0]
    second = one_step(method, init_params(), make_batch(), unexpected=1, value=2.0)[0]
    assert_trees_equal(first, second)


@every_method
def test_gradient_evaluations_are_those_documented(name):
    case = VARIANTS[name]
    method = case.make()
    examples = []

    def counted(params, batch):
        size = batch["label"].shape[0]
        jax.debug.callback(lambda: examples.append(size))
        return losses(params, batch)

    state = method.init(init_params())

    @jax.jit
    def step(params, state, batch, indices):
        return one_step(method, params, batch, counted, state, indices)

    expected = 0.0
    for number in range(5):
        due = bool(method.due(state))
        examples.clear()
        _, state, _ = step(init_params(), state, make_batch(number), make_indices(number))
        jax.effects_barrier()
        cost = case.gradients if due else case.examples
        expected += cost
        assert due == bool(optax_sam.info(state)["perturbed"])
        if name != "ausam_gradient_norm":  # vmap hides the number of single-example calls
            assert sum(examples) == cost * BATCH
        np.testing.assert_allclose(optax_sam.info(state)["gradients"], expected, rtol=1e-6)


@every_gated
def test_host_decisions_follow_the_program(name):
    method = VARIANTS[name].make()
    tx = optax.chain(method, optax.sgd(0.1, momentum=0.9))
    inside = outside = (init_params(), tx.init(init_params()))

    def step(params, state, batch, indices, perturb):
        _, grads, oracle = method.value_and_grad(losses)(params, batch, state=state, indices=indices)
        updates, state = tx.update(grads, state, params, oracle=oracle, perturb=perturb)
        return optax.apply_updates(params, updates), state

    jitted = jax.jit(step, static_argnames="perturb")
    decisions = []
    for number in range(14):
        batch, indices = make_batch(number), make_indices(number)
        decisions.append(bool(optax_sam.due(outside[1])))
        assert decisions[-1] == bool(method.due(inside[1]))
        inside = jitted(*inside, batch, indices, perturb=None)
        outside = jitted(*outside, batch, indices, perturb=decisions[-1])
    assert_trees_close(inside, outside, rtol=1e-4, atol=1e-6)
    assert 0 < sum(decisions) < len(decisions)


@every_method
def test_first_gradient_is_where_and_on_what_the_method_wants_it(name):
    case = VARIANTS[name]
    method, params, batch = case.make(), init_params(), make_batch()
    (loss, aux), grads, oracle = method.value_and_grad(lambda p, b: (losses(p, b), b["label"]), has_aux=True)(
        params, batch, state=method.init(params), indices=make_indices()
    )
    mean = lambda p: jnp.mean(losses(p, batch))
    whole_loss, whole_grads = jax.value_and_grad(mean)(params)
    assert isinstance(oracle, optax_sam.Oracle)
    assert aux.size == case.examples * BATCH
    if case.starts_at_params and case.examples == 1:
        np.testing.assert_allclose(loss, whole_loss, rtol=1e-6)
        assert_trees_close(grads, whole_grads, rtol=1e-5, atol=1e-6)
    elif not case.starts_at_params:
        assert not np.allclose(loss, whole_loss, rtol=1e-5)


@every_method
def test_oracle_by_hand_and_from_another_method_give_the_same_step(name):
    case = VARIANTS[name]
    method, params, batch = case.make(), init_params(), make_batch()
    wanted, wanted_state, _ = one_step(method, params, batch)
    state = method.init(params)
    nonsense = jax.tree.map(lambda x: x + jnp.inf, params)
    other = optax_sam.ausam(48, fraction=0.25)

    @jax.jit
    def by_hand(params, state):
        oracle = optax_sam.Oracle(losses, batch, indices=make_indices())
        return method.update(nonsense, state, params, oracle=oracle)

    @jax.jit
    def from_another(params, state):
        _, _, oracle = other.value_and_grad(losses)(
            params, batch, state=other.init(params), indices=make_indices()
        )
        return method.update(nonsense, state, params, oracle=oracle)

    for call in (by_hand, from_another):
        got, got_state = call(params, state)
        assert_trees_close(got, wanted, rtol=1e-5)
        assert_trees_close(got_state, wanted_state, rtol=1e-5)


@every_method
def test_grad_fn_is_the_other_door(name):
    case = VARIANTS[name]
    method, params = case.make(), init_params()
    gradient = jax.grad(lambda p: jnp.mean(losses(p, make_batch())))

    @jax.jit
    def call(params=params, state=method.init(params)):  # noqa: B008
        return method.update(gradient(params), state, params, grad_fn=gradient)

    if case.needs_oracle:
        with pytest.raises(ValueError, match=r"grad_fn.*[Oo]racle"):
            call()
        return
    descent, state = call()
    wanted, wanted_state, _ = one_step(method, params, make_batch())
    assert_trees_close(descent, wanted, rtol=1e-5)
    assert np.isnan(optax_sam.info(state)["loss"])
    assert optax_sam.due(state) == optax_sam.due(wanted_state)


@every_method
def test_padding_is_harmless(name):
    method, params = VARIANTS[name].make(), init_params()
    if "ausam" in name:
        method = VARIANTS[name].make(fraction=1.0)
    batch = make_batch(size=8)
    padded = jax.tree.map(
        lambda x: jnp.concatenate(
            [x, jnp.full_like(x, jnp.nan) if jnp.issubdtype(x.dtype, jnp.inexact) else x - 100]
        ),
        batch,
    )
    weights = jnp.concatenate([jnp.ones(8), jnp.zeros(8)])
    indices = jnp.concatenate([make_indices(size=8), jnp.full([8], -1, jnp.int32)])

    def step(batch, indices, weights):
        state = method.init(params)
        loss, grads, oracle = method.value_and_grad(losses)(
            params, batch, state=state, indices=indices, weights=weights
        )
        return loss, *method.update(grads, state, params, oracle=oracle, perturb=True)

    got_loss, got, got_state = jax.jit(step)(padded, indices, weights)
    chex.assert_tree_all_finite((got_loss, got, got_state))
    if name.startswith("m_") or name == "ausam_strata":
        return  # other slices, other perturbations
    wanted_loss, wanted, wanted_state = jax.jit(step)(batch, indices[:8], None)
    np.testing.assert_allclose(got_loss, wanted_loss, rtol=1e-6)
    assert_trees_close(got, wanted, rtol=1e-5, atol=1e-6)
    assert_trees_close(got_state.start, wanted_state.start, rtol=1e-5, atol=1e-6)


@every_method
def test_state_never_absorbs_a_non_finite_gradient(name):
    method, params = VARIANTS[name].make(), init_params()
    _, state, _ = one_step(method, params, make_batch(), perturb=True)

    def broken(params, batch):
        return losses(params, batch) * jnp.inf

    _, after, _ = one_step(method, params, make_batch(1), broken, state, perturb=True)
    for piece in ("start", "direction", "gate", "reuse"):
        assert_trees_equal(getattr(after, piece), getattr(state, piece))
    chex.assert_tree_all_finite(after)


@every_method
def test_non_finite_perturbed_gradient_is_skipped_by_apply_if_finite(name):
    method = VARIANTS[name].make()
    tx = optax.chain(method, optax.apply_if_finite(optax.sgd(0.1), 5))
    params = init_params()
    state = tx.init(params)

    @jax.custom_vjp
    def fragile(x, w):
        return x

    fragile.defvjp(
        lambda x, w: (x, (jnp.sum(w * w), jnp.zeros_like(w))),
        lambda found, g: (jnp.where(jnp.abs(found[0] - total) > 1e-5, jnp.inf * g, g), found[1]),
    )
    total = jnp.sum(params["layer_1"]["bias"] ** 2)

    def infinite_elsewhere(params, batch):
        return fragile(losses(params, batch), params["layer_1"]["bias"])

    @jax.jit
    def step(params, state):
        _, grads, oracle = method.value_and_grad(infinite_elsewhere)(
            params, make_batch(), state=state, indices=make_indices()
        )
        return tx.update(grads, state, params, oracle=oracle, perturb=True)

    updates, state = step(params, state)
    assert all(np.all(np.asarray(u) == 0) for u in jax.tree.leaves(updates))
    assert not state[1].last_finite


@every_method
def test_method_survives_copy_pickle_replace_and_tree_map(name):
    method = VARIANTS[name].make()
    wanted = one_step(method, init_params(), make_batch())[0]
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


@every_method
def test_info_has_the_same_keys_in_the_same_order(name):
    method = VARIANTS[name].make()
    keys = [
        "loss",
        "perturbed_loss",
        "sharpness",
        "grad_norm",
        "perturbed_grad_norm",
        "perturbation_norm",
        "perturbed",
        "gradients",
    ]
    state = method.init(init_params())
    assert list(optax_sam.info(state)) == keys
    _, state, _ = one_step(method, init_params(), make_batch(), perturb=True)
    info = optax_sam.info((state, ()))
    assert list(info) == keys and set(jax.jit(optax_sam.info)(state)) == set(keys)
    assert all(np.shape(value) == () and np.isfinite(value) for value in info.values())
    np.testing.assert_allclose(info["sharpness"], info["perturbed_loss"] - info["loss"], rtol=1e-6)


@every_method
def test_seed_may_be_an_array(name):
    case = VARIANTS[name]
    if "seed" not in inspect.signature(case.method).parameters or name in ("every",):
        pytest.skip("draws nothing")

    def first_key(seed):
        return case.make(seed=seed).init(init_params()).key

    keys = jax.vmap(first_key)(jnp.arange(3))
    assert keys.shape == (3, 2) and keys.dtype == jnp.uint32
    assert_trees_equal(keys[1], first_key(1))
