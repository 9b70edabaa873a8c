"""Every method against its literal NumPy float64 reference, step by step."""

from functools import partial
from operator import itemgetter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_sam

from .references import asam, ausam, pugd, rst, sam, tsam, vsam
from .references.network import make_problem
from .references.trees import flatten, leaves

PROBLEM = make_problem(0)
STEPS = len(PROBLEM.batches)
BASE = {"lr": 0.05, "momentum": 0.9, "weight_decay": 1e-3}
MEASURED = ("loss", "perturbed_loss", "grad_norm", "perturbed_grad_norm", "perturbation_norm")
FAST = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
GATE = 2  # the gate is the third of the pieces that may draw: start, direction, gate, ...


def rising(first, slope):
    """A schedule in float64 on both sides; those of Optax are float32 under `jit`."""
    return lambda step: first + slope * jnp.asarray(step, jnp.float64)


RISING = rising(0.02, 0.004)


@pytest.fixture(autouse=True, scope="module")
def float64():
    """For every thread: `jax.enable_x64` would hand float32 to the callbacks, which run in their own."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


class Run(NamedTuple):
    """What a run of the library gave; every entry has one value per step.

    `before` and `after` are the method's own state, `loss` what `value_and_grad` returned, `seen` the
    positions in the batch that the first gradient saw, `points` every point that was evaluated.
    """

    params: np.ndarray
    before: Any
    after: Any
    info: dict[str, np.ndarray]
    loss: np.ndarray
    seen: list[np.ndarray]
    points: list[np.ndarray]


def losses(params, batch):
    """The network of the references; the auxiliary value tells which rows were seen."""
    first, second = params["layer_0"], params["layer_1"]
    hidden = jnp.tanh(batch["image"] @ first["kernel"] + first["bias"][None])
    logits = hidden @ second["kernel"] + second["bias"][None]
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]), batch["position"]


def train(method, problem=PROBLEM, *, weights=None, indices=None, whole_steps=0, record_points=False):
    """Trains on all batches: the first `whole_steps` with `whole_batch=True`, as in a first epoch."""
    base = optax.sgd(BASE["lr"], momentum=BASE["momentum"])
    tx = optax.chain(method, optax.add_decayed_weights(BASE["weight_decay"]), base)
    points = []

    def loss_fn(params, batch):
        if record_points:
            point = jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(params)])
            jax.debug.callback(lambda x: points.append(np.array(x)), point, ordered=True)
        return losses(params, batch)

    def epoch(carry, rows, whole_batch):
        def step(carry, rows):
            params, opt_state = carry
            (loss, seen), grads, oracle = method.value_and_grad(loss_fn, has_aux=True)(
                params, rows["batch"], state=opt_state, indices=rows["indices"],
                weights=rows["weights"], whole_batch=whole_batch,
            )  # fmt: skip
            updates, after = tx.update(grads, opt_state, params, oracle=oracle)
            params = optax.apply_updates(params, updates)
            return (params, after), (params, opt_state[0], after[0], optax_sam.info(after), loss, seen)

        return jax.lax.scan(step, carry, rows)

    @partial(jax.jit, compiler_options=FAST)
    def run(params, rows):
        carry, found = (params, tx.init(params)), []
        for part, whole_batch in ((slice(whole_steps), True), (slice(whole_steps, None), False)):
            if len(problem.batches[part]):
                carry, values = epoch(carry, jax.tree.map(itemgetter(part), rows), whole_batch)
                found.append(values)
        return found

    rows = {
        "batch": stack([batch | {"position": np.arange(len(batch["label"]))} for batch in problem.batches]),
        "indices": stack(problem.indices if indices is None else indices),
        "weights": None if weights is None else stack(weights),
    }
    found = jax.tree.map(np.asarray, run(jax.tree.map(jnp.asarray, problem.params), rows))
    jax.effects_barrier()
    params, before, after, info, loss = jax.tree.map(
        lambda *x: np.concatenate(x), *(part[:-1] for part in found)
    )
    seen = [positions for part in found for positions in part[-1]]
    return Run(flatten_steps(params), before, after, info, loss, seen, points)


def stack(values):
    return jax.tree.map(lambda *x: jnp.asarray(np.stack(x)), *values)


def flatten_steps(tree):
    """One row per step, the leaves in the order of the references."""
    return np.concatenate([leaf.reshape(len(leaf), -1) for leaf in jax.tree.leaves(tree)], axis=1)


def unflatten(vector, like):
    """The nested dict of the references from one row."""
    sizes = np.cumsum([leaf.size for leaf in leaves(like)])[:-1]
    parts = [
        part.reshape(leaf.shape) for part, leaf in zip(np.split(vector, sizes), leaves(like), strict=True)
    ]
    return jax.tree.unflatten(jax.tree.structure(like), parts)


def uniforms(run, dtype):
    """What the gate draws in every step: from the state's key, the step, and the kind of piece."""

    def draw(key_data, step):
        key = jax.random.fold_in(jax.random.wrap_key_data(key_data, impl="threefry2x32"), step)
        return jax.random.uniform(jax.random.fold_in(key, GATE), dtype=dtype)

    steps = jnp.arange(len(run.params), dtype=jnp.int32)
    return np.asarray(jax.jit(jax.vmap(draw))(run.before.key, steps))


def assert_same_trajectory(run, record):
    """The parameters and what `info` tells after every step."""
    expected = np.stack([flatten(params) for params in record["params"]])
    assert len(expected) >= 20
    np.testing.assert_allclose(run.params, expected, rtol=1e-9, atol=1e-12)
    for name in MEASURED:
        np.testing.assert_allclose(run.info[name], record[name], rtol=1e-5, atol=1e-7, err_msg=name)
    np.testing.assert_array_equal(run.info["perturbed"], np.float32(record["perturbed"]))
    sharpness = np.subtract(record["perturbed_loss"], record["loss"])
    np.testing.assert_allclose(run.info["sharpness"], sharpness, atol=1e-6)
    np.testing.assert_allclose(run.loss, record["loss"], rtol=1e-9)
    np.testing.assert_array_equal(run.after.step, np.arange(1, len(expected) + 1))


def assert_gradients(run, per_step):
    np.testing.assert_allclose(run.info["gradients"], np.cumsum(per_step), rtol=1e-6)


def random_weights(seed=0, problem=PROBLEM):
    """Uneven weights, and two rows of padding in every batch."""
    weights = np.random.default_rng(seed).uniform(0.2, 2.0, (len(problem.batches), 12))
    weights[:, [3, 7]] = 0.0
    return list(weights)


def with_nan_where_padding(problem, weights):
    """The problem with NaN in every row of weight 0: nothing may depend on it."""
    batches = [
        batch | {"image": np.where(w[:, None] == 0, np.nan, batch["image"])}
        for batch, w in zip(problem.batches, weights, strict=True)
    ]
    return problem._replace(batches=batches)


# Methods that always perturb.


@pytest.mark.parametrize(
    ("method", "reference"),
    [
        (optax_sam.sam(rho=0.1), lambda *args, **kw: sam.sam(*args, rho=0.1, **kw)),
        (optax_sam.sam(rho=RISING), lambda *args, **kw: sam.sam(*args, rho=RISING, **kw)),
        (optax_sam.asam(rho=0.5), lambda *args, **kw: asam.asam(*args, rho=0.5, eta=0.01, **kw)),
        (optax_sam.asam(0.7, eta=0.0), lambda *args, **kw: asam.asam(*args, rho=0.7, eta=0.0, **kw)),
        (optax_sam.pugd(), lambda *args, **kw: pugd.pugd(*args, **kw)),
        (
            optax_sam.pugd(radius=0.4, sum_gradients=False),
            lambda *args, **kw: pugd.pugd(*args, radius=0.4, sum_gradients=False, **kw),
        ),
    ],
    ids=["sam", "sam_with_schedule", "asam", "asam_without_eta", "pugd", "pugd_without_sum"],
)
def test_methods_that_always_perturb_follow_their_references(method, reference):
    run = train(method)
    assert_same_trajectory(run, reference(PROBLEM.params, PROBLEM.batches, **BASE))
    assert_gradients(run, np.full(STEPS, 2.0))


@pytest.mark.parametrize(
    ("method", "reference"), [(optax_sam.sam, sam.sam), (optax_sam.asam, asam.asam)], ids=["sam", "asam"]
)
def test_weights_and_padding_follow_the_references(method, reference):
    weights = random_weights()
    run = train(method(rho=0.2), with_nan_where_padding(PROBLEM, weights), weights=weights)
    assert_same_trajectory(run, reference(PROBLEM.params, PROBLEM.batches, rho=0.2, weights=weights, **BASE))


# RST and G-RST.


@pytest.mark.parametrize(
    ("alpha", "probability"),
    [(1.0, 0.4), (1.0, rising(0.1, 0.03)), (None, rising(0.1, 0.03)), (0.3, 0.4)],
    ids=["rst", "rst_with_schedule", "grst_with_schedule", "grst_with_alpha"],
)
def test_rst_and_grst_follow_their_references(alpha, probability):
    options = {"rho": RISING, "probability": probability}
    if alpha == 1.0:
        method, reference = optax_sam.rst(**options, seed=3), rst.rst
    else:
        options["alpha"] = alpha
        method, reference = optax_sam.grst(**options, seed=3), rst.grst
    run = train(method)
    perturbed = [bool(x) for x in run.info["perturbed"]]
    record = reference(PROBLEM.params, PROBLEM.batches, perturbed, **options, **BASE)
    assert 4 < sum(perturbed) < 20
    assert_same_trajectory(run, record)
    assert_gradients(run, 1 + run.info["perturbed"])
    np.testing.assert_array_equal(uniforms(run, jnp.float32) < np.float32(record["probability"]), perturbed)
    np.testing.assert_array_equal(run.before.due, perturbed)


# vSAM.

VSAM = {
    "two_slices": {"window": 10, "slices": 2, "rate_gain": (0.9, 0.9), "tail": 2},
    "warm_up": {"window": 12, "slices": 3, "rate_gain": (0.9, 0.6), "warmup_steps": 30, "tail": 1},
    "short_reuse": {
        "window": 10, "slices": 5, "max_rate": 0.5, "rate_gain": (0.9, 0.9), "reuse_decay": 0.5,
        "reuse_steps": 3, "rho": RISING,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def vsam_runs():
    """Each setting is run once, for the tests of both modes."""
    runs = {}

    def run(name):
        if name not in runs:
            problem = make_problem(7, steps=100)
            runs[name] = problem, train(optax_sam.vsam(**VSAM[name], seed=5), problem)
        return runs[name]

    return run


@pytest.mark.parametrize("name", VSAM)
@pytest.mark.parametrize("decides", ["library", "reference"])
def test_vsam_follows_its_reference(name, decides, vsam_runs):
    problem, run = vsam_runs(name)
    if decides == "library":
        source = {"perturbed": [bool(x) for x in run.info["perturbed"]]}
    else:
        source = {"uniforms": list(uniforms(run, jnp.float64))}
    record = vsam.vsam(problem.params, problem.batches, **source, **VSAM[name], **BASE)

    np.testing.assert_array_equal(run.info["perturbed"], np.float32(record["perturbed"]))
    np.testing.assert_array_equal(run.before.due, record["perturbed"])
    gate, after = run.before.gate, run.after.gate
    np.testing.assert_array_equal(gate.position, record["k"])
    np.testing.assert_array_equal(gate.used, record["used_before"])
    np.testing.assert_allclose(gate.rate, record["rate"], rtol=1e-9)
    np.testing.assert_allclose(gate.probability, record["probability"], rtol=1e-9)
    for buffer in ("norms", "ratios", "variances"):
        np.testing.assert_allclose(getattr(after, buffer), record[buffer], rtol=1e-7, atol=1e-14)
    psf = np.stack([flatten(tree) for tree in record["psf"]])
    np.testing.assert_allclose(flatten_steps(run.after.reuse.difference), psf, rtol=1e-8, atol=1e-12)
    np.testing.assert_array_equal(run.after.reuse.age, record["age"])
    assert_same_trajectory(run, record)
    assert_gradients(run, 1 + run.info["perturbed"])
    assert len(set(np.floor(gate.rate))) > 1  # the quota was renewed, and moved


# TSAM.


@pytest.mark.parametrize(
    ("options", "tilt", "rho"),
    [
        ({"noise": "gaussian", "radius": 0.8, "noise_scale": 0.1}, 20.0, 0.1),
        ({"noise": "uniform", "radius": 0.5}, rising(0.0, 3.0), RISING),
    ],
    ids=["gaussian", "uniform"],
)
def test_tsam_follows_its_reference(options, tilt, rho):
    samples = 3
    method = optax_sam.tsam(rho=rho, tilt=tilt, num_samples=samples, seed=2, **options)
    run = train(method, record_points=True)
    points = np.reshape(run.points, (STEPS, samples, 2, -1))  # start and perturbed point of each sample
    params = np.concatenate([flatten(PROBLEM.params)[None], run.params[:-1]])
    offsets = points - params[:, None, None]
    noises = [[unflatten(n, PROBLEM.params) for n in step] for step in offsets[:, :, 0]]
    record = tsam.tsam(PROBLEM.params, PROBLEM.batches, noises, rho=rho, tilt=tilt, **BASE)

    expected = np.stack([flatten(tree) for tree in record["params"]])
    np.testing.assert_allclose(run.params, expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(offsets[:, :, 1], axis=-1), record["offset_norms"], rtol=1e-9)
    np.testing.assert_allclose(run.loss, np.array(record["start_losses"])[:, 0], rtol=1e-9)
    means = ("start_losses", "losses", "start_grad_norms", "grad_norms", "ascent_norms")
    for name, told in zip(means, MEASURED, strict=True):
        mean = np.mean(record[name], axis=1)
        np.testing.assert_allclose(run.info[told], mean, rtol=1e-5, err_msg=told)
    assert_gradients(run, np.full(STEPS, 2.0 * samples))
    assert np.ptp(record["tilted_weights"], axis=1).max() > 0.1

    lengths = np.linalg.norm(offsets[:, :, 0], axis=-1)
    assert len(np.unique(offsets[:, :, 0, 0])) == STEPS * samples
    if options["noise"] == "uniform":
        np.testing.assert_allclose(lengths, options["radius"], rtol=1e-6)
    else:
        assert (lengths <= options["radius"] * (1 + 1e-12)).all()
        clipped = np.isclose(lengths, options["radius"], rtol=1e-12)
        assert 0.2 < clipped.mean() < 0.9


# AUSAM.


def ausam_problem(steps, case):
    """The problem, its indices and weights for one case; padding rows hold NaN."""
    problem = make_problem(3, steps=steps)
    indices, weights = [rows.copy() for rows in problem.indices], None
    if case == "padding_weights":
        weights = [np.ones(12) for _ in range(steps)]
        for t in range(steps):
            weights[t][[2, 5]] = 0.0
            weights[t][8] = 0.3
        weights[9][:8] = 0.0  # fewer real examples than are drawn
        weights[11][:] = 0.0  # none at all
        problem = with_nan_where_padding(problem, weights)
    elif case == "out_of_range":
        for t in range(steps):
            indices[t][[0, 6]] = -1, problem.num_examples
        indices[6][4:] = -7
        outside = [np.where((rows >= 0) & (rows < problem.num_examples), 1.0, 0.0) for rows in indices]
        problem = with_nan_where_padding(problem, outside)
    elif case == "repeated":
        for t in range(steps):
            indices[t][[7, 11]] = indices[t][1]
    return problem, indices, weights


AUSAM = {
    "whole_batch_first": ("plain", {"score_range": (0.05, 0.9)}, 4),
    "ramp": ("plain", {"ramp_steps": 10, "rho": RISING, "fraction": 0.34}, 0),
    "gradient_norm": ("padding_weights", {"score": "gradient_norm", "score_range": (0.01, 1.0)}, 0),
    "padding_weights": ("padding_weights", {}, 4),
    "out_of_range": ("out_of_range", {}, 2),
    "repeated": ("repeated", {"fraction": 0.75}, 0),
    "strata": ("plain", {"strata": 3}, 0),
}


@pytest.mark.parametrize("name", AUSAM)
def test_ausam_follows_its_reference(name):
    case, options, whole_steps = AUSAM[name]
    problem, indices, weights = ausam_problem(24, case)
    method = optax_sam.ausam(problem.num_examples, seed=4, **options)
    run = train(method, problem, weights=weights, indices=indices, whole_steps=whole_steps)
    inside = (np.array(indices) >= 0) & (np.array(indices) < problem.num_examples)
    used = np.where(inside, 1.0 if weights is None else np.array(weights), 0.0)

    fraction, strata = options.pop("fraction", 0.5), options.pop("strata", 1)
    num_drawn = strata * int(fraction * 12 / strata)
    drawn = []
    for t, positions in enumerate(run.seen):
        drawn.append(np.unique(positions))  # padding shows the first real row in its place
        real = np.flatnonzero(used[t])
        size = 12 if t < whole_steps else num_drawn
        assert len(positions) == size
        if len(real):
            assert set(drawn[t]) <= set(real) and len(drawn[t]) == min(size, len(real))
            counts = np.bincount(drawn[t] * strata // 12, minlength=strata)
            assert len(real) < 12 or (counts == size // strata).all()
    options = options | {"weights": weights}
    record = ausam.ausam(
        problem.params, problem.batches, indices, drawn, problem.num_examples, **options, **BASE
    )

    np.testing.assert_allclose(run.after.start.total, record["sums"], rtol=1e-9)
    np.testing.assert_array_equal(run.after.start.count, record["counts"])
    assert_same_trajectory(run, record)
    cost = 2 if options.get("score") != "gradient_norm" else 3
    assert_gradients(run, np.where(np.arange(24) < whole_steps, cost, cost * num_drawn / 12))

    log_weights = jax.jit(jax.vmap(method.method.start.log_weights))(
        run.before.start, stack(indices), jnp.asarray(used), run.before.step
    )
    q = np.exp(np.asarray(log_weights))
    total = q.sum(axis=1, keepdims=True)
    probabilities = np.divide(q, total, out=np.zeros_like(q), where=total > 0)
    np.testing.assert_allclose(probabilities, record["probabilities"], rtol=1e-9)
    assert np.ptp(probabilities, axis=1).max() > 0.02
