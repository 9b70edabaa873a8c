"""Wrappers around methods that draw, with padding and in low precision."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optax_sam
from tests.problem import assert_trees_close, init_params, losses, make_batch, make_indices
from tests.registry import one_step


def test_slices_of_a_method_that_draws_starts_anew_in_its_own_slice():
    method = optax_sam.per_microbatch(optax_sam.tsam(num_samples=2, radius=0.0), 4)
    sam = optax_sam.per_microbatch(optax_sam.sam(), 4)
    got, state, _ = one_step(method, init_params(), make_batch())
    wanted, _, _ = one_step(sam, init_params(), make_batch())
    assert_trees_close(got, wanted, rtol=1e-5, atol=1e-6)  # no noise: all samples are the same
    assert optax_sam.info(state)["gradients"] == 4


def test_padding_by_index_weighs_nothing_in_slices():
    whole = optax_sam.ausam(48, rho=0.0, fraction=1.0)
    indices = make_indices().at[8:].set(-1)
    wanted, _, _ = one_step(whole, init_params(), make_batch(), indices=indices)
    sliced = optax_sam.per_microbatch(whole, 2)
    got, _, _ = one_step(sliced, init_params(), make_batch(), indices=indices)
    assert_trees_close(got, wanted, rtol=1e-5, atol=1e-6)


def test_scores_are_the_same_in_slices():
    method = optax_sam.ausam(48, rho=0.1, fraction=1.0)
    _, state, _ = one_step(optax_sam.per_microbatch(method, 1), init_params(), make_batch())
    start = method.method.start
    context = make_indices(), jnp.ones(16), jnp.zeros([], jnp.int32)
    wanted = start.log_weights(state.start, *context)
    quarter = state.start._replace(
        score_sum=state.start.score_sum / 4, times_scored=state.start.times_scored / 4
    )  # the mean over four slices, of which one has seen the example
    np.testing.assert_allclose(start.log_weights(quarter, *context), wanted, rtol=1e-6)


@pytest.mark.parametrize(
    ("method", "radius"), [(optax_sam.asam(0.5), 0.5 * 20.01), (optax_sam.pugd(), 1.0)], ids=["asam", "pugd"]
)
def test_products_with_the_weights_do_not_overflow_in_float16(method, radius):
    params = {"w": jnp.full([4], 20.0, jnp.float16)}

    def steep(params, batch):
        return 20000.0 * jnp.sum(params["w"].astype(jnp.float32)) * jnp.ones_like(batch["image"][:, 0])

    descent, state, _ = one_step(method, params, make_batch(), steep)
    np.testing.assert_allclose(optax_sam.info(state)["perturbation_norm"], radius, rtol=1e-3)
    assert np.all(np.isfinite(np.asarray(descent["w"]))) and descent["w"].dtype == jnp.float16


def test_a_burst_of_huge_gradients_does_not_stop_vsam():
    method = optax_sam.vsam(0.1, window=4, slices=2, max_rate=0.75)
    params = jnp.ones(3)

    @jax.jit
    def step(state, scale):
        return method.update(scale * params**2, state, params, grad_fn=lambda p: scale * p**2)[1]

    state, perturbed = method.init(params), []
    for number in range(40):
        state = step(state, 1e22 if number < 8 else 1.0)
        assert all(np.all(np.isfinite(np.asarray(x))) for x in jax.tree.leaves(state))
        perturbed.append(float(optax_sam.info(state)["perturbed"]))
    assert sum(perturbed[20:]) >= 5  # at least one step in each of five windows


def test_vsam_remembers_a_finite_difference_of_gradients_wider_than_the_parameters():
    method, params = optax_sam.vsam(1.0), jnp.ones(4, jnp.float16)
    gradient = lambda p: 1e6 * p.astype(jnp.float32)
    _, state = method.update(gradient(params), method.init(params), params, grad_fn=gradient, perturb=True)
    assert optax_sam.finite(state) and state.reuse.difference.dtype == jnp.float32
    np.testing.assert_allclose(state.reuse.difference, 5e5, rtol=1e-2)


def test_numpy_arrays_are_arguments_too():
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), init_params())
    sam = optax_sam.sam()
    gradient = jax.grad(lambda p: jnp.mean(losses(p, make_batch())))
    zero = jax.tree.map(np.zeros_like, params)
    _, state = sam.update(zero, sam.init(params), params, grad_fn=gradient)
    assert optax_sam.info(state)["grad_norm"] == 0


@pytest.mark.parametrize("wrap", [optax_sam.per_microbatch, optax_sam.accumulated])
def test_weights_of_low_precision_are_summed_without_overflow(wrap):
    weights = jnp.where(jnp.arange(16) % 5 == 1, 0.0, 40_000.0)
    method, params = wrap(optax_sam.sam(), 4), init_params()

    @jax.jit
    def step(weights):
        loss, grads, oracle = method.value_and_grad(losses)(
            params, make_batch(), state=method.init(params), weights=weights
        )
        return loss, method.update(grads, method.init(params), params, oracle=oracle)[0]

    assert_trees_close(step(weights.astype(jnp.float16)), step(weights / 40_000), rtol=1e-5)


@pytest.mark.parametrize("wrap", [optax_sam.per_microbatch, optax_sam.accumulated])
def test_weights_of_single_precision_where_double_is_enabled(wrap):
    with jax.enable_x64(True):
        method, params = wrap(optax_sam.sam(), 2), jnp.ones(2, jnp.float32)
        loss, grads, _ = method.value_and_grad(lambda w, x: x @ w)(
            params, jnp.ones([4, 2], jnp.float32), state=method.init(params), weights=jnp.ones(4, jnp.float32)
        )
        assert loss == 2 and grads.dtype == jnp.float32


@pytest.mark.parametrize("tilt", [0.0, 1.0, -1.0])
def test_an_infinite_loss_of_a_draw_with_a_finite_gradient_gives_no_nan(tilt):
    method, params = optax_sam.tsam(1e30, tilt, num_samples=2, radius=0.0), jnp.array([1.0, 2.0])
    square = lambda w, batch: jnp.sum(w * (0.5 * w)) * batch["image"][:, 0] ** 0
    descent, state, _ = one_step(method, params, make_batch(), square)
    assert optax_sam.finite(state) and np.isnan(optax_sam.info(state)["perturbed_loss"])
    np.testing.assert_allclose(descent, params / 5**0.5 * 1e30, rtol=1e-5)


def test_one_draw_needs_no_loop():
    method, params = optax_sam.tsam(num_samples=1), jnp.ones(2)
    with jax.disable_jit():
        _, grads, oracle = method.value_and_grad(lambda w, x: x @ w)(
            params, jnp.ones([3, 2]), state=method.init(params)
        )
        descent, _ = method.update(grads, method.init(params), params, oracle=oracle)
    np.testing.assert_allclose(descent, [1.0, 1.0])


def test_python_numbers_are_parameters_too():
    losses = lambda params, x: params["w"] * x
    loss, grads = optax_sam.Oracle(losses, jnp.arange(3.0)).value_and_grad({"w": 2.0})
    norms = optax_sam.per_example.gradient_norms(losses, {"w": 2.0}, jnp.arange(3.0))
    assert (loss, grads) == (2.0, {"w": 1.0})
    np.testing.assert_array_equal(norms, [0.0, 1.0, 2.0])


def test_draws_of_a_method_that_remembers_keep_the_types_of_its_state():
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), init_params())
    method = optax_sam.over_draws(optax_sam.vasso(0.1), 2, optax_sam.tilted(1.0))

    def low(params, batch):
        return losses(jax.tree.map(lambda x: x.astype(jnp.float32), params), batch)

    _, state, _ = one_step(method, params, make_batch(), low)
    assert jax.tree.map(jnp.result_type, state) == jax.tree.map(jnp.result_type, method.init(params))


W = jnp.array([3.0, 4.0])


def bowls(w, batch):
    return 0.5 * batch["a"] * jnp.sum(w**2) + batch["b"]


def after_steps(method, *batches):
    """`info` after one step on each of the batches, at the same parameters."""
    state = method.init(W)
    for a, b in batches:
        batch = {"a": jnp.array(a), "b": jnp.array(b)}
        _, grads, oracle = method.value_and_grad(bowls)(W, batch, state=state)
        _, state = method.update(grads, state, W, oracle=oracle)
    return optax_sam.info(state), state


GATED = optax_sam.aesam(total_steps=10**6, rho=0.5, start_threshold=1.0, end_threshold=1.0)
DRAWN = optax_sam.sharpness_aware(
    optax_sam.ascents.to_radius(0.5),
    start=optax_sam.starts.at_random(2.0, 5.0),
    gate=optax_sam.gates.when_gradient_is_large(1.0),
)


@pytest.mark.parametrize("last", [[10.0, 0.01], [0.01, 10.0]])
def test_what_one_slice_has_not_computed_is_no_number_in_the_mean(last):
    batches = [([1.0, 1.0], [0.0, 0.0])] * 3 + [(last, [0.0, 0.0])]
    found, _ = after_steps(optax_sam.per_microbatch(GATED, 2), *batches)
    assert found["perturbed"] == 1 and found["gradients"] == 7.5  # one of the two slices has paid
    assert found["loss"] == pytest.approx(0.5 * 25 * 10.01 / 2)
    assert all(np.isnan(found[name]) for name in ("perturbed_loss", "sharpness", "perturbation_norm"))


def test_what_one_draw_has_not_computed_is_no_number_in_the_mean():
    draws = optax_sam.over_draws(DRAWN, 4, optax_sam.tilted(0.0))
    found, _ = after_steps(draws, *[([1.0, 1.0], [0.0, 0.0])] * 4)
    assert found["perturbed"] == 1 and 16 < found["gradients"] < 32
    assert np.isnan(found["sharpness"]) and np.isnan(found["perturbation_norm"])


def test_an_infinite_loss_in_one_slice_is_no_number_as_without_slices():
    batch = ([1.0, 1.0], [0.0, np.inf])
    for method in (optax_sam.sam(0.5), optax_sam.per_microbatch(optax_sam.sam(0.5), 2)):
        found, state = after_steps(method, batch)
        assert np.isnan(found["loss"]) and found["grad_norm"] == 5 and optax_sam.finite(state)


REMEMBER = {
    "single_step_sam": optax_sam.single_step_sam(0.5),
    "persistent_sam": optax_sam.persistent_sam(0.5),
    "vasso": optax_sam.vasso(0.5),
    "friendly_sam": optax_sam.friendly_sam(0.5),
    "vsam": optax_sam.vsam(0.5, window=4, slices=2),
}


@pytest.mark.parametrize("name", REMEMBER)
def test_a_slice_that_is_not_finite_leaves_nothing_in_the_state(name):
    fine, broken = ([1.0, 2.0], [0.0, 0.0]), ([1.0, np.nan], [0.0, 0.0])
    for batches in ((), (fine, fine, fine)):
        sliced = optax_sam.per_microbatch(REMEMBER[name], 2)
        _, before = after_steps(sliced, *batches)
        _, after = after_steps(sliced, *batches, broken)
        assert not optax_sam.finite(after) and after.step == len(batches) + 1
        kinds = ("start", "direction", "gate", "ascent", "reuse")
        chex.assert_trees_all_equal(*([getattr(s, kind) for kind in kinds] for s in (before, after)))


def test_the_next_decision_follows_from_the_state_that_is_kept():
    sliced, alone = optax_sam.per_microbatch(optax_sam.rst(0.5, seed=3), 2), optax_sam.rst(0.5, seed=3)
    batches = [([1.0, 2.0], [0.0, 0.0]), ([1.0, np.nan], [0.0, 0.0])] * 3
    for number in range(1, 7):
        states = [after_steps(method, *batches[:number])[1] for method in (sliced, alone)]
        assert states[0].due == states[1].due
