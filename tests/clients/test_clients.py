"""Programs of eight kinds, without a method and with one: how many lines change, and what comes out."""

import inspect
from types import ModuleType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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
METHODS = [
    pytest.param(client, name, marks=() if name == entry.module.FAST else pytest.mark.slow)
    for client, entry in CLIENTS.items()
    for name in entry.module.METHODS
]


@pytest.fixture(autouse=True)
def promotion_as_the_libraries_need_it(as_optax_promotes):
    pass


def run(client, name, **settings):
    entry = CLIENTS[client]
    make = entry.module.METHODS[name]
    found, losses = entry.module.train_with_sam(make(RHO) if entry.made else make, entry.data(), **settings)
    return entry.module.params_of(found), losses


def assert_falls(losses):
    quarter = len(losses) // 4
    assert np.mean(losses[-quarter:]) < np.mean(losses[:quarter])


@pytest.mark.parametrize("client", CLIENTS)
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
