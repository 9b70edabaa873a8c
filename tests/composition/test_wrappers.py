"""Wrappers around methods that draw, with padding and in low precision."""

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
