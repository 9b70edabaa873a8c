"""Eigen-SAM and Focal-SAM, step by step, against literal NumPy code that shares nothing with the package."""

import jax
import numpy as np
import pytest

import optax_sam
from tests.methods.trajectories import (
    BASE,
    PROBLEM,
    RISING,
    STEPS,
    assert_gradients,
    assert_same_trajectory,
    flatten_steps,
    in_float64,
    train,
)
from tests.references import eigen_sam, focal_sam
from tests.references.trees import flatten


@pytest.fixture(autouse=True, scope="module")
def float64():
    """Everything here is compared in double precision."""
    yield from in_float64()


@pytest.mark.parametrize(
    "arguments",
    [{"rho": RISING, "alpha": 0.3, "refresh_steps": 5, "power_iterations": 3}, {"refresh_steps": 1}],
    ids=["now and then", "always"],
)
def test_eigen_sam_follows_its_reference(arguments):
    run = train(optax_sam.eigen_sam(**arguments, seed=3))
    first = jax.tree.map(lambda x: np.asarray(x[0]), run.before.direction.vector)
    record = eigen_sam.eigen_sam(PROBLEM.params, PROBLEM.batches, first_vector=first, **arguments, **BASE)
    assert_same_trajectory(run, record)
    wanted = np.stack([flatten(tree) for tree in record["vector"]])
    np.testing.assert_allclose(flatten_steps(run.after.direction.vector), wanted, rtol=1e-6, atol=1e-8)
    renewed = np.arange(STEPS) % arguments["refresh_steps"] == 0
    assert_gradients(run, 2 + 2 * renewed * arguments.get("power_iterations", 5))


@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_focal_sam_follows_its_reference(gamma):
    arguments = {"class_frequencies": [50, 30, 5], "weight": 0.8, "gamma": gamma, "rho": RISING}
    run = train(optax_sam.focal_sam(labels=lambda batch: batch["label"], **arguments))
    record = focal_sam.focal_sam(PROBLEM.params, PROBLEM.batches, **arguments, **BASE)
    assert_same_trajectory(run, record)
    assert_gradients(run, np.full(STEPS, 3.0))
