"""One perturbation per device, on automatic and explicit axes: the slices of `per_microbatch`."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import optax_sam
from tests.devices.test_devices import losses, placed_on, product_axes
from tests.problem import assert_trees_close, init_params, make_batch, make_indices
from tests.registry import METHODS, over

every_axis_type = pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)

WEIGHTS = np.where(np.arange(32) % 5 == 3, 0, 1 + np.arange(32) / 32).astype(np.float32)
WEIGHTS[8:12] = 0  # all that the third device has is padding


def stepper(method, loss_fn=losses):
    @jax.jit
    def step(params, state, batch, indices, weights):
        loss, grads, oracle = method.value_and_grad(loss_fn)(
            params, batch, state=state, indices=indices, weights=weights
        )
        return loss, *method.update(grads, state, params, oracle=oracle)

    return step


def rows(number):
    return make_batch(number, 32), make_indices(number, 32), jnp.asarray(WEIGHTS)


@functools.cache
def in_slices(name):
    """Two steps of `per_microbatch` with eight slices, on one device."""
    method = optax_sam.per_microbatch(METHODS[name].make(), 8)
    step, state, seen = stepper(method), method.init(init_params()), []
    for number in range(2):
        loss, descent, state = step(init_params(), state, *rows(number))
        seen.append((loss, descent))
    return jax.device_get((seen, state))


@product_axes
@pytest.mark.parametrize("name", over(METHODS))
def test_per_device_is_per_microbatch_with_a_slice_a_device(name, kind):
    method = optax_sam.per_device(METHODS[name].make())
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    place = placed_on(mesh)
    with jax.set_mesh(mesh):
        params, seen = place(init_params(), PartitionSpec()), []
        step, state = stepper(method), method.init(params)
        types = jax.tree.map(jax.typeof, state)
        for number in range(2):
            loss, descent, state = step(params, state, *place(rows(number), PartitionSpec("data")))
            seen.append((loss, descent))
        assert jax.tree.map(jax.typeof, state) == types
        assert all(x.sharding.is_fully_replicated for x in jax.tree.leaves((seen, state)))
    assert_trees_close(jax.device_get((seen, state)), in_slices(name), rtol=1e-4, atol=1e-5)


def convolutional(params, batch, stats, key):
    """A loss with batch statistics and a key as further arguments: `losses, new statistics`."""
    return convolutional_closed(stats, key)(params, batch)


def convolutional_closed(stats, key):
    """The same, closed over."""

    def noise(shape):
        return 1 + 0.1 * jax.random.normal(key, shape)

    def losses(params, batch):
        hidden = lax.conv_general_dilated(
            batch["image"], params["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        mean = jnp.mean(hidden, axis=(0, 1, 2))
        hidden = jax.nn.relu(hidden - 0.9 * mean - 0.1 * stats["mean"]) * noise(hidden.shape[1:])[None]
        logits = hidden.mean(axis=(1, 2)) @ params["head"]
        chosen = jax.nn.one_hot(batch["label"], 3, dtype=logits.dtype)
        aux = {"mean": 0.9 * stats["mean"] + 0.1 * mean}
        return -jnp.sum(jax.nn.log_softmax(logits) * chosen, axis=-1), aux

    return losses


def convolutional_step(method, params, state, batch, stats, key):
    with jax.numpy_rank_promotion("allow"):
        (loss, stats), grads, oracle = method.value_and_grad(convolutional, has_aux=True)(
            params, batch, stats, key, state=state
        )
        return loss, *method.update(grads, state, params, oracle=oracle), stats


def convolutional_inputs(width=8):
    keys = jax.random.split(jax.random.key(0), 3)
    params = {
        "kernel": 0.3 * jax.random.normal(keys[0], [3, 3, 2, width]),
        "head": jax.random.normal(keys[1], [width, 3]),
    }
    images = jax.random.normal(keys[2], [32, 6, 6, 2])
    batch = {"image": images, "label": jnp.arange(32) % 3}
    return params, batch, {"mean": 0.1 * jnp.arange(float(width))}, jax.random.key(7)


@product_axes
def test_further_arguments_reach_every_device(kind):
    """Batch statistics and a key, on a convolutional net."""
    params, batch, stats, key = convolutional_inputs()
    sam = optax_sam.sam(0.2)
    sliced = optax_sam.per_microbatch(sam, 8)
    step = jax.jit(functools.partial(convolutional_step, sliced))
    wanted = jax.device_get(step(params, sliced.init(params), batch, stats, key))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    place = placed_on(mesh)
    with jax.set_mesh(mesh):
        method = optax_sam.per_device(sam)
        whole = place((params, method.init(params), stats, key), PartitionSpec())
        step = jax.jit(functools.partial(convolutional_step, method))
        got = step(*whole[:2], place(batch, PartitionSpec("data")), *whole[2:])
    got = jax.device_get(got)
    assert got[-1]["mean"].shape == (8, 8)  # statistics of every slice
    assert_trees_close(got, wanted, rtol=1e-4, atol=1e-5)


def all_reduced_elements(compiled):
    """How many numbers a compiled program sums over devices."""
    total = 0
    for line in compiled.as_text().splitlines():
        if found := re.search(r"= (.*?) all-reduce(?:-start)?\(", line):
            for shape in re.findall(r"\w+\[([\d,]*)\]", found[1]):
                total += int(np.prod([int(n) for n in shape.split(",") if n]))
    return total


@every_axis_type
@pytest.mark.parametrize("net", ["dense", "convolutional"])
def test_gradients_are_all_reduced_once(net, kind):
    """SGD sums each gradient once, SAM of the global batch twice, one perturbation per device once."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    place = placed_on(mesh)

    def step_of(method):
        tx = optax.sgd(0.1) if method is None else optax.chain(method, optax.sgd(0.1))
        method = optax_sam.rst(0.0, probability=0.0) if method is None else method

        def step(params, state, batch, stats, key):
            args = (stats, key) if net == "convolutional" else ()
            loss_fn = (lambda *args: convolutional(*args)[0]) if args else losses
            with jax.numpy_rank_promotion("allow"):
                _, grads, oracle = method.value_and_grad(loss_fn)(
                    params, batch, *args, state=method.init(params)
                )
                return tx.update(grads, state, params, oracle=oracle)

        return tx, step

    if net == "dense":
        params, batch, stats, key = init_params(), make_batch(0, 32), {}, jax.random.key(0)
        params["layer_0"] = {"kernel": jnp.ones([5, 200]), "bias": jnp.ones([200])}
        params["layer_1"]["kernel"] = jnp.ones([200, 3])
    else:
        params, batch, stats, key = convolutional_inputs(width=64)
    size = sum(x.size for x in jax.tree.leaves(params))
    seen = {}
    with jax.set_mesh(mesh):
        whole, split = place((params, stats, key), PartitionSpec()), place(batch, PartitionSpec("data"))
        methods = {"sgd": None, "sam": optax_sam.sam(), "per_device": optax_sam.per_device(optax_sam.sam())}
        for name, method in methods.items():
            if net == "convolutional" and name != "per_device" and kind == AxisType.Explicit:
                continue  # batch norm over a batch split on explicit axes is the user's to write
            tx, step = step_of(method)
            compiled = jax.jit(step).lower(whole[0], tx.init(whole[0]), split, *whole[1:]).compile()
            assert not re.search(r"all-gather|all-to-all|collective-permute", compiled.as_text())
            seen[name] = all_reduced_elements(compiled) / size
    extra = (100 + 4 * 64) / size  # losses, norms, the integers of a state, batch statistics
    wanted = {"sgd": 1, "sam": 2, "per_device": 1}
    for name, times in seen.items():
        assert wanted[name] <= times <= wanted[name] + extra, (name, times)


@product_axes
def test_per_device_composes_with_slices_and_draws(kind):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(kind,), devices=jax.devices()[:4])
    place, batch = placed_on(mesh), make_batch(0, 32)
    nested = optax_sam.per_device(optax_sam.per_microbatch(optax_sam.sam(0.2), 2))
    flat = optax_sam.per_microbatch(optax_sam.sam(0.2), 8)
    indices, weights = jnp.arange(32), jnp.ones(32)
    wanted = stepper(flat)(init_params(), flat.init(init_params()), batch, indices, weights)
    with jax.set_mesh(mesh):
        params = place(init_params(), PartitionSpec())
        split = place((batch, indices, weights), PartitionSpec("data"))
        got = stepper(nested)(params, nested.init(params), *split)
    assert_trees_close(jax.device_get(got), jax.device_get(wanted), rtol=1e-4, atol=1e-5)


def test_without_a_mesh_or_with_another_axis_it_says_what_to_do():
    method = optax_sam.per_device(optax_sam.sam(), "rows")
    arguments = init_params(), method.init(init_params()), *rows(0)
    with pytest.raises(ValueError, match=r"axis_name='rows' is no axis.*jax.set_mesh"):
        stepper(method)(*arguments)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    with jax.set_mesh(mesh), pytest.raises(ValueError, match=r"axis_name='rows'.*\['data'\]"):
        stepper(method)(*arguments)


def test_batch_that_the_devices_do_not_divide_is_refused():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    method = optax_sam.per_device(optax_sam.sam())
    with (
        jax.set_mesh(mesh),
        pytest.raises(ValueError, match="8 devices, which do not divide the batch of 12"),
    ):
        method.value_and_grad(losses)(init_params(), make_batch(0, 12), state=method.init(init_params()))


def test_inside_another_shard_map_it_says_what_to_do():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    method = optax_sam.per_device(optax_sam.sam())
    step = jax.shard_map(stepper(method), mesh=mesh, in_specs=PartitionSpec(), out_specs=PartitionSpec())
    with pytest.raises(ValueError, match="axis_name='data' belongs to a shard_map that is around"):
        step(init_params(), method.init(init_params()), *rows(0))


@product_axes
def test_other_axes_of_the_mesh_are_left_alone(kind):
    """Parameters split over a second axis stay split: per-device means per place along `data`."""
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(kind, kind))
    method = optax_sam.per_device(optax_sam.sam(0.2))
    flat = optax_sam.per_microbatch(optax_sam.sam(0.2), 4)

    def losses(params, batch):
        return jnp.sum(jnp.sin(params["w"])[None] * batch["x"], axis=-1) ** 2

    params = {"w": jnp.linspace(-1.0, 1.0, 6)}
    batch = {"x": jnp.asarray(np.random.default_rng(0).normal(size=(8, 6)), jnp.float32)}
    step = stepper(flat, losses)
    wanted = step(params, flat.init(params), batch, None, None)
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, NamedSharding(mesh, PartitionSpec("model")))
        split = jax.device_put(batch, NamedSharding(mesh, PartitionSpec("data")))
        got = stepper(method, losses)(placed, method.init(placed), split, None, None)
        assert got[1]["w"].sharding.spec == PartitionSpec("model")
    assert_trees_close(jax.device_get(got), jax.device_get(wanted), rtol=1e-4, atol=1e-5)


@every_axis_type
def test_slices_on_devices_have_random_numbers_of_their_own(kind):
    """Three slices on each of eight devices: as many first points, those of slices of slices."""
    noisy = optax_sam.sharpness_aware(
        optax_sam.ascents.to_radius(0.1), start=optax_sam.starts.at_random(), seed=4
    )
    slices, params, batch = optax_sam.per_microbatch(noisy, 3), jnp.zeros(2), jnp.ones(24)

    def seen(params, batch):
        return batch * jnp.sum(params), params

    def noises_of(method, params, batch):
        state = method.init(params)
        first = jax.jit(lambda *given: method.value_and_grad(seen, has_aux=True)(*given, state=state)[0])
        return np.asarray(first(params, batch)[1]).reshape(-1, 2)

    wanted = noises_of(optax_sam.per_microbatch(slices, 8), params, batch)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    place = placed_on(mesh)
    with jax.set_mesh(mesh):
        placed = place(params, PartitionSpec()), place(batch, PartitionSpec("data"))
        found = noises_of(optax_sam.per_device(slices), *placed)
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    assert len(np.unique(found, axis=0)) == 24
