"""Programs of eight kinds, without a method and with one: how many lines change, and what comes out."""

import functools
import inspect
from types import ModuleType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoNormal

import optax_sam
from tests.clients import (
    boxed,
    equinox_filtered,
    factory,
    graphs,
    nnx_rngs,
    pmapped,
    scanned,
    svi,
)
from tests.clients.common import RHO, changed_lines, image_batches
from tests.problem import assert_trees_close, assert_trees_equal
from tests.registry import over


class Client(NamedTuple):
    module: ModuleType
    data: object  # makes what the program trains on
    made: bool = True  # whether the program takes a method that is made, not what makes one
    rtol: float = 2e-5


CLIENTS = {
    "pmap": Client(pmapped, image_batches),
    "nnx": Client(nnx_rngs, image_batches),
    "equinox": Client(equinox_filtered, image_batches),
    "factory": Client(factory, image_batches, made=False),
    "boxed": Client(boxed, boxed.token_batches),
    "scan": Client(scanned, lambda: image_batches()[0]),
    "graphs": Client(graphs, graphs.rings),
    "svi": Client(svi, svi.observations),
}
FAST = ("pmap", "nnx")
METHODS = [
    pytest.param(client, name, marks=() if client in FAST and name == entry.module.FAST else pytest.mark.slow)
    for client, entry in CLIENTS.items()
    for name in entry.module.METHODS
]


@pytest.fixture(autouse=True)
def promotion_as_the_libraries_need_it(as_optax_promotes):
    pass


@functools.cache
def run(client, name, **settings):
    entry = CLIENTS[client]
    make = entry.module.METHODS[name]
    found, losses = entry.module.train_with_sam(make(RHO) if entry.made else make, entry.data(), **settings)
    return entry.module.params_of(found), losses


def assert_falls(losses):
    quarter = len(losses) // 4
    assert np.mean(losses[-quarter:]) < np.mean(losses[:quarter])


@pytest.mark.parametrize("client", over(CLIENTS, ["pmap", "nnx", "boxed", "graphs"]))
def test_program_with_sam_is_the_one_with_the_step_written_by_hand(client):
    settings = {"dtype": jnp.float32} if client == "pmap" else {}
    got, losses = run(client, "sam", **settings)
    wanted, wanted_losses = CLIENTS[client].module.by_hand()
    assert len(got) == len(wanted) >= 4
    for one, other in zip(got, wanted, strict=True):
        assert jax.tree.structure(one) == jax.tree.structure(other)
        for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
            np.testing.assert_allclose(x, y, rtol=5e-5, atol=5e-6)
    np.testing.assert_allclose(losses, wanted_losses, rtol=5e-5, atol=5e-6)


@pytest.mark.parametrize("client", CLIENTS)
def test_program_without_a_method_trains_and_few_lines_change(client):
    module = CLIENTS[client].module
    found, losses = module.train(CLIENTS[client].data())
    assert_falls(losses)
    plain, sharp = module.params_of(found), run(client, "sam")[0]
    distances = jax.tree.map(lambda x, y: np.abs(x - y).max(), plain[-1], sharp[-1])
    assert max(jax.tree.leaves(distances)) > 1e-4  # so that the comparison by hand tells them apart
    assert changed_lines(module.train, module.train_with_sam) == module.CHANGED
    assert list(inspect.signature(module.train_with_sam).parameters)[1:] == list(
        inspect.signature(module.train).parameters
    )


@pytest.mark.parametrize(("client", "name"), METHODS)
def test_every_method_that_the_door_allows_trains(client, name):
    trajectory, losses = run(client, name)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((trajectory, losses)))
    assert_falls(losses)


def test_under_pmap_a_step_whose_second_gradient_overflows_is_skipped_and_halves_the_scale():
    """The loss scale of Flax judges the gradients that it has taken itself: the first one, not the second.

    So the program hands it the verdict over both. Without the two lines that do, the parameters are lost.
    """
    far = optax_sam.sam(1e6)
    states, losses = pmapped.train_with_sam(far, image_batches()[:3], scale=2.0**10)
    start = pmapped.create(pmapped.Net(jnp.float16), far, 1.0).params
    for params in pmapped.params_of(states):
        assert_trees_equal(params, jax.device_get(start))
    assert [float(state.dynamic_scale.scale[0]) for state in states] == [2.0**9, 2.0**8, 2.0**7]
    assert np.isfinite(losses).all()


def test_per_device_takes_parameters_in_their_boxes():
    """A box asks for its place on the mesh when it is opened, inside the `shard_map` too."""
    batch = boxed.token_batches()[0]
    params = boxed.Net().init(jax.random.key(0), batch)["params"]

    def loss_fn(params, tokens):
        return boxed.cross_entropy(boxed.Net().apply({"params": params}, tokens[:, :-1]), tokens[:, 1:])

    def step(method):
        return jax.jit(optax_sam.step(optax.chain(method, optax.sgd(0.1)), loss_fn))

    sam = optax_sam.sam(RHO)
    opt_state = optax.chain(sam, optax.sgd(0.1)).init(params)
    wanted, *_ = step(optax_sam.per_microbatch(sam, 4))(params, opt_state, batch)
    with jax.set_mesh(boxed.MESH):
        per_device, split = optax_sam.per_device(sam, axis_name="data"), jax.device_put(batch, boxed.SPLIT)
        found, *_ = step(per_device)(params, opt_state, split)
    assert_trees_close(jax.device_get(found), jax.device_get(wanted), rtol=1e-5, atol=1e-6)


def test_a_factory_may_build_a_schedule_of_the_radius_once_only():
    """Functions are compared by identity. The error says so, and the short door needs no comparison."""
    method = lambda rho: optax_sam.sam(optax.constant_schedule(rho))
    with pytest.raises(ValueError, match=r"rho is a function of its own.*Use one object.*optax_sam\.step"):
        factory.train_with_sam(method, image_batches())
    step = lambda *args: optax_sam.step(optax.chain(method(RHO), optax.sgd(0.1)), factory.loss_fn)(*args)
    params = factory.init_params(jax.random.key(0))
    opt_state = optax.chain(method(RHO), optax.sgd(0.1)).init(params)
    *_, loss = jax.jit(step)(params, opt_state, image_batches()[0])
    assert np.isfinite(loss)


def test_eager_steps_over_graphs_compile_nothing_after_the_first_ones():
    """As in jraph's examples, where the gradient is compiled and the optimizer is called outside."""
    compilations = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: compilations.append(event) if "backend_compile" in event else None
    )

    def batches():
        for number, batch in enumerate(graphs.rings() * 2):
            if number == 8:
                compilations.clear()
            yield batch

    graphs.train_with_sam(graphs.METHODS["looksam"](RHO), batches())
    assert not compilations


def test_svi_with_a_method_in_a_bare_optimizer_names_what_is_missing():
    """NumPyro takes Optax's optimizers, and hands them the gradient alone."""
    tx = optax.chain(optax_sam.sam(RHO), optax.adam(0.05))
    found = SVI(svi.model, AutoNormal(svi.model), tx, Trace_ELBO())
    with pytest.raises(ValueError, match="none of oracle and grad_fn is given"):
        found.run(jax.random.key(0), 3, *svi.observations()[0], progress_bar=False)
