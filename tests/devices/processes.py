"""What each process runs: `python -m tests.devices.processes ADDRESS NUMBER COUNT FILE METHODS`."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import optax_sam
from tests.devices.test_devices import losses
from tests.problem import init_params, make_batch, make_indices
from tests.registry import METHODS

NAMES = ("sam", "rst", "vsam", "tsam", "ausam", "per_device")
STEPS = 5


def method_of(name):
    if name == "per_device":
        return optax_sam.per_device(optax_sam.rst(0.1, seed=3))
    arguments = {"ausam": {"strata": 8}, "rst": {"seed": 4}}  # a seed whose steps are not all perturbed
    return METHODS[name].make(**arguments.get(name, {}))


def trajectory(name):
    """Parameters and decisions of some steps on all devices of all processes; the host decides."""
    method = method_of(name)
    tx = optax.chain(method, optax.sgd(0.1, momentum=0.9))
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))

    def place(tree, spec):
        return jax.tree.map(
            lambda x: jax.make_array_from_callback(
                x.shape, NamedSharding(mesh, spec), lambda index: np.asarray(x)[index]
            ),
            tree,
        )

    def step(params, state, batch, indices, perturb):
        _, grads, oracle = method.value_and_grad(losses)(params, batch, state=state, indices=indices)
        updates, state = tx.update(grads, state, params, oracle=oracle, perturb=perturb)
        return optax.apply_updates(params, updates), state

    jitted, decisions = jax.jit(step, static_argnames="perturb"), []
    with jax.set_mesh(mesh):
        params = place(init_params(), PartitionSpec())
        state = jax.jit(tx.init)(params)
        for number in range(STEPS):
            batch = place(make_batch(number), PartitionSpec("data"))
            indices = place(make_indices(number), PartitionSpec("data"))
            decisions.append(bool(method.due(state)))
            params, state = jitted(params, state, batch, indices, perturb=decisions[-1])
    flat = jnp.concatenate([x.reshape(-1) for x in jax.tree.leaves(params)])
    return np.asarray(flat), np.asarray(decisions)


def main(coordinator, number, count, out, *names):
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(coordinator, int(count), int(number))
    assert jax.process_count() == int(count)
    results = {}
    for name in names:
        results[f"{name} parameters"], results[f"{name} decisions"] = trajectory(name)
    np.savez(out, **results)


if __name__ == "__main__":
    main(*sys.argv[1:])
