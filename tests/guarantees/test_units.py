"""The unit of the loss is the unit of the descent, and decides nothing else."""

import jax
import jax.numpy as jnp
import optax
import pytest

import optax_sam
from tests.problem import assert_trees_equal, init_params, losses, make_batch, make_indices
from tests.registry import CASES, over

BY_UNIT = {
    "pugd": "its descent has no unit",
    "tsam": "the tilt multiplies the loss",
    "tsam_uniform": "the tilt multiplies the loss",
    "ausam": "an example has the score 1 at first",
    "ausam_strata": "an example has the score 1 at first",
    "ausam_gradient_norm": "an example has the score 1 at first",
    "reweighted_sam": "the weights compare gradient norms with 1",
    "graphsam": "a gradient and directions of length 1 are in one mean",
    "adaptive_random_perturbation": "the noise compares squared gradients with 1",
    "extrapolation": "the perturbation is a step of the learning rate",
    "preconditioned_sam": "epsilon is in the unit of the gradient",
    "sam_sps": "the loss decides the length of the step",
    "functional_sam": "it is given its loss apart",
    "fgsam": "it is given its loss apart",
    "fgsam_plus": "it is given its loss apart",
}

ANY_UNIT = [name for name, case in CASES.items() if case.is_scale_free and name not in BY_UNIT]


def descents(method, unit, steps=6):
    """Of some steps, with a learning rate in the same unit."""
    params, found = init_params(), []
    state = method.init(params)

    @jax.jit
    def step(params, state, batch, indices):
        scaled = method.value_and_grad(lambda p, b: unit * losses(p, b))
        _, grads, oracle = scaled(params, batch, state=state, indices=indices)
        descent, state = method.update(grads, state, params, oracle=oracle)
        descent = jax.tree.map(lambda x: x / unit, descent)
        return optax.apply_updates(params, optax.tree.scale(-0.3, descent)), state, descent

    for number in range(steps):
        params, state, descent = step(params, state, make_batch(number), make_indices(number))
        found.append(descent)
    return found


@pytest.mark.parametrize("unit", [2.0**-70, 2.0**70])
@pytest.mark.parametrize("name", over(ANY_UNIT, ["sam", "vsam", "looksam", "friendly_sam"]))
def test_a_loss_in_another_unit_has_the_same_steps(name, unit):
    method = CASES[name].make()
    assert_trees_equal(descents(method, unit), descents(method, 1.0))


@pytest.mark.parametrize("unit", [2.0**-70, 2.0**70])
def test_what_is_a_large_gradient_is_so_in_any_unit(unit):
    method, params = optax_sam.aesam(10, start_threshold=1.0, end_threshold=1.0), {"w": jnp.ones(())}

    def decisions(unit):
        state, found = method.init(params), []
        for size in (1.0, 1.0, 1.2, 2.0, 1.0, 1.5, 2.2, 1.9):
            loss = lambda p, _, size=size: unit * size * p["w"][None]
            _, grads, oracle = method.value_and_grad(loss)(params, jnp.zeros(1), state=state)
            _, state = method.update(grads, state, params, oracle=oracle)
            found.append(bool(optax_sam.info(state)["perturbed"]))
        return found

    assert decisions(unit) == decisions(1.0)
    assert len({*decisions(1.0)}) == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", BY_UNIT)
def test_an_exception_is_one(name):
    method = CASES[name].make()
    same = jax.tree.map(jnp.array_equal, descents(method, 2.0**44, 20), descents(method, 1.0, 20))
    assert not all(jax.tree.leaves(same))
