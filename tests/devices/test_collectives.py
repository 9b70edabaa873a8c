"""What a step sends beside its gradients: each message costs a latency, however small it is."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import optax_sam
from tests import machines
from tests.devices.test_devices import every_axis_type, losses

WIDTH = 96  # of the layer by which the sum of a gradient is known

PLAIN = {"sam": optax_sam.sam, "rst": optax_sam.rst, "vsam": functools.partial(optax_sam.vsam, window=10)}
DRAWING = {
    "ausam": lambda rows, chips: optax_sam.ausam(4 * rows, strata=chips),
    "esam": lambda rows, chips: optax_sam.esam(strata=chips),
    "ksam": lambda rows, chips: optax_sam.ksam(strata=chips),
    "reweighted_sam": lambda rows, chips: optax_sam.reweighted_sam(weight=0.1, difference_step=1e-3),
}


def program(method, mesh, rows, has_weights=False):
    """The text of a step that is compiled for a mesh, of a batch that is split over it."""
    tx = optax.chain(method, optax.sgd(0.1, momentum=0.9))
    whole, split = (NamedSharding(mesh, spec) for spec in (PartitionSpec(), PartitionSpec("data")))

    def like(tree, sharding):
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)

    params = {
        "layer_0": {"kernel": jnp.ones([16, WIDTH]), "bias": jnp.zeros([WIDTH])},
        "layer_1": {"kernel": jnp.ones([WIDTH, 3]), "bias": jnp.zeros([3])},
    }
    batch = {"image": np.zeros([rows, 16], np.float32), "label": np.zeros([rows], np.int32)}
    numbers, weights = np.arange(rows, dtype=np.int32), np.ones([rows], np.float32)

    def step(params, state, batch, indices, weights):
        given = {"indices": indices} | ({"weights": weights} if has_weights else {})
        loss, grads, oracle = method.value_and_grad(losses)(params, batch, state=state, **given)
        updates, state = tx.update(grads, state, params, oracle=oracle)
        return optax.apply_updates(params, updates), state, loss

    with jax.set_mesh(mesh):
        kept = like((params, jax.eval_shape(tx.init, params)), whole)
        placed = like((batch, numbers, weights), split)
        return jax.jit(step).lower(*kept, *placed).compile().as_text()


def sent(text):
    """What is sent beside gradients: the kind of each collective and the shapes of its results.

    The compiler for CPUs alone gathers what `top_k` sees.
    """
    kinds = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter"
    lines = re.findall(rf"(%[\w.-]+) = (.*?) ({kinds})(?:-start)?\((.*)", text)
    gradient = re.compile(rf"\[(?:16,{WIDTH}|{WIDTH},16)\]")
    seen = re.findall(r'custom-call\((%[\w.-]+)\), custom_call_target="TopK"', text)  # as JAX 0.12 names it
    return [
        (kind, shape)
        for name, shape, kind, rest in lines
        if not (gradient.search(shape) or "top_k" in rest or name in seen)
    ]


def on_cpus(kind):
    return jax.make_mesh((8,), ("data",), axis_types=(kind,))


@every_axis_type
@pytest.mark.parametrize("name", PLAIN)
def test_losses_and_norms_travel_with_the_gradients(name, kind):
    assert sent(program(PLAIN[name](), on_cpus(kind), rows=64)) == []


@every_axis_type
@pytest.mark.parametrize(("name", "most"), [("sam", 3), ("rst", 4), ("vsam", 4)])
def test_weights_and_a_row_for_padding_travel_once(name, most, kind):
    found = sent(program(PLAIN[name](), on_cpus(kind), rows=64, has_weights=True))
    assert len(found) <= most and {operation for operation, _ in found} == {"all-reduce"}, found


@every_axis_type
@pytest.mark.parametrize(("name", "most"), [("ausam", 5), ("esam", 0), ("ksam", 0), ("reweighted_sam", 2)])
def test_draws_send_few_numbers(name, most, kind):
    found = sent(program(DRAWING[name](64, 8), on_cpus(kind), rows=64))
    assert len(found) <= most, found
    gathered = [shape for operation, shape in found if operation != "all-reduce"]
    assert all(re.match(r"s32\[(?:2,)?32\]", shape) for shape in gathered), "more than scores is gathered"


@every_axis_type
def test_few_and_small_messages_on_a_pod(kind):
    """Where this environment has the compiler for TPUs; no continuous integration has."""
    mesh = machines.mesh_of("v5e:16x16", kind)
    plain = {name: make() for name, make in PLAIN.items()}
    drawing = {name: make(4096, 256) for name, make in DRAWING.items()}
    for methods, most in ((plain, 3), (drawing, 5)):
        for name, method in methods.items():
            found = sent(program(method, mesh, rows=4096))
            assert len(found) <= most and {kind for kind, _ in found} <= {"all-reduce"}, (name, found)
