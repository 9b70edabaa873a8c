"""Integers of every width, flags, typed keys and narrow floats among the parameters."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import optax_sam
from optax_sam import per_example, sharpness
from optax_sam.arithmetic import means, random_trees, trees
from tests.problem import assert_trees_close, init_params, losses, make_batch, make_indices
from tests.registry import CASES, over
from tests.rows import own_loss

WIDTHS = ("int2", "uint2", "int4", "uint4", "int8", "uint8", "int16", "uint32", "bool_")
# The draws of the other leaves are others where there are more leaves.
DRAWN = {"tsam", "tsam_uniform", "random_sam", "random_perturbation", "adaptive_random_perturbation"}
DRAWN |= {"eigen_sam", "sparse_sam", "bsam", "esam", "reweighted_sam"}


def odd_leaves():
    """Named as biases and as kernels, since some methods look at names."""
    numbers = {name: jnp.asarray([1, 0, 1]).astype(getattr(jnp, name)) for name in WIDTHS}
    keys = {"kernel": jax.random.key(7), "bias": jax.random.split(jax.random.key(1), (2, 2))}
    return {"bias": numbers, "kernel": dict(numbers), "keys": keys, "empty": jnp.zeros((2, 0), jnp.int4)}


def params_and(odd):
    narrow = {"kernel": jnp.full((2, 3), 0.5, jnp.float16), "bias": jnp.full(3, 0.25, jnp.bfloat16)}
    return init_params() | {"narrow": narrow} | odd


def odd_losses(params, batch):
    """Reads the odd leaves where there are some; the same number without them."""
    found = losses(params, batch)
    found += sum(jnp.sum(jnp.sin(x.astype(jnp.float32))) for x in jax.tree.leaves(params["narrow"]))
    odd = {name: params[name] for name in odd_leaves() if name in params} or odd_leaves()
    noise = jax.random.normal(odd["keys"]["kernel"]) + odd["bias"]["int4"][0].astype(jnp.float32)
    return found * (1 + noise * odd["kernel"]["bool_"][0].astype(jnp.float32))


def step_of(method, loss_fn=odd_losses):
    def step(params, state, batch):
        value_and_grad = method.value_and_grad(loss_fn)
        loss, grads, oracle = value_and_grad(params, batch, state=state, indices=make_indices())
        descent, after = method.update(grads, state, params, oracle=oracle, perturb=True)
        return loss, grads, descent, after

    return step


def assert_passed_through(tree):
    """Typed keys and integers, of zeros, stand in the places of the odd leaves."""
    odd = {name: tree[name] for name in odd_leaves()}
    chex.assert_trees_all_equal_shapes_and_dtypes(odd, odd_leaves())
    assert not any(jnp.any(data_of(x)) for x in jax.tree.leaves(odd))


def data_of(leaf):
    """Numbers that NumPy knows."""
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(leaf) if is_key else leaf.astype(jnp.float32)


def without_odd(tree):
    return {name: x for name, x in tree.items() if name not in odd_leaves()}


def own_arguments(name):
    return own_loss(CASES[name], odd_losses)


@pytest.mark.parametrize("name", over(CASES, ["sparse_sam"]))
def test_they_pass_through_every_method(name):
    method, params, batch = CASES[name].make(**own_arguments(name)), params_and(odd_leaves()), make_batch()
    state = method.init(params)
    loss, grads, descent, after = jax.jit(step_of(method))(params, state, batch)
    chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
    for tree in (grads, descent):
        chex.assert_trees_all_equal_shapes_and_dtypes(tree, params)
        assert_passed_through(tree)
        assert trees.all_finite(tree)
    assert optax_sam.finite(after) and optax_sam.info(after)["perturbed"]
    if name not in DRAWN:
        plain = params_and({})
        wanted = jax.jit(step_of(method))(plain, method.init(plain), batch)[:3]
        assert_trees_close((loss, without_odd(grads), without_odd(descent)), wanted, rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize("name", over(CASES, []))
def test_floats_of_eight_bits_are_stepped_on(name):
    params = init_params() | {
        "kernel": jnp.full((2, 3), 0.5, jnp.float8_e4m3fn),
        "bias": jnp.full(3, 0.25, jnp.float8_e5m2),
    }

    def loss_fn(params, batch):
        return losses(params, batch) * (1 + jnp.sum(params["kernel"].astype(jnp.float32))) + jnp.sum(
            params["bias"].astype(jnp.float32)
        )

    method = CASES[name].make(**own_loss(CASES[name], loss_fn))
    _, grads, descent, after = jax.jit(step_of(method, loss_fn))(params, method.init(params), make_batch())
    chex.assert_trees_all_equal_shapes_and_dtypes(grads, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(descent, params)
    assert optax_sam.finite(after)


WRAPPED = {
    "slices at once": lambda: optax_sam.per_microbatch(optax_sam.asam(), 2, loop="vmap"),
    "slices of what remembers": lambda: optax_sam.per_microbatch(optax_sam.momentum_sam(), 2),
    "accumulated": lambda: optax_sam.accumulated(optax_sam.vasso(), 2),
    "draws": lambda: optax_sam.over_draws(optax_sam.random_sam(), 2, optax_sam.tilted(0.0)),
    "adasam": lambda: optax_sam.adasam(0.1),
    "bsam": lambda: optax_sam.bsam(16, 0.1),
    "before a base optimizer": lambda: optax_sam.followed_by(optax_sam.asam(), optax.identity()),
    "decoupled": lambda: optax_sam.decoupled(optax_sam.wsam(), optax.identity(), 0.1),
}


@pytest.mark.parametrize("name", over(WRAPPED, ["slices of what remembers"]))
def test_they_pass_through_every_wrapper(name):
    method, params = WRAPPED[name](), params_and(odd_leaves())
    state = method.init(params)
    *_, descent, after = jax.jit(step_of(method))(params, state, make_batch())
    chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
    if not name.startswith(("before", "decoupled")):  # whose base hands on what it is handed
        assert_passed_through(descent)
    assert trees.all_finite(descent)


@pytest.mark.parametrize("kind", over([AxisType.Auto, AxisType.Explicit], []))
@pytest.mark.parametrize("name", over(["momentum_sam", "asam"], ["momentum_sam"]))
def test_they_pass_through_devices(name, kind):
    method, params = optax_sam.per_device(CASES[name].make()), params_and(odd_leaves())
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))

    def step(params, batch):
        state = method.init(params)
        _, grads, oracle = method.value_and_grad(odd_losses)(params, batch, state=state)
        return method.update(grads, state, params, oracle=oracle)

    with jax.set_mesh(mesh):
        batch = jax.device_put(make_batch(), NamedSharding(mesh, PartitionSpec("data")))
        descent, _ = jax.jit(step)(jax.device_put(params, NamedSharding(mesh, PartitionSpec())), batch)
    assert_passed_through(descent)


MEASURED = {
    "surrogate_gap": lambda *where: sharpness.surrogate_gap(*where, 0.1).value,
    "ascent": lambda *where: sharpness.ascent_sharpness(*where, 0.1, num_steps=2, adaptive=True).value,
    "average": lambda *where: sharpness.average_sharpness(*where, 0.1, adaptive=True, num_samples=2).value,
    "eigenvalues": lambda *where: sharpness.top_eigenvalues(*where, 1, with_vectors=True).values,
    "trace": lambda *where: sharpness.trace(*where, num_products=3).value,
    "spectrum": lambda *where: sharpness.spectral_density(*where, num_vectors=1, num_steps=3).nodes,
    "noise": lambda *where: sharpness.gradient_noise(*where).noise_scale,
    "psf": lambda *where: sharpness.psf_norm(*where, 0.1).value,
    "landscape": lambda loss_fn, params, batch: (
        sharpness.landscape(loss_fn, params, batch, [sharpness.random_direction(params)], num_points=3).losses
    ),
    "product": lambda loss_fn, params, batch: sharpness.hessian_vector_product(
        loss_fn, params, batch, sharpness.difference(params, params)
    )["narrow"],
    "losses": per_example.losses,
    "norms": per_example.gradient_norms,
    "gradients": lambda *where: per_example.gradients(*where)["layer_0"],
}
DRAWN_MEASUREMENTS = {"average", "trace", "spectrum", "landscape", "eigenvalues"}


@pytest.mark.parametrize("name", over(MEASURED, ["losses"]))
def test_measurements_leave_them_alone(name):
    found = MEASURED[name](odd_losses, params_and(odd_leaves()), make_batch())
    if name not in DRAWN_MEASUREMENTS:
        wanted = MEASURED[name](odd_losses, params_and({}), make_batch())
        for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(np.asarray(x, float), np.asarray(y, float), rtol=2e-3, atol=1e-5)


def halves(tree):
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (2, *x.shape)), tree)


TREES = {
    "widen": trees.widen,
    "saturated": trees.saturated,
    "map_wide": lambda tree: trees.map_wide(lambda x: x, tree),
    "divide": lambda tree: trees.divide(tree, jnp.asarray(2.0)),
    "perpendicular": lambda tree: trees.perpendicular(tree, tree),
    "where": lambda tree: trees.where(jnp.array(True), tree, tree),
    "add_perturbation": lambda tree: trees.add_perturbation(tree, tree),
    "plain": trees.plain,
    "like_masked": lambda tree: trees.like_masked(tree, tree),
    "hidden_as_in": lambda tree: trees.hidden_as_in((tree,), tree),
    "mean": lambda tree: means.mean(jnp.full(2, 0.5), halves(tree)),
    "add": lambda tree: means.add(means.zeros_like(tree), 0.5, tree, is_first=True),
}
ZEROS = {
    "memory_like": trees.memory_like,
    "zeros_like": means.zeros_like,
    "standard_normal": lambda tree: random_trees.standard_normal(jax.random.key(0), tree),
    "signs": lambda tree: random_trees.signs(jax.random.key(0), tree),
    "uniform": lambda tree: random_trees.uniform(jax.random.key(0), tree),
}


def test_arithmetic_leaves_them_alone():
    @jax.jit
    def all_of_them(tree):
        found = {name: function(tree) for name, function in TREES.items()}
        numbers = trees.norm(tree), trees.inner(tree, tree), trees.all_finite(tree)
        return found, {name: function(tree) for name, function in ZEROS.items()}, numbers

    params = params_and(odd_leaves())
    found, zeros, numbers = all_of_them(params)
    for tree in found.values():
        for x, y in zip(
            *(jax.tree.leaves({n: t[n] for n in odd_leaves()}) for t in (tree, params)), strict=True
        ):
            assert x.dtype == y.dtype
            np.testing.assert_array_equal(data_of(x), data_of(y))
    for tree in zeros.values():
        assert_passed_through(tree)
    plain = params_and({})
    np.testing.assert_allclose(numbers[0], trees.norm(plain), rtol=1e-5)
    np.testing.assert_allclose(numbers[1], trees.inner(plain, plain), rtol=1e-5)
    assert numbers[2]


@pytest.mark.parametrize("name", over(["asam", "vsam", "m_rst", "eigen_sam", "tsam"], []))
def test_they_pass_through_steps_that_are_not_compiled(name):
    method, params = CASES[name].make(), params_and(odd_leaves())
    _, grads, descent, _ = step_of(method)(params, method.init(params), make_batch())
    assert_passed_through(grads)
    assert_passed_through(descent)


@pytest.mark.parametrize("width", [*WIDTHS, "bfloat16", "float8_e4m3fn"])
def test_a_batch_of_any_width_may_have_padding(width):
    batch = {"x": jnp.ones((5, 2)), "number": jnp.asarray([1, 0, 1, 1, 0]).astype(getattr(jnp, width))}

    def losses(params, batch):
        return jnp.square(batch["x"] @ params - batch["number"].astype(jnp.float32))

    padding = optax_sam.Oracle(losses, batch, weights=jnp.arange(5) < 3).value_and_grad(jnp.ones(2))
    without = optax_sam.Oracle(losses, jax.tree.map(lambda x: x[:3], batch)).value_and_grad(jnp.ones(2))
    assert_trees_close(padding, without, rtol=1e-6)
