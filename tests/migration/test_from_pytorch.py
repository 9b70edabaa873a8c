"""The calls of `docs/migrating_from_pytorch.md` beside what PyTorch has recorded."""

import json
from pathlib import Path

import numpy as np
import optax
import pytest

import optax_sam
from tests.methods.trajectories import in_float64
from tests.migration.pages import PROBLEM, pairs
from tests.migration.training import names, train
from tests.references.network import gradient
from tests.references.trees import flatten, unflatten

PAGE = "migrating_from_pytorch.md"
RECORDED = json.loads(Path(__file__).with_name("trajectories.json").read_text())
HEADINGS = {"davda54": "The class of davda54", "pytorch_optimizer": "The classes of pytorch_optimizer"}
TOLERANCE = {"davda54": 1e-9, "pytorch_optimizer": 1e-5}  # the latter has its norms in float32
PAIRS = [(kind, *pair) for kind, heading in HEADINGS.items() for pair in pairs(PAGE, heading).items()]


@pytest.fixture(autouse=True, scope="module")
def float64():
    yield from in_float64()


@pytest.fixture(scope="module")
def page(float64):
    return names(PAGE)


def recorded(kind, call):
    """One row for each of the recorded steps."""
    return np.array(RECORDED[kind][call]["weights"])


def trained(tx):
    return train(tx)[0][np.array(RECORDED["steps"]) - 1]


@pytest.mark.parametrize(("kind", "old", "new"), PAIRS)
def test_new_call_trains_as_the_recorded_one(kind, old, new, page):
    run, expected = trained(eval(new, page)), recorded(kind, old)
    print("ERR", kind, old[:40], np.max(np.abs(run / expected - 1), axis=1))
    np.testing.assert_allclose(run, expected, rtol=TOLERANCE[kind])
