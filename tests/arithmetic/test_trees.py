"""Arithmetic on trees."""

import collections
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import optax_sam
from optax_sam.arithmetic import trees

TREE = {
    "a": jnp.array([3.0, -4.0]),
    "b": jnp.array([[12.0]]),
    "c": jnp.array([0.0 + 84.0j]),
    "n": jnp.ones(2, int),
}


def test_norm_is_that_of_all_inexact_leaves():
    assert trees.norm(TREE) == 85 and trees.norm({"n": TREE["n"]}) == 0


@pytest.mark.parametrize("scale", [1.0, 1e30, 1e-30])
def test_norm_has_a_derivative_forwards_and_backwards(scale):
    leaves = {"a": scale * TREE["a"], "b": scale * TREE["b"].astype(jnp.bfloat16)}
    gradient = jax.grad(trees.norm)(leaves)
    np.testing.assert_allclose(gradient["a"], np.array([3.0, -4.0]) / 13, rtol=1e-2)
    np.testing.assert_allclose(gradient["b"].astype(jnp.float32), [[12 / 13]], rtol=1e-2)
    ones = jax.tree.map(jnp.ones_like, leaves)
    np.testing.assert_allclose(jax.jvp(trees.norm, (leaves,), (ones,))[1], 11 / 13, rtol=1e-2)
    zero = jax.grad(trees.norm)(jax.tree.map(jnp.zeros_like, leaves))
    assert all(np.all(np.asarray(x) == 0) for x in jax.tree.leaves(zero))


FORMS = {
    "two passes": trees._norm_in_two_passes,
    "three sums": trees._norm_of_three_sums,
    "columns": trees._norm_of_columns,
}
every_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)


@every_form
@pytest.mark.parametrize("jitted", [False, True], ids=["eager", "jitted"])
def test_all_forms_of_the_norm_are_right_for_every_size(form, jitted):
    """A CPU takes the first one, TPUs the second, GPUs the third."""
    run = jax.jit(form) if jitted else form
    rows = np.random.default_rng(0).normal(size=(3, 4, 5))
    for size in 10.0 ** np.arange(-36, 37, 6):
        leaves = [jnp.asarray(size * rows, jnp.float32), jnp.asarray([size], jnp.float32)]
        np.testing.assert_allclose(run(leaves) / size, np.sqrt(np.sum(rows**2) + 1), rtol=1e-6)
    largest = jnp.asarray([3e38, 1e-38, 0.0], jnp.float32)
    np.testing.assert_allclose(run([largest]), 3e38, rtol=1e-6)
    assert run([jnp.zeros([2, 3])]) == 0
    assert np.isnan(run([jnp.asarray([1.0, np.nan])])) and np.isnan(run([jnp.asarray([np.inf, np.nan])]))
    assert run([jnp.asarray([1.0, np.inf]), jnp.ones([2, 2])]) == np.inf


def test_on_a_cpu_the_other_forms_cost_nothing():
    """The compiled operations are those of two passes alone."""
    leaves = [jnp.ones((8, 8)), jnp.ones(7), jnp.ones((3, 4, 8), jnp.bfloat16)]

    def operations(function):
        text = jax.jit(function).lower(leaves).compile().as_text()
        return collections.Counter(
            re.findall(r"^ +(?:ROOT )?%\S+ = \S+ ([a-z][\w\-]*)\(", text, re.MULTILINE)
        )

    found = operations(trees.norm)
    assert found == operations(trees._norm_in_two_passes) and found["reduce"] > 0
    assert found != operations(trees._norm_of_columns)


@every_form
@pytest.mark.parametrize("shape", [(), (3,), (3, 4)])
def test_all_forms_of_what_the_compiler_knows_to_be_zero(form, shape):
    """It may scale the squares in the place of the entries."""
    assert jax.jit(lambda: form([jnp.zeros(shape, jnp.float32), jnp.zeros([], jnp.float32)]))() == 0


def test_a_loss_without_the_parameters_perturbs_nothing():
    """Whose gradient the compiler knows to be zero."""
    params = {"w": jnp.ones((3, 4)), "c": jnp.ones(())}
    tx = optax.chain(optax_sam.sam(0.5), optax.sgd(0.1))
    step = jax.jit(optax_sam.step(tx, lambda params, batch: batch * 1.0))
    found, state, _ = step(params, tx.init(params), jnp.ones(4))
    assert optax_sam.info(state)["perturbation_norm"] == 0 and optax_sam.finite(state)
    np.testing.assert_array_equal(found["w"], 1)
    ascent = optax.chain(optax.set_to_zero(), optax_sam.ascents.to_radius(0.5))
    method = optax_sam.sharpness_aware(ascent)
    oracle = optax_sam.Oracle(lambda p, b: b * (p["w"].sum() + p["c"]), jnp.ones(2))
    descent, state = jax.jit(lambda p: method.update(p, method.init(p), p, oracle=oracle))(params)
    assert optax_sam.info(state)["perturbation_norm"] == 0 and descent["c"] == 1


@every_form
def test_all_forms_take_every_dtype(form):
    run = jax.jit(form)
    np.testing.assert_allclose(run([jnp.full(1000, 300, jnp.float16)]), 300 * np.sqrt(1000), rtol=1e-6)
    np.testing.assert_allclose(run([jnp.full(4, 1e30, jnp.bfloat16), jnp.zeros(3)]), 2e30, rtol=1e-2)
    np.testing.assert_allclose(run([jnp.asarray([3e-30 + 4e-30j]), jnp.zeros(())]), 5e-30, rtol=1e-6)
    with jax.enable_x64(True):
        for size in (1e-300, 1.0, 1e300):
            leaves = [jnp.full(4, size, jnp.float64), jnp.zeros(3, jnp.float32)]
            np.testing.assert_allclose(run(leaves), 2 * size, rtol=1e-14)


@every_form
def test_all_forms_under_vmap_and_in_a_scan(form):
    rows = jnp.array([[3.0, 4.0], [3e30, 4e30], [3e-30, 4e-30], [0.0, 0.0], [jnp.inf, 1.0]])
    wanted = [5.0, 5e30, 5e-30, 0.0, np.inf]
    np.testing.assert_allclose(jax.vmap(lambda x: form([x]))(rows), wanted, rtol=1e-6)
    found = jax.lax.scan(lambda carry, x: (carry, form([x])), 0, rows)[1]
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


@pytest.mark.slow
@every_form
def test_all_forms_keep_the_digits_of_long_sums(form):
    leaf = np.random.default_rng(0).normal(size=(4000, 5000)).astype(np.float32)
    wanted = np.sqrt(np.sum(np.square(leaf, dtype=np.float64)))
    np.testing.assert_allclose(jax.jit(form)([jnp.asarray(leaf)]), wanted, rtol=1e-5)


@every_form
@pytest.mark.parametrize("kind", list(AxisType)[:2], ids=str)
def test_all_forms_of_split_leaves_and_of_each_device_alone(form, kind):
    """Leaves that are split over devices have one norm; inside a `shard_map` every device has its own."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    rows = np.random.default_rng(0).normal(size=(8, 3)) * 10.0 ** np.linspace(-30, 30, 8)[:, None]
    with jax.set_mesh(mesh):
        leaf = jax.device_put(jnp.asarray(rows, jnp.float32), NamedSharding(mesh, PartitionSpec("data")))
        np.testing.assert_allclose(jax.jit(form)([leaf]), np.linalg.norm(rows), rtol=1e-6)
        own = jax.shard_map(
            lambda x: form([x])[None], in_specs=PartitionSpec("data"), out_specs=PartitionSpec("data")
        )
        np.testing.assert_allclose(jax.jit(own)(leaf), np.linalg.norm(rows, axis=1), rtol=1e-6)


def test_norm_under_vmap_rescales_where_it_must():
    rows = jnp.array([[3.0, 4.0], [3e30, 4e30], [3e-30, 4e-30], [0.0, 0.0], [jnp.inf, 1.0]])
    got = jax.vmap(lambda x: trees.norm({"x": x}))(rows)
    np.testing.assert_allclose(got, [5.0, 5e30, 5e-30, 0.0, np.inf], rtol=1e-6)


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e30])
def test_the_norm_of_what_the_compiler_knows_is_right_too(size):
    def norm():
        return trees.norm({"a": jnp.full([2, 4], size, jnp.float32), "b": jnp.full([8], size, jnp.float32)})

    np.testing.assert_allclose(jax.jit(norm)(), 4 * size, rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.complex64])
@pytest.mark.parametrize("compiled", [False, True])
def test_what_is_divided_by_the_largest_norms_does_not_vanish(dtype, compiled):
    """XLA multiplies by the reciprocal, which is none of float32's normal numbers."""
    x = jnp.full((2, 3), 1.5e38, dtype)
    divide = jax.jit(trees.divide) if compiled else trees.divide
    np.testing.assert_allclose(divide([x], jnp.float32(3e38))[0], 0.5, rtol=1e-6)


def test_the_mean_of_equal_draws_is_each_even_where_their_sum_overflows():
    draws = optax_sam.over_draws(optax_sam.sam(0.0), 3, optax_sam.tilted(0.0))
    params = jnp.zeros(2)
    oracle = optax_sam.Oracle(lambda w, x: x * (w * 2e38).sum(), jnp.ones(1), params=params)
    descent, _ = jax.jit(lambda: draws.update(params, draws.init(params), params, oracle=oracle))()
    np.testing.assert_allclose(descent, 2e38, rtol=1e-6)
