"""Inside and around Optax's own transformations."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_sam
from tests.registry import (
    METHODS,
    VARIANTS,
    assert_trees_close,
    assert_trees_equal,
    init_params,
    losses,
    make_batch,
    make_indices,
    make_step,
    train,
)

every_method = pytest.mark.parametrize("name", METHODS)
each_kind = pytest.mark.parametrize("name", ["sam", "vsam", "ausam"])  # plain, gated with memory, drawn


@pytest.fixture(autouse=True)
def as_optax_promotes():
    """Some of Optax's own transformations mix dtypes and ranks."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@every_method
def test_behind_it_the_chain_sees_the_sharpness_aware_gradient(name):
    method = METHODS[name].make()
    params, batch = init_params(), make_batch()
    tx = optax.chain(method, optax.clip_by_global_norm(0.01), optax.scale(-1.0))
    state = tx.init(params)
    step = jax.jit(make_step(method, tx))
    after, _, _ = step(params, state, batch, make_indices())
    moved = optax.tree.norm(jax.tree.map(jnp.subtract, after, params))
    np.testing.assert_allclose(moved, 0.01, rtol=1e-3)


@each_kind
@pytest.mark.parametrize(
    "wrap",
    [
        lambda m: optax.named_chain(("sharpness", m), ("base", optax.sgd(0.1))),
        lambda m: optax.chain(optax.chain(m, optax.add_decayed_weights(1e-3)), optax.adam(1e-2)),
        lambda m: optax.apply_if_finite(optax.chain(m, optax.sgd(0.1)), 3),
        lambda m: optax.chain(optax.conditionally_transform(m, lambda step: step >= 0), optax.sgd(0.1)),
        lambda m: optax.contrib.schedule_free(optax.chain(m, optax.sgd(0.1)), 0.1, b1=0.9),
        lambda m: optax.contrib.mechanize(optax.chain(m, optax.sgd(0.1))),
        lambda m: optax.chain(m, optax.MultiSteps(optax.sgd(0.1), 2)),
        lambda m: optax.chain(m, optax.contrib.muon(0.01)),
        lambda m: optax.masked(
            optax.chain(m, optax.sgd(0.1)), {"layer_0": True, "layer_1": {"kernel": True, "bias": False}}
        ),
    ],
    ids=[
        "named_chain",
        "nested_chain",
        "apply_if_finite",
        "conditionally_transform",
        "schedule_free",
        "mechanize",
        "multi_steps_behind",
        "muon",
        "masked",
    ],
)
def test_works_inside_and_around(name, wrap):
    method = METHODS[name].make()
    params, state, seen = train(method, wrap(method), steps=3)
    assert all(np.all(np.isfinite(np.asarray(x))) for x in jax.tree.leaves(params))
    assert np.isfinite(optax_sam.info(state)["grad_norm"])
    assert not np.allclose(seen[0], seen[2])


def test_reduce_on_plateau_and_polyak_take_their_value():
    params, batch = init_params(), make_batch()
    for base in (optax.contrib.reduce_on_plateau(), optax.polyak_sgd()):
        sam = optax_sam.sam()
        tx = optax.chain(sam, base)
        state = tx.init(params)
        loss, grads, oracle = sam.value_and_grad(losses)(params, batch, state=state)
        updates, _ = tx.update(grads, state, params, oracle=oracle, value=loss)
        assert optax.tree.norm(updates) > 0


@every_method
def test_inside_masked_the_full_parameters_are_perturbed_where_visible(name):
    if name in ("tsam", "ausam"):
        case = METHODS[name].but(needs_oracle=True)
    else:
        case = METHODS[name]
    method, params = case.make(), init_params()
    mask = {"layer_0": True, "layer_1": False}
    tx = optax.chain(optax.masked(method, mask), optax.sgd(0.1))
    state = tx.init(params)
    batch, indices = make_batch(), make_indices()
    loss, grads, oracle = method.value_and_grad(losses)(params, batch, state=state, indices=indices)
    updates, after = tx.update(grads, state, params, oracle=oracle)
    assert jax.tree.structure(updates) == jax.tree.structure(params)
    assert_trees_close(updates["layer_1"], jax.tree.map(lambda g: -0.1 * g, grads["layer_1"]))
    gradient = jax.grad(lambda p: jnp.mean(losses(p, batch)))
    with pytest.raises(ValueError, match=r"params"):
        tx.update(grads, state, params, oracle=optax_sam.Oracle(losses, batch, indices=indices))
    with pytest.raises(ValueError, match=r"grad_fn|oracle"):
        tx.update(grads, state, params, grad_fn=gradient)


def test_masked_sam_perturbs_the_visible_part_to_the_radius():
    sam, params, batch = optax_sam.sam(0.1), init_params(), make_batch()
    tx = optax.masked(sam, {"layer_0": True, "layer_1": False})
    state = tx.init(params)
    _, grads, oracle = sam.value_and_grad(losses)(params, batch, state=state)
    descent, _ = tx.update(grads, state, params, oracle=oracle)
    size = optax.tree.norm(grads["layer_0"])
    point = params | {
        "layer_0": jax.tree.map(lambda w, g: w + 0.1 * g / size, params["layer_0"], grads["layer_0"])
    }
    wanted = jax.grad(lambda p: jnp.mean(losses(p, batch)))(point)
    assert_trees_close(descent["layer_0"], wanted["layer_0"], rtol=1e-5, atol=1e-6)
    assert_trees_equal(descent["layer_1"], grads["layer_1"])


def test_partition_with_two_methods_asks_for_the_one_that_is_meant():
    labels = {"layer_0": "near", "layer_1": "far"}
    near, far = optax_sam.sam(0.01), optax_sam.sam(0.5)
    tx = optax.partition({"near": near, "far": far}, labels)
    params, batch = init_params(), make_batch()
    state = tx.init(params)
    with pytest.raises(ValueError, match=r"2 states .*near.*far|2 states .*far.*near"):
        near.value_and_grad(losses)(params, batch, state=state)
    _, grads, oracle = near.value_and_grad(losses)(params, batch, state=state.inner_states["near"])
    descent, state = tx.update(grads, state, params, oracle=oracle)
    assert jax.tree.structure(descent) == jax.tree.structure(params)
    near_info = optax_sam.info(state.inner_states["near"])
    np.testing.assert_allclose(near_info["perturbation_norm"], 0.01, rtol=1e-5)


def test_a_mask_on_the_ascent_perturbs_a_part_and_descends_on_all():
    mask = {"layer_0": True, "layer_1": False}
    keep = optax.chain(optax.masked(optax.set_to_zero(), jax.tree.map(lambda m: not m, mask)))
    method = optax_sam.sharpness_aware(optax.chain(keep, optax_sam.to_radius(0.1)))
    params, batch = init_params(), make_batch()
    _, grads, oracle = method.value_and_grad(losses)(params, batch, state=method.init(params))
    descent, state = method.update(grads, method.init(params), params, oracle=oracle)
    size = optax.tree.norm(grads["layer_0"])
    point = params | {
        "layer_0": jax.tree.map(lambda w, g: w + 0.1 * g / size, params["layer_0"], grads["layer_0"])
    }
    wanted = jax.grad(lambda p: jnp.mean(losses(p, batch)))(point)
    assert_trees_close(descent, wanted, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(optax_sam.info(state)["perturbation_norm"], 0.1, rtol=1e-5)


@every_method
def test_inside_multi_steps_the_step_refuses_and_names_both_repairs(name):
    method = METHODS[name].make()
    tx = optax.MultiSteps(optax.chain(method, optax.sgd(0.1)), 4)
    state = tx.init(init_params())
    with pytest.raises(ValueError, match=r"chain\(sam, optax.MultiSteps\(base, k\)\)(.|\n)*grad_fn"):
        method.value_and_grad(losses)(init_params(), make_batch(), state=state, indices=make_indices())


def test_state_without_ours_is_refused():
    with pytest.raises(ValueError, match="no state of a sharpness-aware method"):
        optax_sam.sam().value_and_grad(losses)(
            init_params(), make_batch(), state=optax.sgd(0.1).init(init_params())
        )


@pytest.mark.parametrize("name", ["sam", "rst", "vsam"])
def test_accumulated_gradient_function_is_the_big_batch(name):
    method, params = VARIANTS[name].make(), init_params()
    batch = make_batch(size=16)

    def accumulated(params):
        gradient = jax.grad(lambda p, b: jnp.mean(losses(p, b)))
        micro = optax.microbatching.microbatch(
            gradient, argnums=1, microbatch_size=4, accumulator=optax.microbatching.AccumulationType.MEAN
        )
        return micro(params, batch)

    got, _ = method.update(
        accumulated(params), method.init(params), params, grad_fn=accumulated, perturb=True
    )
    oracle = optax_sam.Oracle(losses, batch)
    wanted, _ = method.update(params, method.init(params), params, oracle=oracle, perturb=True)
    assert_trees_close(got, wanted, rtol=1e-5, atol=1e-6)
