"""The family where methods are used: in wrappers, on devices, with injected numbers, saved and read."""

import functools
import inspect

import chex
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType

import optax_sam
from tests.devices import test_devices
from tests.devices.test_devices import WEIGHTS, placed_on, product_axes
from tests.problem import (
    assert_trees_close,
    assert_trees_equal,
    init_params,
    losses,
    make_batch,
    make_indices,
)
from tests.registry import FAMILY, before_sgd, compiled, make_step, over
from tests.rows import own_loss

every_kind = pytest.mark.parametrize("name", over(FAMILY), scope="module")


@every_kind
def test_one_slice_and_accumulated_parts_are_the_method_itself(name):
    """Of the methods that choose or split examples, the second half of this says only that they run."""
    tx, step = compiled(name)
    method = FAMILY[name].make()
    rows = [(make_batch(number), make_indices(number)) for number in range(2)]
    alone = init_params(), tx.init(init_params())
    for batch, indices in rows:
        alone = step(*alone, batch, indices)[:2]

    @jax.jit
    def steps(params, rows):
        found = []
        for form in (optax_sam.per_microbatch(method, 1), optax_sam.accumulated(method, 2)):
            tx, step = before_sgd(form)
            again = lambda carry, row, step=step: (step.__wrapped__(*carry, *row)[:2], None)
            found.append(jax.lax.scan(again, (params, tx.init(params)), rows)[0])
        return found

    for params, state in steps(init_params(), jax.tree.map(lambda *x: jnp.stack(x), *rows)):
        np.testing.assert_allclose(
            optax_sam.info(state)["gradients"], optax_sam.info(alone[1])["gradients"], rtol=1e-5
        )
        found, wanted = ((p, optax.tree.get(s, "trace")) for p, s in ((params, state), alone))
        assert_trees_close(found, wanted, rtol=1e-4, atol=1e-5)


def on_sharded(params, batch):
    """As `surrogate_losses`, written as the losses of `test_devices`."""
    without_tanh = batch["image"] @ params["layer_0"]["kernel"] + params["layer_0"]["bias"][None]
    logits = without_tanh @ params["layer_1"]["kernel"] + params["layer_1"]["bias"][None]
    chosen = jax.nn.one_hot(batch["label"], 3, dtype=logits.dtype)
    return -jnp.sum(jax.nn.log_softmax(logits) * chosen, axis=-1)


def made(name):
    return FAMILY[name].make(**own_loss(FAMILY[name], on_sharded))


@functools.cache
def on_one_device(name):
    return jax.device_get(test_devices.run(made(name), lambda tree, spec: tree, steps=2, weights=WEIGHTS)[0])


@product_axes
@every_kind
def test_a_sharded_batch_gives_the_trajectory_of_one_device(name, kind):
    wanted = on_one_device(name)
    with jax.set_mesh(mesh := jax.make_mesh((8,), ("data",), axis_types=(kind,))):
        got, state, _ = test_devices.run(made(name), placed_on(mesh), steps=2, weights=WEIGHTS)
        assert all(x.sharding.is_fully_replicated for x in jax.tree.leaves((got, state)))
    assert_trees_close(jax.device_get(got), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", over(FAMILY, ["momentum_sam", "sparse_sam"]))
def test_one_perturbation_per_device_is_one_per_slice(name):
    method = made(name)

    def run(form, mesh):
        step = jax.jit(make_step(form, form, test_devices.losses))
        params = init_params()
        return step(params, form.init(params), make_batch(), make_indices())[:2]

    with jax.set_mesh(mesh := jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))):
        got, state = jax.device_get(run(optax_sam.per_device(method), mesh))
    wanted, other = jax.device_get(run(optax_sam.per_microbatch(method, 4), None))
    assert_trees_close(got, wanted, rtol=1e-4, atol=1e-5)
    assert_trees_close(state.direction, other.direction, rtol=1e-4, atol=1e-5)


@every_kind
def test_injected_numbers_are_those_that_are_given(name):
    case = FAMILY[name]
    static = optax_sam.static_arguments(case.method)
    arguments = {**case.required, **case.own}
    injected = optax.inject_hyperparams(case.method, static_args=static)(**arguments)
    numbers = set(inspect.signature(case.method).parameters) - set(static)
    params, batch = init_params(), make_batch()

    @jax.jit
    def both(params):
        found = []
        for tx in (injected, case.make()):
            tx = optax.chain(tx, optax.sgd(0.1))
            step = optax_sam.step(tx, losses)
            again = lambda state, _, step=step: step(params, state, batch, indices=make_indices())[1::-1]
            found.append(jax.lax.scan(again, tx.init(params), length=2))
        return found

    (state, got), (_, wanted) = both(params)
    assert_trees_close(got, wanted, rtol=1e-4, atol=1e-5)
    hyperparams = set(state[0].hyperparams)
    assert hyperparams == numbers - {"seed"} | ({"seed"} & hyperparams)


STATIC = [(n, a) for n, case in FAMILY.items() for a in optax_sam.static_arguments(case.method)]


@pytest.mark.parametrize(("name", "argument"), STATIC)
def test_an_array_for_what_shapes_the_program_is_refused(name, argument):
    with pytest.raises((TypeError, ValueError), match=rf"^{argument}[ =]"):
        FAMILY[name].make(**{argument: jnp.asarray(2)})


@every_kind
def test_states_are_saved_and_read_bit_for_bit(name):
    tx, step = compiled(name)
    params = init_params()
    _, state, _ = step(params, tx.init(params), make_batch(), make_indices())
    read = flax.serialization.from_bytes(tx.init(params), flax.serialization.to_bytes(state))
    assert_trees_equal(read, state)
    chex.assert_trees_all_equal_structs(read, state)
    again = jax.tree.map(jnp.asarray, read)
    assert_trees_equal(
        step(params, again, make_batch(1), make_indices(1)),
        step(params, state, make_batch(1), make_indices(1)),
    )
