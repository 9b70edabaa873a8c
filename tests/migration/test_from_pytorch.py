"""The calls of `docs/migrating_from_pytorch.md` beside what PyTorch has recorded."""

import functools
import json
from pathlib import Path

import numpy as np
import pytest

from tests.methods.trajectories import in_float64
from tests.migration.pages import PROBLEM, pairs
from tests.migration.training import names, train
from tests.references.network import gradient
from tests.references.trees import flatten, unflatten

PAGE = "migrating_from_pytorch.md"
RECORDED = json.loads(Path(__file__).with_name("trajectories.json").read_text())
HEADINGS = {"davda54": "The class of davda54", "pytorch_optimizer": "The classes of pytorch_optimizer"}
TOLERANCE = {"davda54": 1e-10, "pytorch_optimizer": 1e-7}  # the latter has its norms in float32
PAIRS = [(kind, *pair) for kind, heading in HEADINGS.items() for pair in pairs(PAGE, heading).items()]


@pytest.fixture(autouse=True, scope="module")
def float64():
    yield from in_float64()


@pytest.fixture(scope="module")
def trained(float64):
    """What a call of the page has made of the weights after the recorded steps."""
    page, steps = names(PAGE), np.array(RECORDED["steps"]) - 1
    return functools.cache(lambda call: train(eval(call, page))[steps])


def recorded(kind, call):
    return np.array(RECORDED[kind][call]["weights"])


@pytest.mark.parametrize(("kind", "old", "new"), PAIRS)
def test_new_call_trains_as_the_recorded_one(kind, old, new, trained):
    np.testing.assert_allclose(trained(new), recorded(kind, old), rtol=0, atol=TOLERANCE[kind])


def test_looksam_takes_two_gradients_in_every_step():
    passes = {call: run["passes"] for call, run in RECORDED["pytorch_optimizer"].items()}
    assert len(PROBLEM.batches) == 24
    assert [passes[call] for call in passes if call.startswith("LookSAM")] == [48]


def test_bsam_is_the_rule_that_the_page_tells():
    """Without noise, of which there is none for endless data."""
    (call,) = [call for call in RECORDED["pytorch_optimizer"] if call.startswith("BSAM")]
    lr, b1, b2, decay, rho, damping = 0.1, 0.9, 0.99, 0.01, 0.02, 0.1
    w = flatten(PROBLEM.params)
    m, s, run = np.zeros_like(w), np.ones_like(w), []
    for batch in PROBLEM.batches:
        grad = lambda w, batch=batch: flatten(gradient(unflatten(w, PROBLEM.params), batch))
        w = w + rho * grad(w) / s
        there = grad(w)
        m = b1 * m + (1 - b1) * decay * there
        s = b2 * s + (1 - b2) * (np.sqrt(s) * np.abs(there) + damping + decay) ** 2
        w = w - lr * m / s
        run.append(w)
    run = np.stack(run)[np.array(RECORDED["steps"]) - 1]
    np.testing.assert_allclose(run, recorded("pytorch_optimizer", call), rtol=0, atol=1e-10)
