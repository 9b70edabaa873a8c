"""What the methods become at the ends of their arguments' ranges, and what their papers promise."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_sam
from optax_sam.pieces import Context
from optax_sam.selections import draw

from .references.network import make_problem

FAST = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}  # to compile
PROBLEM = make_problem(11, batch=12, steps=24, num_examples=24, sizes=(5, 3))
STEPS, NUM_EXAMPLES = len(PROBLEM.batches), PROBLEM.num_examples
PARAMS = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), PROBLEM.params)
BATCHES = {
    "image": np.stack([batch["image"] for batch in PROBLEM.batches]).astype(np.float32),
    "label": np.stack([batch["label"] for batch in PROBLEM.batches]),
    "position": np.tile(np.arange(12, dtype=np.int32), (STEPS, 1)),
}
INDICES = np.stack(PROBLEM.indices)
BATCH = jax.tree.map(lambda x: jnp.asarray(x[0]), BATCHES)
BASE = optax.sgd(0.1, momentum=0.9)


class Run(NamedTuple):
    """One value per step of each: parameters, the method's state before and after, `info`, `aux`."""

    params: np.ndarray
    before: Any
    after: Any
    info: dict[str, np.ndarray]
    aux: Any


def losses(params, batch):
    layer = params["layer_0"]
    logits = batch["image"] @ layer["kernel"] + layer["bias"][None]
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])


@jax.jit
def mean_loss(params, batch, weights=None):
    found = losses(params, batch)
    weights = jnp.ones_like(found) if weights is None else weights
    return jnp.sum(weights * found) / jnp.sum(weights)


mean_gradient = jax.jit(jax.grad(mean_loss))


def train(method, *, steps=STEPS, base=BASE, options=FAST):
    """Trains for some epochs in one compiled loop."""
    tx = optax.chain(method, base)

    def loss_fn(params, batch):
        return losses(params, batch), batch["position"]

    def step(carry, number):
        params, opt_state = carry
        batch, indices = jax.tree.map(lambda x: jnp.asarray(x)[number % STEPS], (BATCHES, INDICES))
        (_, aux), grads, oracle = method.value_and_grad(loss_fn, has_aux=True)(
            params, batch, state=opt_state, indices=indices
        )
        updates, after = tx.update(grads, opt_state, params, oracle=oracle)
        params = optax.apply_updates(params, updates)
        return (params, after), Run(params, opt_state[0], after[0], optax_sam.info(after), aux)

    @partial(jax.jit, compiler_options=options)
    def run(params):
        return jax.lax.scan(step, (params, tx.init(params)), jnp.arange(steps, dtype=jnp.int32))[1]

    found = jax.tree.map(np.asarray, run(PARAMS))
    return found._replace(params=flatten(found.params, axes=1))


def train_base():
    """The base optimizer alone."""

    def step(carry, batch):
        params, opt_state = carry
        grads = jax.grad(lambda params: jnp.mean(losses(params, batch)))(params)
        updates, opt_state = BASE.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        return (params, opt_state), params

    run = jax.jit(lambda params: jax.lax.scan(step, (params, BASE.init(params)), BATCHES)[1])
    return flatten(run(PARAMS), axes=1)


def flatten(tree, axes=0):
    """All entries behind the first `axes` axes as one."""
    parts = [np.asarray(x).reshape(*np.shape(x)[:axes], -1) for x in jax.tree.leaves(tree)]
    return np.concatenate(parts, axis=-1)


def perturbed(params, grads, rho):
    return jax.tree.map(lambda p, g: p + rho * g / norm(grads), params, grads)


def norm(tree):
    return np.linalg.norm(flatten(tree).astype(np.float64))


def stepper(method, loss_fn=losses, batch=BATCH, *, perturb=None, **rows):
    """A compiled `(params, state) -> (descent, state, first gradient)`."""

    @partial(jax.jit, compiler_options=FAST)
    def step(params, state):
        _, grads, oracle = method.value_and_grad(loss_fn)(params, batch, state=state, **rows)
        return *method.update(grads, state, params, oracle=oracle, perturb=perturb), grads

    return step


def one_step(method, loss_fn=losses, params=PARAMS, batch=BATCH, **options):
    return stepper(method, loss_fn, batch, **options)(params, method.init(params))


def close(run, other, **tolerance):
    np.testing.assert_allclose(run, other, **({"rtol": 2e-4, "atol": 2e-6} | tolerance))


@pytest.fixture(scope="module")
def sgd_run():
    return train_base()


@pytest.fixture(scope="module")
def sam_run():
    return train(optax_sam.sam(rho=0.1), options=None)


# Every method.

WITHOUT_RADIUS = {
    "sam": optax_sam.sam(rho=0.0),
    "asam": optax_sam.asam(rho=0.0),
    "rst": optax_sam.rst(rho=0.0),
    "grst": optax_sam.grst(rho=0.0, probability=0.4),
    "vsam": optax_sam.vsam(rho=0.0, window=6, slices=3, warmup_steps=4),
    "tsam": optax_sam.tsam(rho=0.0, radius=0.0),
    "ausam": optax_sam.ausam(NUM_EXAMPLES, rho=0.0, fraction=1.0),
    "per_microbatch": optax_sam.per_microbatch(optax_sam.sam(rho=0.0), 4),
    "every": optax_sam.sharpness_aware(optax_sam.to_radius(0.0), gate=optax_sam.every(3)),
}


@pytest.mark.parametrize("name", WITHOUT_RADIUS)
def test_no_radius_is_the_base_optimizer(name, sgd_run):
    close(train(WITHOUT_RADIUS[name]).params, sgd_run)


# RST and G-RST.


def test_rst_with_probability_one_is_sam_bit_for_bit(sam_run):
    run = train(optax_sam.rst(rho=0.1, probability=1.0), options=None)
    np.testing.assert_array_equal(run.params, sam_run.params)
    np.testing.assert_array_equal(run.info["perturbed"], 1)


def test_rst_with_probability_zero_is_the_base_optimizer_bit_for_bit(sgd_run):
    run = train(optax_sam.rst(rho=0.1, probability=0.0), options=None)
    np.testing.assert_array_equal(run.params, sgd_run)
    np.testing.assert_array_equal(run.info["perturbed"], 0)


def test_grst_with_alpha_one_is_rst():
    run, other = train(optax_sam.grst(0.1, 0.5, alpha=1.0, seed=3)), train(optax_sam.rst(0.1, 0.5, seed=3))
    np.testing.assert_array_equal(run.info["perturbed"], other.info["perturbed"])
    assert 0 < run.info["perturbed"].sum() < STEPS
    close(run.params, other.params)


def test_grst_with_alpha_zero_is_the_base_optimizer(sgd_run):
    run = train(optax_sam.grst(0.1, 0.5, alpha=0.0, seed=3))
    assert run.info["perturbed"].sum() > 0
    close(run.params, sgd_run)


def test_grst_with_probability_zero_stays_finite(sgd_run):
    close(train(optax_sam.grst(0.1, probability=0.0)).params, sgd_run)


def test_grst_extrapolates_by_one_over_the_probability():
    method = optax_sam.grst(rho=0.1, probability=0.25)
    descent, _, grads = one_step(method, perturb=True)
    perturbed, *_ = one_step(optax_sam.sam(rho=0.1))
    close(flatten(descent), flatten(grads) + 4 * (flatten(perturbed) - flatten(grads)), atol=1e-6)


# TSAM.


def descents_of(tilts, num_samples=4):
    """The descent for every tilt, and the perturbed points of the last: what the loss was asked for."""
    points = []

    def recording(params, batch):
        jax.debug.callback(lambda p: points.append(jax.tree.map(np.array, p)), params, ordered=True)
        return losses(params, batch)

    @partial(jax.jit, compiler_options=FAST)
    def descent(tilt, params):
        method = optax_sam.tsam(0.1, tilt=tilt, num_samples=num_samples, seed=5)
        state = method.init(params)
        _, grads, oracle = method.value_and_grad(recording)(params, BATCH, state=state)
        return method.update(grads, state, params, oracle=oracle)[0]

    descents = [flatten(descent(jnp.float32(tilt), PARAMS)) for tilt in tilts]
    jax.effects_barrier()
    assert len(points) == 2 * num_samples * len(tilts)
    return descents, points[1 - 2 * num_samples :: 2]


def test_tsam_of_one_sample_does_not_depend_on_the_tilt():
    first, *rest = descents_of([0.0, 1.0, -7.0, 1e4], num_samples=1)[0]
    for descent in rest:
        np.testing.assert_array_equal(descent, first)


def test_tilt_chooses_between_the_plain_mean_and_one_sample():
    (plain, worst, best), points = descents_of([0.0, 1e7, -1e7])
    found = np.array([mean_loss(point, BATCH) for point in points])
    grads = np.stack([flatten(mean_gradient(point, BATCH)) for point in points])
    assert np.diff(np.sort(found)).min() > 1e-4
    close(plain, grads.mean(axis=0), atol=1e-6)
    close(worst, grads[found.argmax()], atol=1e-6)
    close(best, grads[found.argmin()], atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"radius": 0.0, "num_samples": 1},
        {"radius": 0.0, "noise": "uniform"},
        {"noise_scale": 0.0, "num_samples": 1},
    ],
    ids=["no_radius", "uniform", "no_noise_scale"],
)
def test_tsam_without_noise_is_sam(options, sam_run):
    close(train(optax_sam.tsam(0.1, tilt=3.0, **options)).params, sam_run.params)


# AUSAM.


def test_ausam_of_the_whole_batch_is_sam(sam_run):
    run = train(optax_sam.ausam(NUM_EXAMPLES, rho=0.1, fraction=1.0))
    close(run.params, sam_run.params)
    np.testing.assert_array_equal(run.aux, BATCHES["position"])


def test_ausam_with_equal_bounds_draws_uniformly():
    run = train(optax_sam.ausam(NUM_EXAMPLES, score_range=(0.3, 0.3), fraction=0.25, seed=1), steps=3000)
    assert np.ptp(run.after.start.total[-1] / run.after.start.count[-1]) > 1e-3  # the scores do differ
    counts = np.bincount(run.aux.ravel(), minlength=12)
    assert counts.sum() == 3 * 3000
    np.testing.assert_allclose(counts / 3000, 0.25, atol=4 * np.sqrt(0.25 * 0.75 / 3000))


def test_ausam_never_scores_what_it_did_not_draw_and_the_first_visit_sets_the_score():
    run = train(optax_sam.ausam(NUM_EXAMPLES, rho=0.1, fraction=0.5, seed=2))
    before, after = run.before.start, run.after.start
    for t in range(STEPS):
        drawn = np.zeros(NUM_EXAMPLES, bool)
        drawn[INDICES[t][run.aux[t]]] = True
        np.testing.assert_array_equal(after.count[t] - before.count[t], drawn)
        np.testing.assert_array_equal(after.total[t][~drawn], before.total[t][~drawn])
        first = drawn & (before.count[t] == 0)
        assert (before.total[t][first] == 0).all() and (after.total[t][first] > 0).all()
    assert (after.count[-1] > 1).any()

    seen = jax.tree.map(lambda x: x[0][run.aux[0]], BATCHES)
    grads = mean_gradient(PARAMS, seen)
    there = perturbed(PARAMS, grads, 0.1)
    change = np.abs(losses(there, seen) - losses(PARAMS, seen))
    close(after.total[0][INDICES[0][run.aux[0]]], change, rtol=1e-3)


def test_draws_without_replacement_follow_the_weights():
    weights = np.array([0.1, 0.2, 0.3, 0.4])
    keys = jax.random.split(jax.random.key(0), 40_000)
    log_weights = jnp.log(jnp.asarray(weights, jnp.float32)) + 2.0  # of any scale
    drawn = np.asarray(jax.jit(jax.vmap(lambda key: draw(log_weights, 2, 1, key)))(keys))[:, 0]
    for i in range(4):
        for j in range(i + 1, 4):
            both = weights[i] * weights[j]
            expected = both / (1 - weights[i]) + both / (1 - weights[j])
            found = np.mean((drawn[:, 0] == i) & (drawn[:, 1] == j))
            np.testing.assert_allclose(found, expected, atol=4 * np.sqrt(expected / 40_000))


# vSAM.

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
    gate = optax_sam.with_variance_rate(window=10, slices=5)
    state = gate.init(PARAMS)._replace(
        rate=jnp.array(3.7), used=jnp.array(3, jnp.int32), position=jnp.array(19, jnp.int32),
        ratios=jnp.full([10], 0.4), variances=jnp.full([10], 2e-5),
    )  # fmt: skip
    after = gate.update(state, PARAMS, None, Context(jnp.array(18, jnp.int32), jax.random.key(0), PARAMS))
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


# PUGD.


def test_pugd_perturbs_and_descends_by_unit_steps():
    run = train(optax_sam.pugd(), base=optax.sgd(0.1))
    np.testing.assert_allclose(run.info["perturbation_norm"], 1, rtol=1e-5)
    start = flatten(PARAMS)[None]
    steps = np.diff(np.concatenate([start, run.params]).astype(np.float64), axis=0)
    np.testing.assert_allclose(np.linalg.norm(steps, axis=1), 0.1, rtol=1e-4)


@pytest.mark.parametrize("sum_gradients", [True, False])
def test_pugd_does_not_depend_on_the_scale_of_the_loss(sum_gradients):
    method = optax_sam.pugd(sum_gradients=sum_gradients)

    @partial(jax.jit, compiler_options=FAST)
    def descent(scale):
        def scaled(params, batch):
            return scale * losses(params, batch)

        params, state = PARAMS, method.init(PARAMS)
        _, grads, oracle = method.value_and_grad(scaled)(params, BATCH, state=state)
        return method.update(grads, state, params, oracle=oracle)[0]

    expected = descent(jnp.float32(1))
    np.testing.assert_allclose(norm(expected), 1, rtol=1e-5)
    for scale in (1e-4, 1e3):
        close(flatten(descent(jnp.float32(scale))), flatten(expected), atol=1e-6)


def test_pugd_does_not_perturb_weights_that_are_zero():
    params = jax.tree.map(lambda x: jnp.where(jnp.arange(x.size).reshape(x.shape) % 3 == 0, 0, x), PARAMS)
    grads = mean_gradient(params, BATCH)
    perturbation, _ = optax_sam.to_radius(1.0, optax_sam.magnitude()).update(
        grads, optax.EmptyState(), params, step=jnp.array(0)
    )
    for e, w, g in zip(*map(jax.tree.leaves, (perturbation, params, grads)), strict=True):
        assert (g[w == 0] != 0).any()
        np.testing.assert_array_equal(e[w == 0], 0)
        assert (e[(w != 0) & (g != 0)] != 0).all()
    np.testing.assert_allclose(norm(perturbation), 1, rtol=1e-6)


def test_pugd_without_radius_gives_the_unit_gradient():
    descent, _, grads = one_step(optax_sam.pugd(radius=0.0))
    close(flatten(descent), flatten(grads) / norm(grads), atol=1e-6)


# m-sharpness.


def slices_of(num_slices, weights=None):
    for rows in np.split(np.arange(12), num_slices):
        part = jax.tree.map(lambda x, rows=rows: x[rows], BATCH)
        yield part, jnp.ones(len(rows)) if weights is None else weights[rows]


def hand_written_m_sam(rho, num_slices, weights=None):
    """The mean over slices of SAM's gradient, each slice counting as much as its weights."""
    total, descent = 0.0, 0.0
    for part, w in slices_of(num_slices, weights):
        if w.sum() == 0:
            continue
        grads = mean_gradient(PARAMS, part, w)
        there = perturbed(PARAMS, grads, rho)
        descent = descent + float(w.sum()) * flatten(mean_gradient(there, part, w)).astype(np.float64)
        total += float(w.sum())
    return descent / total


WEIGHTS = np.array([1, 0.5, 2, 0, 0, 0, 0.3, 1, 1, 0, 2, 1], np.float32)


@pytest.mark.parametrize("loop", ["scan", "vmap"])
@pytest.mark.parametrize(("num_slices", "weights"), [(2, None), (4, WEIGHTS)], ids=["equal", "weights"])
def test_per_microbatch_is_a_loop_over_slices(loop, num_slices, weights):
    method = optax_sam.per_microbatch(optax_sam.sam(rho=0.3), num_slices, loop=loop)
    weights = None if weights is None else jnp.asarray(weights)
    descent, state, grads = one_step(method, weights=weights)
    close(flatten(descent), hand_written_m_sam(0.3, num_slices, weights), atol=1e-6)
    close(flatten(grads), flatten(mean_gradient(PARAMS, BATCH, weights)), atol=1e-6)

    parts = [(part, w) for part, w in slices_of(num_slices, weights)]
    shares = np.array([float(w.sum()) for _, w in parts])
    norms = [norm(mean_gradient(PARAMS, part, w)) if w.sum() else 0.0 for part, w in parts]
    np.testing.assert_allclose(
        optax_sam.info(state)["grad_norm"], np.average(norms, weights=shares), rtol=1e-5
    )
    np.testing.assert_allclose(optax_sam.info(state)["gradients"], 2)


@pytest.mark.parametrize("loop", ["scan", "vmap"])
def test_aux_has_a_leading_axis_of_slices(loop):
    method = optax_sam.per_microbatch(optax_sam.sam(rho=0.3), 3, loop=loop)

    def with_aux(params, batch):
        found = losses(params, batch)
        return found, {"losses": found, "position": batch["position"], "sum": jnp.sum(found)}

    first = method.value_and_grad(with_aux, has_aux=True)
    (loss, aux) = jax.jit(lambda p: first(p, BATCH, state=method.init(p))[0])(PARAMS)
    expected = np.asarray(losses(PARAMS, BATCH))
    close(loss, expected.mean())
    close(aux["losses"], expected.reshape(3, 4))
    close(aux["sum"], expected.reshape(3, 4).sum(axis=1))
    np.testing.assert_array_equal(aux["position"], np.arange(12).reshape(3, 4))


@pytest.mark.parametrize("loop", ["scan", "vmap"])
def test_per_microbatch_of_one_slice_is_the_method(loop, sam_run):
    run = train(optax_sam.per_microbatch(optax_sam.sam(rho=0.1), 1, loop=loop))
    close(run.params, sam_run.params)


@pytest.mark.parametrize("loop", ["scan", "vmap"])
def test_gate_decides_once_for_all_slices(loop):
    method = optax_sam.per_microbatch(optax_sam.rst(rho=0.3, probability=0.5, seed=6), 4, loop=loop)
    alone = optax_sam.rst(rho=0.3, probability=0.5, seed=6)
    state, decisions = method.init(PARAMS), []
    step = stepper(method)
    for _ in range(8):
        decisions.append(bool(method.due(state)))
        descent, state, _ = step(PARAMS, state)
        expected = hand_written_m_sam(0.3, 4) if decisions[-1] else flatten(mean_gradient(PARAMS, BATCH))
        close(flatten(descent), expected, atol=1e-6)
        assert float(optax_sam.info(state)["perturbed"]) == decisions[-1]
    np.testing.assert_allclose(optax_sam.info(state)["gradients"], 8 + sum(decisions))
    assert 0 < sum(decisions) < 8

    state, step = alone.init(PARAMS), stepper(alone)
    for decision in decisions:
        assert bool(alone.due(state)) == decision
        _, state, _ = step(PARAMS, state)


# Gates.


@pytest.mark.parametrize("k", [1, 5])
def test_every_perturbs_the_multiples_of_k(k):
    run = train(optax_sam.sharpness_aware(optax_sam.to_radius(0.1), gate=optax_sam.every(k)))
    np.testing.assert_array_equal(run.info["perturbed"], np.arange(STEPS) % k == 0)
    np.testing.assert_array_equal(run.before.due, np.arange(STEPS) % k == 0)
    np.testing.assert_allclose(run.info["gradients"][-1], STEPS + len(range(0, STEPS, k)))
