"""Eight devices: the trajectory of one, on meshes with automatic and with explicit axes."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import optax_sam
from benchmarks.collectives import traffic
from tests.problem import assert_trees_close, init_params, make_batch, make_indices
from tests.registry import CASES, EVERY, VARIANTS, WRAPPED, over

WEIGHTS = np.where(np.arange(16) == 3, 0, 1).astype(np.float32)

every_axis_type = pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
# What explicit axes refuse is what automatic ones would do at a price: products of methods ask these.
product_axes = pytest.mark.parametrize(
    "kind", [pytest.param(AxisType.Auto, marks=pytest.mark.slow), AxisType.Explicit], ids=str
)


def losses(params, batch):
    """The tests' network, written so that explicit axes know every result's sharding."""
    hidden = jnp.tanh(batch["image"] @ params["layer_0"]["kernel"] + params["layer_0"]["bias"][None])
    logits = hidden @ params["layer_1"]["kernel"] + params["layer_1"]["bias"][None]
    chosen = jax.nn.one_hot(batch["label"], 3, dtype=logits.dtype)
    return -jnp.sum(jax.nn.log_softmax(logits) * chosen, axis=-1)


def run(method, place, steps=3, weights=None):
    """Some steps with parameters and batches placed on devices: `(params, state, compiled)`."""
    tx = optax.chain(method, optax.sgd(0.1, momentum=0.9))
    params = place(init_params(), PartitionSpec())
    state = tx.init(params)

    @jax.jit
    def step(params, state, batch, indices, weights):
        _, grads, oracle = method.value_and_grad(losses)(
            params, batch, state=state, indices=indices, weights=weights
        )
        updates, state = tx.update(grads, state, params, oracle=oracle)
        return optax.apply_updates(params, updates), state

    for number in range(steps):
        rows = make_batch(number), make_indices(number), weights
        rows = jax.tree.map(lambda x: place(x, PartitionSpec("data")), rows)
        if number == 0:
            compiled = step.lower(params, state, *rows).compile()
        params, state = step(params, state, *rows)
    return params, state, compiled


def placed_on(mesh):
    return lambda tree, spec: jax.device_put(tree, NamedSharding(mesh, spec))


@functools.cache
def on_one_device(name):
    """The trajectory to compare with, on the host."""
    params, state, _ = run(VARIANTS[name].make(), lambda tree, spec: tree, weights=WEIGHTS)
    return jax.device_get(params), jax.device_get(state)


@product_axes
@pytest.mark.parametrize("name", over([*WRAPPED, "ausam_strata"]))
def test_sharded_batch_gives_the_trajectory_of_one_device(name, kind):
    wanted, wanted_state = on_one_device(name)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    with jax.set_mesh(mesh):
        got, state, _ = run(VARIANTS[name].make(), placed_on(mesh), weights=WEIGHTS)
        assert all(x.sharding.is_fully_replicated for x in jax.tree.leaves((got, state)))
    got, state = jax.device_get((got, state))
    assert_trees_close(got, wanted, rtol=1e-4, atol=1e-6)
    assert_trees_close(state[0].start, wanted_state[0].start, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", over(EVERY, kept=("ausam", "accumulated", "random_perturbation")))
def test_arrays_that_say_where_they_lie_need_no_mesh_around_the_step(name):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
    got, _, _ = run(CASES[name].make(), placed_on(mesh), steps=2)
    with jax.set_mesh(mesh):
        wanted, _, _ = run(CASES[name].make(), placed_on(mesh), steps=2)
    jax.tree.map(np.testing.assert_array_equal, got, wanted)


@product_axes
def test_draws_in_strata_move_no_example_and_shrink_the_work(kind):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    rows = {"image": jnp.ones([64, 128]), "label": jnp.zeros([64], jnp.int32)}
    params = {
        "layer_0": {"kernel": jnp.ones([128, 256]), "bias": jnp.zeros([256])},
        "layer_1": {"kernel": jnp.ones([256, 3]), "bias": jnp.zeros([3])},
    }

    def compiled(method):
        @jax.jit
        def step(params, state, rows, indices):
            _, grads, oracle = method.value_and_grad(losses)(params, rows, state=state, indices=indices)
            return method.update(grads, state, params, oracle=oracle)

        place = placed_on(mesh)
        placed = place(params, PartitionSpec())
        split = place((rows, jnp.arange(64)), PartitionSpec("data"))
        return step.lower(placed, method.init(placed), *split).compile()

    with jax.set_mesh(mesh):
        drawn, sam = compiled(optax_sam.ausam(64, strata=8)), compiled(optax_sam.sam())
    assert not re.findall(r"= f32\[\d+(?:,\d+)?,128\]\S* all-gather", drawn.as_text()), "images travel"
    assert drawn.cost_analysis()["flops"] < 0.65 * sam.cost_analysis()["flops"]


SLICED = {
    "accumulated": lambda: optax_sam.accumulated(optax_sam.sam(0.1), 4),
    "per_microbatch": lambda: optax_sam.per_microbatch(optax_sam.sam(0.1), 4),
    "per_microbatch, at once": lambda: optax_sam.per_microbatch(optax_sam.sam(0.1), 4, loop="vmap"),
    "bsam": lambda: optax_sam.bsam(16, num_microbatches=4),
}


@pytest.mark.parametrize("devices", [2, 4, 8])
@pytest.mark.parametrize("name", SLICED)
def test_slices_are_split_over_devices_however_many_there_are(name, devices):
    method = SLICED[name]()
    wanted, wanted_state, _ = run(method, lambda tree, spec: tree, weights=WEIGHTS)
    mesh = jax.make_mesh(
        (devices,), ("data",), devices=jax.devices()[:devices], axis_types=(AxisType.Explicit,)
    )
    with jax.set_mesh(mesh):
        got, state, _ = run(method, placed_on(mesh), weights=WEIGHTS)
    assert_trees_close(jax.device_get(got), jax.device_get(wanted), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(optax_sam.info(state)["loss"], optax_sam.info(wanted_state)["loss"], rtol=1e-5)


# Each with the products of the whole batch that it takes: two for a gradient.
PARTS = {
    "accumulated": (lambda: optax_sam.accumulated(optax_sam.sam(0.1), 4), 4),
    "per_microbatch": (lambda: optax_sam.per_microbatch(optax_sam.sam(0.1), 4), 4),
    "ausam": (lambda: optax_sam.ausam(256), 2),
}


@pytest.mark.parametrize("name", PARTS)
def test_a_loss_that_says_that_its_batch_is_split_splits_every_part(name):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    (make, products), params = PARTS[name], {"w": jnp.eye(64)}

    def plain(params, rows):
        return jnp.sum(jnp.tanh(rows @ params["w"]) ** 2, axis=-1)

    def placed(params, rows):
        return plain(params, jax.lax.with_sharding_constraint(rows, PartitionSpec("data")))

    def step(losses):
        tx = optax.chain(make(), optax.sgd(0.1))
        place, rows = placed_on(mesh), jnp.linspace(-1, 1, 256 * 64).reshape(256, 64)
        given = place((params, tx.init(params)), PartitionSpec())
        rows, indices = place((rows, jnp.arange(256)), PartitionSpec("data"))
        jitted = jax.jit(optax_sam.step(tx, losses))
        compiled = jitted.lower(*given, rows, indices=indices).compile()
        trained, *_ = compiled(*given, rows, indices=indices)
        return traffic(compiled.as_text()).product_flops, jax.device_get(trained)

    with jax.set_mesh(mesh):
        (work, trained), (whole, wanted) = step(placed), step(plain)
    assert_trees_close(trained, wanted, rtol=1e-5)
    assert work == products * (2 * 256 * 64 * 64) / 8 < whole / 3


@every_axis_type
def test_state_keeps_the_sharding_of_sharded_parameters(kind):
    mesh = jax.make_mesh((8,), ("model",), axis_types=(kind,))
    with jax.set_mesh(mesh):
        params = {"w": jax.device_put(jnp.arange(16.0), NamedSharding(mesh, PartitionSpec("model")))}
        vsam = optax_sam.vsam(window=6, slices=3)
        state = vsam.init(params)
        gradient = jax.grad(lambda p: jnp.sum(jnp.sin(p["w"])))

        @jax.jit
        def step(params, state):
            return vsam.update(gradient(params), state, params, grad_fn=gradient)

        types = jax.tree.map(jax.typeof, state)
        for _ in range(2):
            descent, state = step(params, state)
        assert jax.tree.map(jax.typeof, state) == types
        for leaf in (descent["w"], state.reuse.difference["w"]):
            assert leaf.sharding.spec == PartitionSpec("model")
    norm = np.linalg.norm(np.cos(np.arange(16.0)))
    np.testing.assert_allclose(optax_sam.info(state)["grad_norm"], norm, rtol=1e-5)


@product_axes
def test_norms_of_single_examples_stay_where_the_examples_are(kind):
    wanted = optax_sam.per_example.gradient_norms(losses, init_params(), make_batch())
    with jax.set_mesh(mesh := jax.make_mesh((8,), ("data",), axis_types=(kind,))):
        place = placed_on(mesh)
        placed = place(init_params(), PartitionSpec()), place(make_batch(), PartitionSpec("data"))
        program = jax.jit(lambda p, b: optax_sam.per_example.gradient_norms(losses, p, b))
        got = program(*placed)
        assert got.sharding.spec == PartitionSpec("data")
        assert "all-" not in program.lower(*placed).compile().as_text()
    np.testing.assert_allclose(got, wanted, rtol=1e-6)


@pytest.mark.parametrize("size", [4, 8])
@pytest.mark.parametrize("kind", [AxisType.Explicit, AxisType.Auto], ids=str)
@pytest.mark.parametrize("name", ["losses", "gradients", "gradient_norms"])
def test_microbatches_of_single_examples_are_split_over_the_devices_as_far_as_they_can_be(name, kind, size):
    function = getattr(optax_sam.per_example, name)
    with jax.set_mesh(mesh := jax.make_mesh((8,), ("data",), axis_types=(kind,))):
        params = placed_on(mesh)(init_params(), PartitionSpec())
        batch = placed_on(mesh)(make_batch(), PartitionSpec("data"))
        got = jax.jit(functools.partial(function, losses, microbatch_size=size))(params, batch)
        if name == "gradient_norms":
            noise = optax_sam.sharpness.gradient_noise(losses, params, batch, microbatch_size=size)
    assert_trees_close(got, function(losses, init_params(), make_batch()), rtol=1e-5, atol=1e-6)
    if name == "gradient_norms":
        wanted = optax_sam.sharpness.gradient_noise(losses, init_params(), make_batch())
        assert noise.variance == pytest.approx(wanted.variance, rel=1e-4)
