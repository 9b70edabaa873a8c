"""What the perturbation and the descent are, over every public method. Tests are named after clauses."""

import functools
import inspect

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
    base_trajectory,
    init_params,
    losses,
    make_batch,
    make_indices,
)
from tests.registry import (
    CASES,
    FAMILY,
    GATED,
    METHODS,
    OPTIMIZERS,
    REPRESENTATIVE,
    VARIANTS,
    WRAPPED,
    first_step,
    kinds_of,
    one_step,
    over,
    train,
)

every_kind = pytest.mark.parametrize("name", over(WRAPPED), scope="module")
every_gated = pytest.mark.parametrize("name", GATED)


def test_every_public_method_is_registered():
    methods = {
        name
        for name, value in vars(optax_sam).items()
        if inspect.isfunction(value) and value.__module__.startswith("optax_sam.methods.")
    }
    assert methods - {"scale_by_adasam", "is_normalization"} == {*METHODS, *FAMILY, *OPTIMIZERS}


def test_every_kind_of_method_is_represented_in_the_fast_tests():
    """A method of a new kind belongs into `REPRESENTATIVE`."""
    kinds = {name: kinds_of(CASES[name]) for name in CASES}
    for name, own in kinds.items():
        assert own <= set().union(*(kinds[one] for one in REPRESENTATIVE)), name
    marked = [param.values[0] for param in over(CASES) if not isinstance(param, str)]
    assert {*marked, *REPRESENTATIVE} == set(CASES) and not {*marked} & {*REPRESENTATIVE}


def test_every_public_name_has_a_docstring():
    for name, value in vars(optax_sam).items():
        if not name.startswith("_"):
            assert inspect.getdoc(value), name


def test_only_methods_with_a_unit_descent_do_not_reduce_to_the_base_optimizer():
    assert [name for name in METHODS if METHODS[name].without_radius is None] == ["pugd"]


@pytest.mark.parametrize("name", over(n for n in WRAPPED if VARIANTS[n].without_radius is not None))
def test_zero_radius_is_the_base_optimizer(name):
    case = VARIANTS[name]
    params, _, _ = train(case.make(**case.without_radius))
    assert_trees_close(params, base_trajectory(), rtol=2e-6, atol=2e-7)


@every_gated
def test_closed_gate_hands_the_gradient_on(name):
    descent, state, grads = first_step(name, perturb=False)
    if name.startswith("m_"):
        assert_trees_close(descent, grads)
    else:
        assert_trees_equal(descent, grads)
    assert optax_sam.info(state)["perturbed"] == 0


@functools.cache
def scaled_steps(name):
    """`one_step` of the loss times 0, 1e30 and 1e-30, of one program that must return no NaN."""
    method, params = VARIANTS[name].make(), init_params()

    def scaled(params, batch):
        return batch["scale"] * losses(params, batch)

    step = jax.jit(functools.partial(one_step, method, loss_fn=scaled, perturb=True))
    batches = {scale: make_batch() | {"scale": jnp.full([16], scale)} for scale in (0.0, 1e30, 1e-30)}
    with jax.debug_nans(True):
        return {scale: step(params, batch, state=method.init(params)) for scale, batch in batches.items()}


@every_kind
def test_zero_gradient_gives_zero_perturbation(name):
    descent, state, _ = scaled_steps(name)[0.0]
    assert all(np.all(np.asarray(x) == 0) for x in jax.tree.leaves(descent))
    assert optax_sam.info(state)["perturbation_norm"] == 0
    chex.assert_tree_all_finite(state)


@every_kind
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
    without = first_step(name, perturb=True)[0]
    if "tsam" not in name:  # its noise depends on the number of leaves
        assert_trees_close({k: descent[k] for k in without}, without)


@every_kind
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


@every_kind
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


@every_kind
def test_huge_and_tiny_gradients_have_the_right_norm(name):
    wanted = optax_sam.info(first_step(name, perturb=True)[1])
    for scale in (1e30, 1e-30):
        got = optax_sam.info(scaled_steps(name)[scale][1])
        np.testing.assert_allclose(got["grad_norm"] / scale, wanted["grad_norm"], rtol=1e-5)
        np.testing.assert_allclose(got["perturbation_norm"], wanted["perturbation_norm"], rtol=1e-5)


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e30])
def test_norm_over_leaves_of_single_and_double_precision(size):
    with jax.enable_x64(True):
        params = {"double": jnp.full(2, size, jnp.float64), "single": jnp.full(2, size, jnp.float32)}
        sam = optax_sam.sam()
        _, state = sam.update(params, sam.init(params), params, grad_fn=lambda p: p)
        assert optax_sam.finite(state)
        np.testing.assert_allclose(optax_sam.info(state)["grad_norm"], 2 * size, rtol=1e-6)


@every_kind
@pytest.mark.parametrize("dtype", [jnp.bfloat16, pytest.param(jnp.float16, marks=pytest.mark.slow)])
def test_gradient_dtype_is_kept(name, dtype):
    params = init_params(dtype)

    def wide(params, batch):
        return losses(jax.tree.map(lambda x: x.astype(jnp.float32), params), batch)

    method = VARIANTS[name].make()
    descent, state, _ = one_step(method, params, make_batch(), wide)
    assert all(x.dtype == dtype for x in jax.tree.leaves(descent))
    chex.assert_trees_all_equal_shapes_and_dtypes(state, method.init(params))
    chex.assert_tree_all_finite(descent)


@every_kind
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
