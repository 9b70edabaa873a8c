"""What every test of the experiments needs."""

import dataclasses
import os
from pathlib import Path

import jax
import jax.flatten_util
import pytest

from experiments import train
from experiments.running import devices
from experiments.running.programs import compile_programs
from tests.experiments.runs import ROOT


@pytest.fixture(scope="module", autouse=True)
def usual_promotion():
    """Optax's cosine schedule mixes int and float: as users have it, promotion is implicit."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture(scope="module", autouse=True)
def one_device():
    """A run takes all devices; the tests have eight, and need but one unless they say so."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices, "available", lambda: jax.devices()[:1])
        yield


@pytest.fixture(scope="module")
def compiled_once():
    """Runs in this process that differ in nothing but their folder share their compiled programs."""
    compiled = {}

    def programs_of(settings, data):
        key = dataclasses.replace(settings, out=Path(), resume=False)
        if key not in compiled:
            compiled[key] = compile_programs(settings, data)
        return compiled[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "compile_programs", programs_of)
        yield


@pytest.fixture
def tfds_dir(monkeypatch):
    """A folder with prepared TFDS data; the tests that need one are left out elsewhere."""
    given = os.environ.get("TFDS_DATA_DIR") or ROOT.parent / "shared/data/tensorflow_datasets"
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    if not (Path(given) / "fashion_mnist").is_dir():
        pytest.skip("no prepared TFDS data on this machine; the mocked test covers the plumbing")
    return str(given)
