"""`optax_sam.step`: the two calls in one, bit for bit, over every method and wherever a method may stand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

import optax_sam
from tests.problem import (
    assert_trees_close,
    assert_trees_equal,
    init_params,
    losses,
    make_batch,
    make_indices,
)
from tests.registry import CASES, EVERY, FAMILY, METHODS, OPTIMIZERS, before_sgd, compiled, make_step, over

WHOLE = {"adasam": lambda: optax_sam.adasam(0.1), "bsam": lambda: optax_sam.bsam(48, num_microbatches=2)}
LABELS = {"layer_0": "a", "layer_1": "b"}


def made(name):
    return WHOLE[name]() if name in WHOLE else CASES[name].make()


def two_calls(method, tx):
    def step(params, state, batch, indices):
        loss, grads, oracle = method.value_and_grad(losses)(params, batch, state=state, indices=indices)
        updates, state = tx.update(grads, state, params, oracle=oracle, value=loss)
        return optax.apply_updates(params, updates), state, loss

    return jax.jit(step)


def both_runs(tx, long):
    """Two steps by the short door, and by the two calls."""
    short = jax.jit(optax_sam.step(tx, losses), donate_argnums=(0, 1))
    one, other = ((init_params(), tx.init(init_params())) for _ in range(2))
    for number in range(2):
        *one, loss = short(*one, make_batch(number), indices=make_indices(number))
        *other, wanted = long(*other, make_batch(number), make_indices(number))
    assert short._cache_size() == 1
    return (one, loss), (other, wanted)


@pytest.mark.parametrize("name", over([*EVERY, *OPTIMIZERS]))
def test_it_is_the_two_calls_bit_for_bit(name):
    tx, long = before_sgd(made(name)) if name in WHOLE else compiled(name)
    assert_trees_equal(*both_runs(tx, long))


def placed(method):
    """Where a method may stand."""
    base = optax.sgd(0.1, momentum=0.9)
    chained = optax.chain(method, base)
    return {
        "partition": optax.partition({"a": chained, "b": optax.sgd(0.1)}, LABELS),
        "masked": optax.chain(optax.masked(method, {"layer_0": True, "layer_1": False}), base),
        "apply_if_finite": optax.apply_if_finite(chained, 3),
        "conditionally_transform": optax.conditionally_transform(chained, lambda step: step >= 1),
        "schedule_free": contrib.schedule_free(chained, 0.1),
        "mechanize": contrib.mechanize(chained, s_init=0.1),
        "polyak": optax.chain(method, optax.polyak_sgd(max_learning_rate=0.5)),
        "named_chain": optax.named_chain(("sharpness", method), ("base", base)),
    }


PLACES = list(placed(optax_sam.sam()))


@pytest.mark.parametrize("place", over(PLACES, ["partition", "apply_if_finite", "mechanize"]))
@pytest.mark.parametrize("name", ["vsam", pytest.param("momentum_sam", marks=pytest.mark.slow)])
def test_it_is_the_two_calls_wherever_the_method_stands(name, place):
    method = made(name)
    tx = placed(method)[place]
    if place == "conditionally_transform" and not CASES[name].starts_at_params:
        with pytest.raises(ValueError, match="conditionally_transform around a method whose first gradient"):
            both_runs(tx, two_calls(method, tx))
        return
    assert_trees_equal(*both_runs(tx, two_calls(method, tx)))


@pytest.mark.parametrize("name", over(METHODS))
def test_with_injected_hyperparameters_it_is_the_method_with_these_numbers(name):
    """Where the two calls need an oracle by hand."""
    case = METHODS[name]
    static = optax_sam.static_arguments(case.method)
    injected = optax.inject_hyperparams(case.method, static_args=static)(**{**case.required, **case.own})
    found = []
    for method in (injected, case.make()):
        tx = optax.apply_if_finite(optax.chain(method, optax.sgd(0.1, momentum=0.9)), 3)
        step, run = jax.jit(optax_sam.step(tx, losses)), (init_params(), tx.init(init_params()))
        for number in range(2):
            *run, loss = step(*run, make_batch(number), indices=make_indices(number))
        found.append((run[0], loss))
    assert_trees_close(*found, rtol=1e-5, atol=1e-6)


def test_aux_keys_weights_scale_and_whole_batch_are_handed_on():
    def noisy(params, batch, shift, key):
        noise = 1 + 0.1 * jax.random.normal(key, batch["label"].shape)
        return noise * losses(params, batch) + shift, batch["label"]

    method = optax_sam.ausam(48)
    tx = optax.chain(method, optax.sgd(0.1))
    given = {
        "indices": make_indices(),
        "weights": jnp.arange(16) % 5,
        "whole_batch": True,
        "key": jax.random.key(1),
        "loss_scale": 128.0,
    }
    params = init_params()
    state = tx.init(params)
    got = optax_sam.step(tx, noisy, has_aux=True)(params, state, make_batch(), jnp.asarray(0.5), **given)
    found, grads, oracle = method.value_and_grad(noisy, has_aux=True)(
        params, make_batch(), jnp.asarray(0.5), state=state, **given
    )
    updates, state = tx.update(grads, state, params, oracle=oracle)
    assert_trees_equal(got, (optax.apply_updates(params, updates), state, found))
    real = np.arange(16) % 5 > 0
    np.testing.assert_array_equal(np.asarray(got[2][1])[real], make_batch()["label"][real])


def test_in_a_scan_over_steps_and_over_seeds_side_by_side():
    tx = optax.chain(optax_sam.sam(), optax.sgd(0.1))
    step = optax_sam.step(tx, losses)
    rows = jax.tree.map(lambda *x: jnp.stack(x), *[make_batch(n) for n in range(3)])

    def run(params):
        carry = params, tx.init(params)
        return jax.lax.scan(lambda carry, batch: (step(*carry, batch)[:2], None), carry, rows)[0][0]

    stacked = jax.tree.map(lambda x: jnp.stack([x, 1.5 * x]), init_params())
    together = jax.jit(jax.vmap(run))(stacked)
    assert_trees_close(jax.tree.map(lambda x: x[0], together), run(init_params()), rtol=1e-5, atol=1e-6)


def test_no_method_several_or_one_inside_multi_steps_are_named():
    params = init_params()
    several = optax.partition({"a": optax_sam.sam(), "b": optax_sam.sam(0.1)}, LABELS)
    inside = optax.MultiSteps(optax.chain(optax_sam.sam(), optax.sgd(0.1)), 2)
    lost = optax.GradientTransformation(optax_sam.sam().init, lambda u, s, p=None: (u, s))
    for tx, words in (
        (optax.sgd(0.1), "holds no state of a sharpness-aware method"),
        (several, "holds 2 states of sharpness-aware methods"),
        (inside, "MultiSteps around a sharpness-aware method"),
        (lost, "does not hand extra arguments on to it"),
    ):
        with pytest.raises(ValueError, match=words):
            optax_sam.step(tx, losses)(params, tx.init(params), make_batch())


def test_wrong_arguments_are_named():
    tx = optax.chain(optax_sam.sam(), optax.sgd(0.1))
    with pytest.raises(TypeError, match="tx=.* is no Optax transformation"):
        optax_sam.step(optax_sam.sam, losses)
    with pytest.raises(TypeError, match="losses=3 is not a function"):
        optax_sam.step(tx, 3)
    with pytest.raises(TypeError, match="has_aux=1 is no Python bool"):
        optax_sam.step(tx, losses, has_aux=1)
    assert set(WHOLE) == set(OPTIMIZERS) and set(EVERY) > set(FAMILY)


def test_the_registry_runs_the_same_two_calls():
    sam = optax_sam.sam()
    tx = optax.chain(sam, optax.sgd(0.1))
    state = tx.init(init_params())
    wanted = make_step(sam, tx)(init_params(), state, make_batch(), make_indices())
    assert_trees_equal(optax_sam.step(tx, losses)(init_params(), state, make_batch()), wanted)


def test_a_typed_key_among_the_parameters_stays_where_a_mask_hides_it_from_the_base_and_is_named_else():
    params, rows = {"w": jnp.ones(2), "k": jax.random.key(3)}, jnp.asarray([[1.0, 2.0], [0.5, -1.0]])
    of_rows = lambda params, rows: jnp.square(rows @ params["w"])
    sam, base = optax_sam.sam(0.1), optax.sgd(0.1)
    tx = optax.chain(sam, optax.masked(base, {"w": True, "k": False}))
    got, _, loss = jax.jit(optax_sam.step(tx, of_rows))(params, tx.init(params), rows)
    alone = optax.chain(sam, base)
    wanted, _, wanted_loss = optax_sam.step(alone, lambda w, rows: of_rows({"w": w}, rows))(
        params["w"], alone.init(params["w"]), rows
    )
    np.testing.assert_allclose(got["w"], wanted, rtol=1e-6)
    np.testing.assert_allclose(loss, wanted_loss, rtol=1e-6)
    assert jnp.array_equal(jax.random.key_data(got["k"]), jax.random.key_data(params["k"]))
    with pytest.raises(TypeError, match=r"^params\['k'\] is a typed key.* optax.masked"):
        optax_sam.step(alone, of_rows)(params, alone.init(params), rows)


@pytest.mark.parametrize("make", WHOLE.values(), ids=WHOLE)
def test_whole_optimizers_go_downhill_in_both_parts_of_a_complex_leaf(make):
    tx, params = make(), {"w": jnp.array([1.0 + 2.0j, -0.5 - 0.3j])}
    far = lambda p, b: jnp.square(b["image"][:, 0]) * jnp.sum(jnp.abs(p["w"]) ** 2)
    step = jax.jit(optax_sam.step(tx, far))
    after, _, _ = step(params, tx.init(params), make_batch())
    for part in (jnp.real, jnp.imag):
        assert (jnp.abs(part(after["w"])) < jnp.abs(part(params["w"]))).all()


def test_decoupled_refuses_a_complex_leaf_since_its_base_may_turn_gradients():
    with pytest.raises(ValueError, match="params has complex leaves.*leaves of their own"):
        optax_sam.decoupled(optax_sam.wsam(), optax.sgd(0.1), 0.1).init({"w": jnp.ones(2, complex)})
