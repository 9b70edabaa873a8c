"""A loss that places its own arrays on the mesh, under `per_device`: each device computes its own part."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import optax_sam
from optax_sam.arithmetic import jaxprs
from tests.problem import assert_trees_close

MESHES = {"one axis": ((8,), ("data",)), "two axes": ((4, 2), ("data", "model"))}

RHO = 0.1


def losses_with(place, params, batch):
    """A net that places what it computes inside of all that JAX can trace; `place(x, *axes)`."""

    @jax.custom_vjp
    def sine(x):
        return place(jnp.sin(x), "data")

    def forward(x):
        return place(jnp.sin(x), "data"), place(x, "data")

    def backward(x, cotangent):
        return (place(cotangent * jnp.cos(x), "data"),)

    sine.defvjp(forward, backward)

    @jax.checkpoint
    def layer(x, weights):
        return place(jnp.tanh(place(x @ place(weights), "data")), "data"), None

    x, _ = lax.scan(layer, place(batch["x"], "data"), params["layers"])
    x = jax.jit(lambda x: place(jax.nn.relu(x), ("data", "model"), None))(x)
    x = place(x, "data", "model") + place(sine(place(x, "data")), "data", "model")
    x = place(x, "data")
    x = lax.cond(
        jnp.sum(place(params["last"])) > 0, lambda x: place(2 * x, "data"), lambda x: place(x, "data"), x
    )
    return jnp.sum(place(x @ place(params["last"]), "data"), axis=-1) ** 2


def init_params():
    keys = jax.random.split(jax.random.key(0), 2)
    return {"layers": jax.random.normal(keys[0], [2, 8, 8]) / 3, "last": jax.random.normal(keys[1], [8, 8])}


def make_batch():
    return {"x": jnp.asarray(np.random.default_rng(0).normal(size=(32, 8)), jnp.float32)}


@functools.cache
def by_hand(num_devices):
    """One step of SAM for each device's rows, in plain JAX: the mean of the perturbed gradients."""

    def mean(params, batch):
        return losses_with(lambda x, *axes: x, params, batch).mean()

    def of_device(rows):
        params = init_params()
        grads = jax.grad(mean)(params, rows)
        scale = RHO / jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(grads)))
        return jax.grad(mean)(jax.tree.map(lambda p, g: p + scale * g, params, grads), rows)

    parts = jax.tree.map(lambda x: x.reshape(num_devices, -1, *x.shape[1:]), make_batch())
    grads = jax.jit(lambda parts: lax.map(of_device, parts))(parts)
    return jax.device_get(jax.tree.map(lambda p, g: p - g.mean(0), init_params(), grads))


def mesh_of(name, kind):
    shape, names = MESHES[name]
    return jax.make_mesh(shape, names, axis_types=(kind,) * len(names))


def placing(mesh, kind, named=False):
    """`place` of the loss: with a constraint on automatic axes, by `reshard` on explicit ones."""

    def only_of_mesh(axis):
        kept = tuple(name for name in (axis if isinstance(axis, tuple) else (axis,)) if name in mesh.shape)
        return (kept if isinstance(axis, tuple) else kept[0]) if kept else None

    def place(x, *axes):
        spec = PartitionSpec(*(map(only_of_mesh, (*axes, *(None,) * (x.ndim - len(axes))))))
        move = lax.with_sharding_constraint if kind == AxisType.Auto else jax.sharding.reshard
        return move(x, NamedSharding(mesh, spec) if named else spec)

    return place


def stepped(mesh, losses, *axes):
    """A step, and what it is called with: parameters split over `axes`, the batch over `data`."""
    params = jax.device_put(init_params(), NamedSharding(mesh, PartitionSpec(*axes)))
    batch = jax.device_put(make_batch(), NamedSharding(mesh, PartitionSpec("data")))
    tx = optax.chain(optax_sam.per_device(optax_sam.sam(RHO)), optax.sgd(1.0))
    return jax.jit(optax_sam.step(tx, losses)), (params, tx.init(params), batch)


@pytest.mark.parametrize("split", [False, True], ids=["whole", "split"])
@pytest.mark.parametrize("kind", ["automatic", "automatic, by a mesh", "explicit"])
@pytest.mark.parametrize("name", MESHES)
def test_a_loss_that_places_its_arrays_has_the_numbers_of_each_device(name, kind, split):
    axis_type = AxisType.Explicit if kind == "explicit" else AxisType.Auto
    mesh = mesh_of(name, axis_type)
    losses = functools.partial(losses_with, placing(mesh, axis_type, named="mesh" in kind))
    with jax.set_mesh(mesh):
        step, given = stepped(mesh, losses, *((None, "data") if split else ()))
        params = step(*given)[0]
        if split and kind == "explicit":
            assert jax.tree.map(jax.typeof, params) == jax.tree.map(jax.typeof, given[0])
    assert_trees_close(jax.device_get(params), by_hand(mesh.shape["data"]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("weights", [None, np.arange(32) % 3], ids=["", "weights"])
@pytest.mark.parametrize("name", ["esam", "ksam"])
def test_methods_that_choose_examples_are_given_such_losses_too(name, weights):
    """All examples but a quarter are chosen, on each device: the numbers of slices on one device."""
    weights = weights if weights is None else jnp.asarray(weights, jnp.float32)
    method = optax_sam.esam(RHO, 1.0, 0.75) if name == "esam" else optax_sam.ksam(RHO, 0.75)
    mesh = mesh_of("one axis", AxisType.Explicit)
    losses = functools.partial(losses_with, placing(mesh, AxisType.Explicit))
    plain = functools.partial(losses_with, lambda x, *axes: x)
    tx = optax.chain(optax_sam.per_microbatch(method, 8), optax.sgd(1.0))
    wanted = jax.jit(optax_sam.step(tx, plain))(
        init_params(), tx.init(init_params()), make_batch(), weights=weights
    )[0]
    with jax.set_mesh(mesh):
        _, (params, _, batch) = stepped(mesh, losses)
        tx = optax.chain(optax_sam.per_device(method), optax.sgd(1.0))
        got = jax.jit(optax_sam.step(tx, losses))(params, tx.init(params), batch, weights=weights)[0]
    assert_trees_close(jax.device_get(got), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("named", [False, True])
def test_the_other_axes_of_a_constraint_are_kept(named):
    mesh = mesh_of("two axes", AxisType.Auto)
    losses = functools.partial(losses_with, placing(mesh, AxisType.Auto, named))
    with jax.set_mesh(mesh):
        step, given = stepped(mesh, losses)
        found = jaxprs.equations_of(jax.make_jaxpr(step)(*given))
        specs = {
            tuple(e.params["sharding"].spec)[:2]
            for e in found
            if e.primitive.name == "sharding_constraint" and e.invars[0].aval.ndim == 2
        }
    assert specs == {(None, None), ("model", None), (None, "model")}


def test_a_constraint_on_explicit_axes_asserts_what_it_asserts_outside():
    mesh = mesh_of("one axis", AxisType.Explicit)

    def losses(params, batch):
        hidden = lax.with_sharding_constraint(batch["x"] @ params["last"], PartitionSpec("data", None))
        return jnp.sum(hidden, axis=-1) ** 2

    with jax.set_mesh(mesh):
        step, given = stepped(mesh, losses)
        assert np.isfinite(jax.device_get(step(*given)[0]["last"])).all()

        def wrong(params, batch):
            return losses(params, {"x": jax.sharding.reshard(batch["x"], PartitionSpec())})

        step, given = stepped(mesh, wrong)
        with pytest.raises(AssertionError, match="acts as an assert"):
            step(*given)


def test_a_place_on_an_explicit_mesh_is_told_to_leave_the_mesh_out():
    mesh = mesh_of("two axes", AxisType.Explicit)
    losses = functools.partial(losses_with, placing(mesh, AxisType.Explicit, named=True))
    with jax.set_mesh(mesh):
        step, given = stepped(mesh, losses)
        with pytest.raises(ValueError, match="axis_name='data'.*without a mesh"):
            step(*given)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_a_loss_with_a_shard_map_over_the_axis_is_refused(kind):
    mesh = mesh_of("one axis", kind)

    def losses(params, batch):
        rows = PartitionSpec("data")
        return jax.shard_map(lambda x: jnp.sum(x, axis=-1), in_specs=rows, out_specs=rows)(
            jax.sharding.reshard(batch["x"], rows) if kind == AxisType.Explicit else batch["x"]
        )

    with jax.set_mesh(mesh):
        step, given = stepped(mesh, losses)
        with pytest.raises(ValueError, match=r"shard_map.*axis_names="):
            step(*given)
