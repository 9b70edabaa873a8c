"""The schedules of RST's probability, and schedules as arguments of every method."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_sam
from optax_sam import schedules
from optax_sam.engine.hyperparameters import Reciprocal
from tests.registry import over

TOTAL = 1000
FAST = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}  # to compile
PROBABILITIES = (0.0, 0.2, 0.5, 0.6, 0.9, 1.0)

# The formula of every family, and its mean over training.
FAMILIES = {
    "constant": (lambda p: schedules.constant(p), lambda p, t: p, lambda p: p),
    "plain_then_perturbed": (
        lambda p: schedules.plain_then_perturbed(p, TOTAL),
        lambda p, t: 0.0 if t <= p * TOTAL else 1.0,
        lambda p: 1 - p,
    ),
    "perturbed_then_plain": (
        lambda p: schedules.perturbed_then_plain(p, TOTAL),
        lambda p, t: 1.0 if t <= p * TOTAL else 0.0,
        lambda p: p,
    ),
    "complement_halfway": (
        lambda p: schedules.complement_halfway(p, TOTAL),
        lambda p, t: p if t <= TOTAL / 2 else 1 - p,
        lambda p: 0.5,
    ),
    "increasing": (
        lambda p: schedules.increasing(p, TOTAL),
        lambda p, t: 2 * p * t / TOTAL if p <= 0.5 else 2 * p - 1 + 2 * (1 - p) * t / TOTAL,
        lambda p: p,
    ),
    "to_complement": (
        lambda p: schedules.to_complement(p, TOTAL),
        lambda p, t: p + (1 - 2 * p) * t / TOTAL,
        lambda p: 0.5,
    ),
    "cosine": (
        lambda p: schedules.cosine(TOTAL),
        lambda p, t: 0.5 + 0.5 * np.cos(np.pi * t / TOTAL),
        lambda p: 0.5,
    ),
}


def values(schedule, steps):
    """The schedule at `steps` under `jit`, as the library calls it."""
    found = jax.jit(jax.vmap(lambda t: jnp.asarray(schedule(t), jnp.float32)))(steps.astype(np.int32))
    return np.asarray(found)


def test_a_share_of_the_steps_is_not_rounded_down():
    assert [float(schedules.plain_then_perturbed(p, 100)(t)) for p, t in ((0.29, 29), (0.57, 57))] == [0, 0]
    assert [float(schedules.plain_then_perturbed(p, 100)(t)) for p, t in ((0.29, 30), (0.57, 58))] == [1, 1]
    assert float(schedules.perturbed_then_plain(0.29, 100)(29)) == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_family_has_its_formula_and_its_mean(family):
    make, formula, mean = FAMILIES[family]
    steps = np.arange(TOTAL)
    for probability in PROBABILITIES:
        found = values(make(probability), steps)
        expected = [formula(probability, t) for t in steps]
        np.testing.assert_allclose(found, expected, atol=1e-6)
        np.testing.assert_allclose(found.mean(), mean(probability), atol=1.5 / TOTAL)
        assert (found >= 0).all() and (found <= 1).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_after_training_the_last_value_stays(family):
    make, formula, _ = FAMILIES[family]
    found = values(make(0.3), np.array([TOTAL, TOTAL + 1, 5 * TOTAL]))
    np.testing.assert_allclose(found, formula(0.3, TOTAL), atol=1e-6)


def run(method, steps, batch=4):
    """`info` of every step on a small quadratic, and the state before it."""

    def losses(params, rows):
        return jnp.sum((params["w"][None] - rows) ** 2, axis=1) + jnp.sum(params["bias"] ** 2)

    def step(carry, _):
        params, state = carry
        indices = jnp.arange(batch, dtype=jnp.int32)
        rows = jnp.arange(3.0 * batch).reshape(batch, 3) / 10
        _, grads, oracle = method.value_and_grad(losses)(params, rows, state=state, indices=indices)
        descent, after = method.update(grads, state, params, oracle=oracle)
        params = jax.tree.map(lambda p, d: p - 0.001 * d, params, descent)
        return (params, after), (optax_sam.info(after), state)

    def train():
        params = {"w": jnp.array([1.0, -2.0, 3.0]), "bias": jnp.array([0.5])}
        return jax.lax.scan(step, (params, method.init(params)), length=steps)[1]

    return jax.tree.map(np.asarray, jax.jit(train, compiler_options=FAST)())


@pytest.mark.parametrize("family", FAMILIES)
def test_family_is_a_probability_of_rst(family):
    make, formula, mean = FAMILIES[family]
    info, before = run(optax_sam.rst(rho=0.1, probability=make(0.6), seed=1), TOTAL)
    expected = np.array([formula(0.6, t) for t in range(TOTAL)])
    np.testing.assert_array_equal(info["perturbed"][expected == 0], 0)
    np.testing.assert_array_equal(info["perturbed"][expected == 1], 1)
    np.testing.assert_array_equal(info["perturbed"], before.due)
    for half in (slice(TOTAL // 2), slice(TOTAL // 2, None)):
        spread = np.sqrt((expected[half] * (1 - expected[half])).sum())
        assert abs(info["perturbed"][half].sum() - expected[half].sum()) <= 4 * spread
    np.testing.assert_allclose(info["gradients"][-1], TOTAL + info["perturbed"].sum())
    np.testing.assert_allclose(info["gradients"][-1] / TOTAL, 1 + mean(0.6), atol=0.065)


def test_reciprocal_is_one_where_the_probability_is_zero():
    found = values(Reciprocal(schedules.increasing(0.5, 10)), np.arange(11))
    np.testing.assert_allclose(found, [1, *(10 / np.arange(1, 11))], rtol=1e-6)


# A schedule of the radius counts training steps, perturbed or not.

RHO = optax.linear_schedule(0.01, 0.41, 40)
METHODS = {
    "sam": optax_sam.sam(RHO),
    "rst": optax_sam.rst(RHO, probability=0.4),
    "grst": optax_sam.grst(RHO, probability=0.4),
    "every": optax_sam.sharpness_aware(optax_sam.ascents.to_radius(RHO), gate=optax_sam.gates.every(7)),
    "vsam": optax_sam.vsam(RHO, window=10, slices=2, warmup_steps=3),
    "pugd": optax_sam.pugd(RHO),
    "tsam": optax_sam.tsam(RHO),
    "ausam": optax_sam.ausam(4, RHO),
    "per_microbatch": optax_sam.per_microbatch(optax_sam.rst(RHO, probability=0.4), 2),
}


@pytest.mark.parametrize("name", over(METHODS))
def test_radius_advances_every_training_step(name):
    info, before = run(METHODS[name], 40)
    paid = info["perturbed"] == 1
    np.testing.assert_array_equal(before.step, np.arange(40))
    expected = 0.01 + 0.01 * np.arange(40)
    np.testing.assert_allclose(info["perturbation_norm"][paid], expected[paid], rtol=1e-4)
    assert np.isnan(info["perturbation_norm"][~paid]).all()
    assert paid[5:].any()
    assert paid.all() == (name in ("sam", "pugd", "tsam", "ausam"))


def test_radius_of_asam_advances_in_its_own_norm():
    params = {"w": jnp.array([1.0, -2.0, 3.0]), "bias": jnp.array([0.5])}
    grads = {"w": jnp.array([0.3, 0.1, -1.0]), "bias": jnp.array([2.0])}
    ascent = optax_sam.ascents.to_radius(RHO, optax_sam.geometries.elementwise(0.01))
    for step in (0, 1, 17):
        e, _ = ascent.update(grads, ascent.init(params), params, step=jnp.array(step))
        lengths = [e["w"] / (jnp.abs(params["w"]) + 0.01), e["bias"]]
        np.testing.assert_allclose(np.linalg.norm(np.concatenate(lengths)), 0.01 + 0.01 * step, rtol=1e-5)


def test_radius_advances_while_the_caller_closes_the_gate():
    method = optax_sam.rst(RHO)
    params = jnp.array([3.0, 4.0])
    state = method.init(params)
    for perturb in (False, False, False, True, False, True):
        _, state = method.update(params, state, params, grad_fn=lambda p: p, perturb=perturb)
        if perturb:
            expected = 0.01 * int(state.step)
            np.testing.assert_allclose(optax_sam.info(state)["perturbation_norm"], expected, rtol=1e-5)


def test_alpha_advances_every_training_step():
    method = optax_sam.grst(0.5, probability=0.5, alpha=optax.linear_schedule(0.0, 2.0, 10))
    params = jnp.array([3.0, 4.0])
    state = method.init(params)
    for step in range(10):
        perturb = step % 3 == 0
        descent, state = method.update(params, state, params, grad_fn=lambda p: p, perturb=perturb)
        alpha = 0.2 * step if perturb else 0.0
        np.testing.assert_allclose(descent, params * (1 + alpha * 0.5 / 5), rtol=1e-5)


def test_tilt_may_be_a_schedule():
    tilt = optax.linear_schedule(0.0, 2.0, 4)
    weight = optax_sam.tilted(tilt)
    for step in range(5):
        np.testing.assert_allclose(weight(jnp.array(3.0), jnp.array(step)), 1.5 * step, rtol=1e-6)


@pytest.mark.parametrize(
    ("ascent", "gate", "wanted"),
    [
        ("training steps", {"gate": optax_sam.gates.every(2)}, [0.01, 0, 0.03, 0, 0.05]),
        ("own calls", {"gate": optax_sam.gates.every(2)}, [0.01, 0, 0.02, 0, 0.03]),
        ("repeated training steps", {}, [0.02, 0.04, 0.06]),
        ("repeated own calls", {}, [0.03, 0.07, 0.11]),
    ],
)
def test_a_wrapper_inside_the_ascent_counts_its_own_calls(ascent, gate, wanted):
    """Of `|w|^2 / 2` the gradient at `w + e` says where it is."""
    to_radius = optax_sam.ascents.to_radius
    injected = optax.inject_hyperparams(to_radius)(rho=RHO) if "calls" in ascent else to_radius(RHO)
    method = optax_sam.sharpness_aware(
        optax_sam.ascents.repeated(injected, 2) if "repeated" in ascent else injected, **gate
    )
    params = jnp.array([3.0, 4.0])
    state, found = method.init(params), []
    step = jax.jit(lambda state: method.update(params, state, params, grad_fn=lambda point: point))
    for _ in wanted:
        descent, state = step(state)
        found.append(float(jnp.linalg.norm(descent - params)))
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-6)
