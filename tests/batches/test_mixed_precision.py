"""Low precision: loss scales, gradients that underflow or overflow, one verdict over all of a step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training.dynamic_scale import DynamicScale
from jax.sharding import AxisType

import optax_sam
from optax_sam.arithmetic import keys
from tests.problem import assert_trees_close, assert_trees_equal, init_params, make_batch, make_indices
from tests.registry import METHODS, VARIANTS, WRAPPED, over

KEY = jax.random.key(7)
every_kind = pytest.mark.parametrize("name", over(WRAPPED))


def losses(params, batch):
    logits = batch["image"] @ params["kernel"] + params["bias"][None]
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])


def keys_of_passes(name):
    """The keys that the losses get in first and in perturbed passes: of one slice or of both draws."""
    fold = keys.numbered
    if name == "tsam":
        draws = [fold(KEY, 0), fold(KEY, 1)]
        return draws, [fold(draw, 1) for draw in draws]
    if name.startswith("m_"):
        return [fold(KEY, 2)], [fold(fold(KEY, 2), 1)]
    if name == "accumulated":
        return [fold(KEY, 2)], [fold(fold(KEY, 1), 2)]
    return [KEY], [fold(KEY, 1)]


@functools.cache
def make_step(name):
    """A step in which the gradient of the pass with the key `overflowing` is infinite, its loss as ever."""
    method = VARIANTS[name].make()
    tx = optax.chain(method, optax.apply_if_finite(optax.sgd(0.1), 3))

    @jax.jit
    def step(params, state, loss_scale, overflowing):
        def fragile(params, batch, key):
            chosen = jnp.all(jax.random.key_data(key) == jax.random.key_data(overflowing))
            entry = params["bias"][0]
            steep = 100 * (entry - jax.lax.stop_gradient(entry)) * jnp.where(chosen, 3e38, 0.0)
            return losses(params, batch) + steep[None]

        loss, grads, oracle = method.value_and_grad(fragile)(
            params, make_batch(), state=state, indices=make_indices(), key=KEY, loss_scale=loss_scale
        )
        updates, state = tx.update(grads, state, params, oracle=oracle, perturb=True)
        return loss, grads, updates, state

    params = init_params()["layer_0"]
    return functools.partial(step, params, tx.init(params))


NO_PASS = jax.random.key(99)


@every_kind
def test_no_result_depends_on_the_loss_scale(name):
    """Not the perturbation either: its norm and the losses there are part of the state."""
    method, params = VARIANTS[name].make(), init_params()["layer_0"]

    @jax.jit
    def unscaled(state):
        loss, grads, oracle = method.value_and_grad(losses)(
            params, make_batch(), state=state, indices=make_indices()
        )
        descent, state = method.update(grads, state, params, oracle=oracle, perturb=True)
        return loss, grads, jax.tree.map(lambda d: -0.1 * d, descent), state

    *wanted, wanted_state = unscaled(method.init(params))
    for scale in (2.0**12, 2.0**-12):
        *got, (state, _) = make_step(name)(scale, NO_PASS)
        assert_trees_close((got, state), (wanted, wanted_state), rtol=2e-6, atol=2e-7)


@every_kind
def test_the_verdict_is_over_every_gradient_of_the_step_and_what_stands_behind_skips(name):
    """And the loss is finite throughout, so that it does not tell."""
    step = make_step(name)
    for overflowing in sum(keys_of_passes(name), []):
        loss, _, updates, state = step(1.0, overflowing)
        assert np.isfinite(loss) and not optax_sam.finite(state)
        assert all(np.all(np.asarray(u) == 0) for u in jax.tree.leaves(updates))
        assert not state[1].last_finite and state[1].notfinite_count == 1
    _, _, updates, state = step(1.0, NO_PASS)
    assert optax_sam.finite(state) and state[1].last_finite
    assert all(np.any(np.asarray(u) != 0) for u in jax.tree.leaves(updates))


@pytest.mark.parametrize("name", ["rst", "vsam"])
def test_a_step_that_is_not_perturbed_is_judged_by_its_one_gradient(name):
    method, params = METHODS[name].make(), {"w": jnp.ones(3)}
    state = method.init(params)

    @jax.jit
    def step(scale):
        gradient = lambda params: jax.tree.map(lambda x: scale * x, params)
        return method.update(gradient(params), state, params, grad_fn=gradient, perturb=False)[1]

    assert optax_sam.finite(state) and optax_sam.finite(step(1.0))
    assert not optax_sam.finite(step(jnp.inf))


@pytest.mark.parametrize("name", ["sam", "vsam", "pugd", "tsam", "ausam", "ausam_gradient_norm", "m_sam"])
def test_gradients_that_underflow_in_float16_are_rescued_in_float32(name):
    """A linear loss, whose gradient is everywhere the same: 1e-9, 2e-9, 3e-9, 4e-9."""
    method, params = VARIANTS[name].make(), {"w": jnp.arange(1.0, 5.0).astype(jnp.float16)}
    slope = jnp.asarray([1e-4, 2e-4, 3e-4, 4e-4], jnp.float16)

    def linear(params, batch):
        factors = (0 * batch["image"][:, :1] + 1e-5).astype(jnp.float16)
        return jnp.sum(params["w"][None] * slope[None] * factors, axis=1)

    @jax.jit
    def step(loss_scale):
        _, grads, oracle = method.value_and_grad(linear)(
            params, make_batch(), state=method.init(params), indices=make_indices(), loss_scale=loss_scale
        )
        descent, state = method.update(grads, method.init(params), params, oracle=oracle, perturb=True)
        return grads, descent, state

    exact = 1e-9 * np.arange(1, 5)
    for scale, slopes in ((1.0, 0 * exact), (2.0**17, exact)):
        grads, descent, state = step(scale)
        assert grads["w"].dtype == descent["w"].dtype == jnp.float32
        np.testing.assert_allclose(grads["w"], slopes, rtol=2e-2)
        unit = slopes / max(np.linalg.norm(slopes), 1e-30)
        np.testing.assert_allclose(descent["w"], unit if name == "pugd" else slopes, rtol=2e-2)
        info = optax_sam.info(state)
        assert (info["perturbation_norm"] > 0.04) == (scale > 1) and optax_sam.finite(state)
        if name == "ausam_gradient_norm":
            scores = np.unique(state.start.score_sum)
            np.testing.assert_allclose(scores, np.unique([0.0, np.linalg.norm(slopes)]), rtol=2e-2)


def test_without_a_loss_scale_gradients_come_back_in_the_dtype_of_the_parameters():
    for dtype in (jnp.float16, jnp.bfloat16):
        params, batch = init_params(dtype)["layer_0"], make_batch(dtype=dtype)
        for scale, wanted in ((None, dtype), (8.0, jnp.float32)):
            found = jax.eval_shape(
                lambda p, b=batch, s=scale: optax_sam.Oracle(losses, b, loss_scale=s).value_and_grad(p)[1],
                params,
            )
            assert {x.dtype for x in jax.tree.leaves(found)} == {jnp.dtype(wanted)}


def test_training_under_a_dynamic_scale_follows_the_verdict():
    """At w = 1 and a scale of 2^14 the gradient 2^14 w fits into float16, at w + 4 it does not."""
    sam = optax_sam.sam(rho=4.0)
    tx = optax.chain(sam, optax.sgd(0.001, momentum=0.9))

    def in_half_precision(params, batch):
        w = params["w"].astype(jnp.float16)
        return 0.5 * w * w * jnp.ones_like(batch)

    @jax.jit
    def step(params, opt_state, dynamic_scale):
        _, grads, oracle = sam.value_and_grad(in_half_precision)(
            params, jnp.ones(1, jnp.float16), state=opt_state, loss_scale=dynamic_scale.scale
        )
        updates, new_state = tx.update(grads, opt_state, params, oracle=oracle)
        finite = optax_sam.finite(new_state)
        judged = dynamic_scale.value_and_grad(lambda x: x * jnp.where(finite, 1.0, jnp.inf))(1.0)
        stepped = optax.apply_updates(params, updates), new_state
        kept = jax.tree.map(lambda new, old: jnp.where(finite, new, old), stepped, (params, opt_state))
        return *kept, judged.dynamic_scale, judged.finite, optax_sam.info(new_state)

    params = {"w": jnp.ones([])}
    run = params, tx.init(params), DynamicScale(growth_interval=2, scale=2.0**14)
    w, momentum, scales = 1.0, 0.0, []
    for number in range(9):
        *after, finite, info = step(*run)
        scales.append(float(after[2].scale))
        assert finite == (number % 4 != 0)
        assert np.isfinite(info["grad_norm"]) and np.isfinite(info["perturbed_grad_norm"]) == finite
        if finite:
            momentum = 0.9 * momentum + (w + 4)
            w -= 0.001 * momentum
        else:
            assert_trees_equal(after[:2], list(run[:2]))
        np.testing.assert_allclose(after[0]["w"], w, rtol=2e-3)
        run = tuple(after)
    # Flax grows the scale in the step after `growth_interval` good ones.
    assert scales == [2.0**k for k in (13, 13, 13, 14, 13, 13, 13, 14, 13)]


@pytest.mark.parametrize(("steepness", "loss_scale"), [(5e-9, 2.0**20), (5e4, 2.0**-4)])
def test_what_vsam_remembers_neither_underflows_nor_overflows_in_float16(steepness, loss_scale):
    method = optax_sam.vsam(0.5, window=4, slices=2)

    def steep(params, batch):
        w = params["w"].astype(jnp.float32)
        return steepness * jnp.sum(jnp.arange(1.0, 4.0) * w**2) * jnp.ones_like(batch)

    def descent_after_a_perturbed_step(dtype):
        params = {"w": jnp.asarray([1.0, -2.0, 3.0], dtype)}
        state = method.init(params)
        for perturb in (True, False):
            _, grads, oracle = method.value_and_grad(steep)(
                params, jnp.ones(2), state=state, loss_scale=loss_scale
            )
            descent, state = method.update(grads, state, params, oracle=oracle, perturb=perturb)
        return descent["w"]

    wanted = descent_after_a_perturbed_step(jnp.float32)
    np.testing.assert_allclose(descent_after_a_perturbed_step(jnp.float16), wanted, rtol=2e-3)


def test_a_python_number_is_a_loss_scale_on_every_device():
    method = optax_sam.per_device(optax_sam.sam(0.1))
    params = init_params()["layer_0"]

    @jax.jit
    def first(params):
        state = method.init(params)
        return method.value_and_grad(losses)(params, make_batch(), state=state, loss_scale=8.0)[:2]

    with jax.set_mesh(
        jax.make_mesh((2,), ("data",), axis_types=(AxisType.Explicit,), devices=jax.devices()[:2])
    ):
        _, grads = first(params)
    assert grads["bias"].dtype == jnp.float32
