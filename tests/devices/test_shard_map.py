"""Training steps inside a `jax.shard_map` over the batch: the same numbers as outside."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, PartitionSpec

import optax_sam
from optax_sam import per_example
from tests.devices.test_devices import losses, placed_on, product_axes
from tests.per_example.test_ghost_norms import IMAGES, TOKENS, ConvNet, Layers, Transformer, X, module_loss
from tests.problem import assert_trees_close, init_params, make_batch, make_indices
from tests.registry import CASES, METHODS, over

every_axis_type = pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)

WHOLE, SPLIT = PartitionSpec(), PartitionSpec("data")
WITHOUT_SCORES = [name for name in METHODS if name != "ausam"]  # its scores are one array for all devices
WANTED = {}  # of one device, once for both types of axes


def on_eight_devices(step, kind, whole, split, out_specs=WHOLE):
    """`step` inside a `shard_map`, on arguments that are whole or split over the devices."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    place = placed_on(mesh)
    with jax.set_mesh(mesh):
        mapped = jax.shard_map(
            step, in_specs=(*(WHOLE for _ in whole), *(SPLIT for _ in split)), out_specs=out_specs
        )
        got = jax.jit(mapped)(*place(whole, WHOLE), *place(split, SPLIT))
    return jax.device_get(got)


@product_axes
@pytest.mark.parametrize("name", over([*WITHOUT_SCORES, "accumulated", "reweighted_sam"]))
def test_losses_are_averaged_over_devices_with_the_same_parameters(name, kind):
    method = CASES[name].make()

    def step(params, state, batch, weights):
        loss, grads, oracle = method.value_and_grad(losses)(params, batch, state=state, weights=weights)
        return loss, *method.update(grads, state, params, oracle=oracle, perturb=True)

    params, weights = init_params(), jnp.asarray(np.arange(32) % 5, jnp.float32)
    whole, split = (params, method.init(params)), (make_batch(0, 32), weights)
    if name not in WANTED:
        WANTED[name] = jax.device_get(jax.jit(step)(*whole, *split))
    got = on_eight_devices(step, kind, whole, split)
    assert_trees_close(got, WANTED[name], rtol=1e-4, atol=1e-5)


@every_axis_type
def test_mean_loss_and_gradient_function_of_the_global_batch(kind):
    sam, params = optax_sam.sam(0.1), init_params()

    def by_mean(params, state, batch):
        mean = lambda p, b: jnp.mean(losses(p, b))
        _, grads, oracle = sam.value_and_grad(mean)(params, batch, state=state)
        return sam.update(grads, state, params, oracle=oracle)[0]

    def by_gradient(params, state, batch):
        gradient = jax.grad(lambda p: lax.pmean(jnp.mean(losses(p, batch)), "data"))
        return sam.update(gradient(params), state, params, grad_fn=gradient)[0]

    whole, split = (params, sam.init(params)), (make_batch(),)
    wanted = jax.device_get(jax.jit(by_mean)(*whole, *split))
    for step in (by_mean, by_gradient):
        assert_trees_close(on_eight_devices(step, kind, whole, split), wanted, rtol=1e-4, atol=1e-5)


@every_axis_type
def test_without_the_mean_the_gradient_would_be_the_sum_over_devices(kind):
    """What JAX does with a device's own mean: the reason why the oracle averages."""
    params = init_params()

    def gradient(params, batch):
        return jax.grad(lambda p: jnp.mean(losses(p, batch)))(params)

    wanted = jax.tree.map(lambda g: 8 * g, jax.device_get(jax.jit(gradient)(params, make_batch())))
    got = on_eight_devices(gradient, kind, (params,), (make_batch(),))
    assert_trees_close(got, wanted, rtol=1e-4, atol=1e-5)


ON_ITS_OWN = [name for name in CASES if name not in ("ausam", "ausam_strata", "ausam_gradient_norm")]


@product_axes
@pytest.mark.parametrize("name", over(ON_ITS_OWN, ["sam", "vsam", "momentum_sam"]))
def test_every_device_may_train_parameters_of_its_own(name, kind):
    """What differs along the axis is no replica: each device's step is the one outside, on its own rows."""
    method = CASES[name].make()

    def step(params, state, batch):
        loss, grads, oracle = method.value_and_grad(losses)(params, batch, state=state)
        return loss, *method.update(grads, state, params, oracle=oracle)

    def on_device(params, state, batch):
        found = step(*jax.tree.map(lambda x: x[0], (params, state)), batch)
        return jax.tree.map(lambda x: x[None], found)

    several = jax.tree.map(lambda x: jnp.stack([x * (1 + n / 8) for n in range(8)]), init_params())
    states, batch = jax.vmap(method.init)(several), make_batch(0, 64)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    place = placed_on(mesh)
    with jax.set_mesh(mesh):
        mapped = jax.jit(jax.shard_map(on_device, in_specs=(SPLIT, SPLIT, SPLIT), out_specs=SPLIT))
        found = jax.device_get(mapped(*place((several, states, batch), SPLIT)))
    parts = jax.tree.map(lambda x: x.reshape(8, 8, *x.shape[1:]), batch)
    wanted = jax.device_get(jax.jit(jax.vmap(step))(several, states, parts))
    assert_trees_close(found, wanted, rtol=1e-4, atol=1e-5)


PER_EXAMPLE = {
    "losses": per_example.losses,
    "gradients": per_example.gradients,
    "norms": per_example.gradient_norms,
}
NETWORKS = {
    "mlp": (lambda: (losses, init_params()), lambda: make_batch(0, 32)),
    "convolutions": (lambda: network(ConvNet(), IMAGES), lambda: several(IMAGES)),
    "transformer": (lambda: network(Transformer(), TOKENS), lambda: several(TOKENS)),
    "layers": (lambda: network(Layers(), X), lambda: several(X)),
}


def several(batch):
    """Eight times the examples; no two devices have the same."""
    return jax.tree.map(lambda x: jnp.repeat(x, 8, axis=0), batch)


def network(module, batch):
    loss_fn, params_for = module_loss(module)
    return loss_fn, params_for(batch)


@product_axes
@pytest.mark.parametrize("name", over(NETWORKS, ["mlp", "convolutions"]))
@pytest.mark.parametrize("what", PER_EXAMPLE)
def test_each_example_has_its_own_loss_gradient_and_norm(what, name, kind, as_optax_promotes):
    """Not the mean over devices: what is asked of one example is asked of one device."""
    (loss_fn, params), batch = (make() for make in NETWORKS[name])
    size = 2 if name == "mlp" else None

    def found(params, batch):
        return PER_EXAMPLE[what](loss_fn, params, batch, microbatch_size=size)

    wanted = jax.device_get(jax.jit(found)(params, batch))
    got = on_eight_devices(found, kind, (params,), (batch,), out_specs=SPLIT)
    assert_trees_close(got, wanted, rtol=1e-4, atol=1e-5)


def with_odd_leaves(batch):
    size = batch["label"].shape[0]
    narrow = {"flag": jnp.arange(size) % 3 == 0, "int4": (jnp.arange(size) % 5).astype(jnp.int4)}
    return batch | narrow | {"scale": jnp.linspace(0.5, 2, size).astype(jnp.bfloat16)} | {"key": keys(size)}


def keys(size):
    return jax.random.split(jax.random.key(3), size)


def odd_losses(params, batch):
    noise = jax.vmap(jax.random.uniform)(batch["key"])
    scale = sum(batch[name].astype(jnp.float32) for name in ("scale", "int4", "flag"))
    return losses(params, {"image": batch["image"], "label": batch["label"]}) * (scale + noise)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("num_samples", over([3, 6, 100], [6]))
@every_axis_type
def test_a_fisher_mask_is_that_of_the_first_examples_of_all_devices(num_samples, padded, kind):
    """Also where they stand on several devices, and where there is padding among them."""
    method = optax_sam.sparse_sam(0.5, sparsity=0.5, num_samples=num_samples, refresh_steps=1)

    def step(params, state, batch, weights):
        weights = weights if padded else None
        _, grads, oracle = method.value_and_grad(odd_losses)(params, batch, state=state, weights=weights)
        return method.update(grads, state, params, oracle=oracle)

    params, weights = init_params(), jnp.asarray(np.arange(32) % 5 != 1, jnp.float32)
    whole, split = (params, method.init(params)), (with_odd_leaves(make_batch(0, 32)), weights)
    wanted = jax.device_get(jax.jit(step)(*whole, *split))
    got = on_eight_devices(step, kind, whole, split)
    assert_trees_close(got, wanted, rtol=1e-4, atol=1e-5)
    mask = jax.tree.leaves(wanted[1].ascent)
    assert 0 < sum(np.sum(m) for m in mask) < sum(m.size for m in mask)


@every_axis_type
@pytest.mark.parametrize("name", ["ausam", "ausam_gradient_norm"])
def test_scores_of_the_whole_data_set_are_refused_by_naming_plain_jit(name, kind):
    method, params = CASES[name].make(), init_params()

    def step(params, state, batch, indices):
        _, grads, oracle = method.value_and_grad(losses)(params, batch, state=state, indices=indices)
        return method.update(grads, state, params, oracle=oracle)

    with pytest.raises(ValueError, match="differ over the axis 'data' of a shard_map.*plain jax.jit"):
        on_eight_devices(step, kind, (params, method.init(params)), (make_batch(), make_indices()))


IN_STRATA = {
    "esam": functools.partial(optax_sam.esam, 0.1, example_fraction=0.5),
    "ksam": functools.partial(optax_sam.ksam, 0.1, fraction=0.5),
}


@every_axis_type
@pytest.mark.parametrize("name", over(IN_STRATA, ["esam"]))
def test_examples_are_chosen_among_the_rows_of_each_device(name, kind):
    """As outside with `strata=8`, the number of devices."""

    def step_of(method):
        def step(params, state, batch):
            _, grads, oracle = method.value_and_grad(losses)(params, batch, state=state)
            return method.update(grads, state, params, oracle=oracle)

        return step

    method, params = IN_STRATA[name](), init_params()
    whole, split = (params, method.init(params)), (make_batch(0, 32),)
    wanted = jax.device_get(jax.jit(step_of(IN_STRATA[name](strata=8)))(*whole, *split))
    got = on_eight_devices(step_of(method), kind, whole, split)
    assert_trees_close(got, wanted, rtol=1e-4, atol=1e-5)
