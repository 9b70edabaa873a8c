"""AUSAM, step by step, against literal NumPy code: draws, scores, padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optax_sam
from tests.methods.trajectories import (
    BASE,
    RISING,
    assert_gradients,
    assert_same_trajectory,
    in_float64,
    stack,
    train,
    with_nan_where_padding,
)
from tests.references import ausam
from tests.references.network import make_problem
from tests.registry import over


@pytest.fixture(autouse=True, scope="module")
def float64():
    """Everything here is compared in double precision."""
    yield from in_float64()


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


@pytest.mark.parametrize("name", over(AUSAM, [*AUSAM][:4]))
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
        drawn.append(np.unique(np.where(positions < 0, positions.max(), positions)))
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

    np.testing.assert_allclose(run.after.start.score_sum, record["sums"], rtol=1e-9)
    np.testing.assert_array_equal(run.after.start.times_scored, record["counts"])
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
