"""Every method, step by step, against literal NumPy code that shares nothing with the package."""

import numpy as np
import pytest

import optax_sam
from tests.methods.trajectories import (
    BASE,
    MEASURED,
    PROBLEM,
    RISING,
    STEPS,
    assert_gradients,
    assert_same_trajectory,
    flatten_steps,
    in_float64,
    random_weights,
    rising,
    train,
    unflatten,
    uniforms,
    with_nan_where_padding,
)
from tests.references import asam, pugd, rst, sam, tsam, vsam
from tests.references.network import make_problem
from tests.references.trees import flatten


@pytest.fixture(autouse=True, scope="module")
def float64():
    """Everything here is compared in double precision."""
    yield from in_float64()


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
    np.testing.assert_array_equal(uniforms(run) < np.float32(record["probability"]), perturbed)
    np.testing.assert_array_equal(run.before.due, perturbed)


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
        source = {"uniforms": list(uniforms(run))}
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
