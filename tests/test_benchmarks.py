"""The benchmark of training steps runs, and what does not depend on the machine holds."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

CASES = ["sam", "rst, perturb=False", "ausam(fraction=0.5)", "tsam(num_samples=3)"]
ROOT = Path(__file__).parent.parent
KEYS = {"model", "case", "flops", "flops_ratio", "temp_bytes", "compile_seconds", "rounds", "milliseconds"}
KEYS |= {"wall_ratio", "cpu_ratio", "gradients", "limit", "time", "exact", "batch_size"}
KEYS |= {"started", "device", "machine", "versions", "command"}


@pytest.fixture(scope="module")
def lines(tmp_path_factory):
    """The JSON lines of a tiny run, as a user starts it: in a process of its own."""
    out = tmp_path_factory.mktemp("benchmarks") / "new" / "steps.jsonl"
    sizes = ["--models", "mlp", "--mlp-width", "256", "--rounds", "1"]
    command = [sys.executable, "-m", "benchmarks.steps", *sizes, "--out", str(out), "--check"]
    done = subprocess.run(
        [*command, "--only", *CASES], cwd=ROOT, env=os.environ, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "CPU time" in done.stdout
    return {line["case"]: line for line in map(json.loads, out.read_text().splitlines())}


def test_every_line_tells_what_was_measured_and_how(lines):
    assert lines.keys() == {"sgd", *CASES, "gradient"}
    for line in lines.values():
        assert line.keys() >= KEYS
        assert line["rounds"] == 1 and line["temp_bytes"] > 0 and line["milliseconds"]["median"] > 0
        assert "benchmarks.steps" in line["command"]


def test_flops_of_straight_programs_are_those_of_the_gradients(lines):
    """Norms and the perturbation are a few operations per parameter, which the batch size hides."""
    assert lines["sam"]["flops_ratio"] == pytest.approx(2, abs=0.06)
    assert lines["rst, perturb=False"]["flops_ratio"] == pytest.approx(1, abs=0.02)
    assert 1 <= lines["ausam(fraction=0.5)"]["flops_ratio"] <= 1.05


def test_gradients_counted_in_the_loss_are_those_that_info_tells(lines):
    for line in lines.values():
        found = line["gradients"]
        assert found["counted"] == found["expected"]
        assert found["info"] in (None, found["expected"])
    assert lines["tsam(num_samples=3)"]["gradients"]["info"] == 6
