"""Parameters split over the devices that also split the batch (FSDP): every method keeps them so."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import optax_sam
from tests.devices.test_devices import product_axes
from tests.problem import assert_trees_close, make_indices
from tests.registry import CASES, FAMILY, METHODS, over

REST = [name for name in FAMILY if name not in ("fgsam", "fgsam_plus", "focal_sam", "functional_sam")]
"""The rest of the family, but for those that bring losses or labels of their own."""

SPLIT = ("vsam", "ausam", "sparse_sam")
"""What keeps a gradient, scores or a mask; the others are slow."""


def init_params():
    keys = jax.random.split(jax.random.key(0), 2)
    return {
        "layer_0": {"kernel": 0.5 * jax.random.normal(keys[0], [8, 16]), "bias": 0.1 * jnp.ones([16])},
        "layer_1": {"kernel": 0.5 * jax.random.normal(keys[1], [16, 8]), "bias": 0.1 * jnp.ones([8])},
    }


def make_batch():
    rng = np.random.default_rng(0)
    return {
        "image": jnp.asarray(rng.normal(size=(16, 8)), jnp.float32),
        "label": jax.nn.one_hot(rng.integers(0, 8, 16), 8),
    }


def losses(gather, params, batch):
    params = jax.tree.map(gather, params)
    hidden = jnp.tanh(batch["image"] @ params["layer_0"]["kernel"] + params["layer_0"]["bias"][None])
    logits = hidden @ params["layer_1"]["kernel"] + params["layer_1"]["bias"][None]
    return -jnp.sum(jax.nn.log_softmax(logits) * batch["label"], axis=-1)


def run(method, place, gather):
    """Two steps: `(params, state, types of the state at init)`."""
    tx = optax.chain(method, optax.sgd(0.1, momentum=0.9))
    params, batch = place(init_params()), place(make_batch())
    state = tx.init(params)
    types = jax.tree.map(jax.typeof, state)

    @jax.jit
    def step(params, state, batch, indices):
        _, grads, oracle = method.value_and_grad(functools.partial(losses, gather))(
            params, batch, state=state, indices=indices
        )
        updates, state = tx.update(grads, state, params, oracle=oracle)
        return optax.apply_updates(params, updates), state

    for number in range(2):
        params, state = step(params, state, batch, place(make_indices(number)))
    return params, state, types


def made(name, per_part):
    """A method of the registry; after "per part of", in as many parts as devices."""
    inner = CASES[name.removeprefix("per part of ")].make()
    return per_part(inner) if name.startswith("per part of ") else inner


@functools.cache
def on_one_device(name):
    method = made(name, lambda inner: optax_sam.per_microbatch(inner, 8))
    params, state, _ = run(method, lambda tree: tree, lambda x: x)
    return jax.device_get((params, optax_sam.info(state)))


@product_axes
@pytest.mark.parametrize("name", over([*METHODS, *REST, "per part of sam", "per part of vsam"], SPLIT))
def test_split_parameters_stay_split_and_norms_are_global(name, kind):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    split = NamedSharding(mesh, PartitionSpec("data"))

    def gather(x):
        if name.startswith("per part of "):
            return x  # the step has gathered them
        whole = PartitionSpec(*(None,) * x.ndim)
        if kind == AxisType.Explicit:
            return jax.sharding.reshard(x, whole)
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, whole))

    with jax.set_mesh(mesh):
        params, state, types = run(
            made(name, optax_sam.per_device), lambda tree: jax.device_put(tree, split), gather
        )
        own = () if kind == AxisType.Auto and name.startswith("per part of ") else state[0].reuse
        for tree in (params, own, state[1]):
            leaves = [x for x in jax.tree.leaves(tree) if x.ndim]
            assert all(x.sharding.spec[0] == "data" for x in leaves)
        if kind == AxisType.Explicit:
            assert jax.tree.map(jax.typeof, state) == types
    wanted_params, wanted_info = on_one_device(name)
    assert_trees_close(jax.device_get(params), wanted_params, rtol=1e-4, atol=1e-5)
    for key, value in optax_sam.info(state).items():
        np.testing.assert_allclose(value, wanted_info[key], rtol=1e-3, atol=1e-5, err_msg=key)
