"""vSAM: its PSF, its quota, its rate, its memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optax_sam
from optax_sam.pieces.bases import Step
from tests.methods.small import PARAMS, STEPS, close, one_step, stepper, train

HESSIAN = np.array([[3.0, 1.0, 0.0], [1.0, 2.0, -0.5], [0.0, -0.5, 1.0]], np.float32)
POINT = {"w": jnp.array([1.0, -2.0, 0.5])}


def quadratic(params, batch):
    return jnp.full([len(batch)], 0.5) * (params["w"] @ HESSIAN @ params["w"])


def test_psf_of_a_quadratic_is_the_hessian_along_the_gradient():
    _, state, _ = one_step(optax_sam.vsam(rho=0.2), quadratic, POINT, jnp.zeros(4), perturb=True)
    g = HESSIAN @ POINT["w"]
    expected = 0.2 * HESSIAN @ g / np.linalg.norm(g)
    np.testing.assert_allclose(state.reuse.difference["w"], expected, rtol=1e-5, atol=1e-6)


def test_psf_is_reused_six_times_and_fades():
    method, factors = optax_sam.vsam(rho=0.2), []
    descent, state, grads = one_step(method, quadratic, POINT, jnp.zeros(4), perturb=True)
    psf = descent["w"] - grads["w"]
    plain_step = stepper(method, quadratic, jnp.zeros(4), perturb=False)
    for _ in range(9):
        descent, state, grads = plain_step(POINT, state)
        difference = descent["w"] - grads["w"]
        factors.append(float(difference @ psf / (psf @ psf)))
        np.testing.assert_allclose(difference, factors[-1] * psf, atol=1e-6)
    np.testing.assert_allclose(factors, [*(0.7 ** np.arange(1, 7)), 0, 0, 0], atol=1e-5)
    np.testing.assert_array_equal(descent["w"], grads["w"])


@pytest.mark.parametrize("warmup_steps", [0, 12])
def test_vsam_spends_exactly_its_quota_in_every_window(warmup_steps):
    window = 10
    options = {"window": window, "slices": 5, "rate_gain": (0.9, 0.9), "warmup_steps": warmup_steps}
    run = train(optax_sam.vsam(0.1, **options, seed=4), steps=1000)
    perturbed, gate = run.info["perturbed"], run.before.gate
    np.testing.assert_array_equal(perturbed[:warmup_steps], 1)
    np.testing.assert_array_equal(perturbed, run.before.due)
    first_window = perturbed[warmup_steps : warmup_steps + window - 1]
    assert first_window.sum() == (0 if warmup_steps else 1)

    quotas = []
    for first in range(warmup_steps + window - 1, 1000 - window + 1, window):
        inside = slice(first, first + window)
        assert gate.position[first] % window == 0
        assert len(set(gate.rate[inside])) == 1
        quotas.append(int(gate.rate[first]))
        assert perturbed[inside].sum() == quotas[-1]
        assert 1 <= gate.rate[first] <= 0.8 * window
    assert len(quotas) > 90 and len(set(quotas)) > 3


def test_constant_ratios_and_variances_leave_the_rate_unchanged():
    gate = optax_sam.gates.with_variance_rate(window=10, slices=5)
    state = gate.init(PARAMS, jax.random.key(0))._replace(
        rate=jnp.array(3.7), used=jnp.array(3, jnp.int32), position=jnp.array(19, jnp.int32),
        ratios=jnp.full([10], 0.4), variances=jnp.full([10], 2e-5),
    )  # fmt: skip
    after = gate.update(state, Step(jnp.array(18, jnp.int32), PARAMS))
    assert int(after.position) == 20 and int(after.used) == 0
    np.testing.assert_allclose([after.rate, after.probability], [3.7, 0.37], rtol=1e-6)


def test_where_nothing_changes_vsam_keeps_its_rate():
    method = optax_sam.vsam(rho=0.1, window=6, slices=2, rate_gain=(0.9, 0.9), warmup_steps=20)

    def step(state, _):
        _, grads, oracle = method.value_and_grad(quadratic)(POINT, jnp.zeros(4), state=state)
        _, state = method.update(grads, state, POINT, oracle=oracle)
        return state, state.gate

    run = jax.jit(lambda: jax.lax.scan(step, method.init(POINT), length=80)[1])
    gate = run()
    np.testing.assert_array_equal(gate.rate, 1.0)
    np.testing.assert_allclose(gate.ratios[-1], gate.ratios[-1, 0], rtol=1e-6)


def test_vsam_in_warm_up_is_sam(sam_run):
    run = train(optax_sam.vsam(rho=0.1, warmup_steps=STEPS))
    close(run.params, sam_run.params)
    np.testing.assert_array_equal(run.info["perturbed"], 1)


def test_one_step_of_a_window_is_perturbed_however_the_least_rate_is_rounded():
    gate = optax_sam.gates.with_variance_rate(window=49, slices=7, max_rate=1 / 49)  # 1 / 49 * 49 < 1
    state = gate.init(PARAMS, jax.random.key(0))
    state = state._replace(position=jnp.full_like(state.position, 97))  # the end of a window
    after = gate.update(state, Step(jnp.array(97, jnp.int32), PARAMS))
    assert float(after.rate) == 1.0


@pytest.mark.parametrize("wrap", ["scan", "vmap", "draws"])
def test_a_mean_over_slices_takes_no_step_from_the_quota(wrap):
    """Twelve shares sum to a little less than 1, and the least rate is 1."""
    vsam = optax_sam.vsam(0.1, window=10, slices=5)
    if wrap == "draws":
        method = optax_sam.over_draws(vsam, 12, optax_sam.tilted(0.0))
    else:
        method = optax_sam.per_microbatch(vsam, 12, loop=wrap)
    losses = lambda w, x: jnp.square(x @ w - 1)  # noqa: E731
    w, x = jnp.ones(3), jax.random.normal(jax.random.key(0), (24, 3))

    def step(state, _):
        _, grads, oracle = method.value_and_grad(losses)(w, x, state=state)
        _, state = method.update(grads, state, w, oracle=oracle)
        return state, optax_sam.info(state)["perturbed"]

    _, perturbed = jax.lax.scan(step, method.init(w), None, length=60)
    windows = np.asarray(perturbed)[9:59].reshape(5, 10)  # positions are counted from 1
    assert np.all(windows.sum(axis=1) >= 1)
