"""The benchmarks run, and what does not depend on the machine holds."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from benchmarks import (
    catalogue,
    conditionals,
    norms,
    overhead,
    peer_curvature,
    products,
    programs,
    report,
    traces,
)
from tests.registry import ROWS

CASES = [
    "sam",
    "rst, closed",
    "ausam",
    "tsam",
    "optax.contrib.sam, transparent",
    "fgsam, network as surrogate",
]
ROOT = Path(__file__).parents[2]
KEYS = {"model", "case", "flops", "flops_ratio", "bytes", "temp_bytes", "state_bytes", "seconds", "rounds"}
KEYS |= {"wall_ratio", "cpu_ratio", "milliseconds", "gradients", "limits", "exact", "batch_size", "dtype"}
KEYS |= {"started", "device", "machine", "versions", "command", "source_revision"}


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """The JSON lines of a tiny run, as a user starts it: in a process of its own."""
    out = tmp_path_factory.mktemp("benchmarks") / "new" / "steps.jsonl"
    sizes = ["--models", "mlp", "--width", "256", "--rounds", "1"]
    command = [sys.executable, "-m", "benchmarks.steps", *sizes, "--out", str(out), "--check"]
    done = subprocess.run(
        [*command, "--only", *CASES], cwd=ROOT, env=os.environ, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "CPU time" in done.stdout
    return out


@pytest.fixture(scope="module")
def lines(file):
    return report.read(file)["mlp"]


@pytest.mark.slow
def test_every_line_tells_what_was_measured_and_how(lines):
    assert lines.keys() == {"sgd", *CASES}
    for line in lines.values():
        assert line.keys() >= KEYS
        assert line["rounds"] == 1 and line["temp_bytes"] > 0 and line["milliseconds"]["median"] > 0
        assert "benchmarks.steps" in line["command"]


@pytest.mark.slow
def test_flops_of_straight_programs_are_those_of_the_gradients(lines):
    """Norms and the perturbation are a few operations per parameter, which the batch size hides."""
    assert lines["sam"]["flops_ratio"] == pytest.approx(2, abs=0.06)
    assert lines["rst, closed"]["flops_ratio"] == pytest.approx(1, abs=0.02)
    assert 1 <= lines["ausam"]["flops_ratio"] <= 1.05


@pytest.mark.slow
def test_gradients_counted_in_the_loss_are_those_that_info_tells(lines):
    for line in lines.values():
        found = line["gradients"]
        assert found["counted"] == found["expected"]
        assert found["info"] in (None, found["expected"])
    assert lines["tsam"]["gradients"]["info"] == 6
    assert lines["optax.contrib.sam, transparent"]["gradients"]["info"] is None


def test_no_public_method_is_missing_from_the_catalogue():
    names = [case.name for case in catalogue.all_cases()]
    assert len(set(names)) == len(names)
    for name in ROWS:
        assert any(re.match(rf"{name}\b", case) for case in names), name


def test_limits_name_cases_that_exist():
    names = {case.name for case in catalogue.all_cases()}
    assert {other for case in catalogue.all_cases() for other, _ in case.limits} <= names
    straight = conditionals.straight()
    assert {pair.than for pair in conditionals.pairs(plain=True)} <= set(straight)


@pytest.mark.slow
def test_the_report_has_a_row_for_every_case_and_a_picture(file, tmp_path, capsys):
    picture = tmp_path / "costs.png"
    report.main(report.Settings(file, again=file, picture=picture))
    printed = capsys.readouterr().out
    assert all(f"| `{case}` |" in printed for case in CASES)
    assert "| `sam` | 2 × `sgd` |" in printed
    assert f"{len(CASES)} of {len(CASES)} medians" in printed  # a run agrees with itself
    assert matplotlib.image.imread(picture).std() > 0.02


@pytest.mark.parametrize(("median", "low", "rounds", "word"), [(1.0, 0.9, 9, "met"), (1.2, 1.1, 9, "missed")])
def test_a_limit_is_missed_only_when_the_interval_lies_above_it(median, low, rounds, word):
    assert programs.verdict({"median": median, "low": low}, 1.05, rounds) == word
    if word == "missed":
        assert programs.verdict({"median": median, "low": 1.0}, 1.05, rounds) == "undecided"
        assert programs.verdict({"median": median, "low": low}, 1.05, 3) == "undecided"


def test_summary_is_that_of_the_order_statistics():
    found = programs.summary(np.arange(101.0))
    assert (found["median"], found["q25"], found["q75"]) == (50, 25, 75)
    assert found["low"] < 50 < found["high"] and found["low"] == pytest.approx(50 - 9.75, abs=0.1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "sizes"),
    [
        (conditionals, {"models": ("resnet", "depthwise"), "width": 4}),
        (norms, {"models": ("mlp", "resnet", "transformer"), "width": 16}),
        (overhead, {"layers": 1, "batch_size": 2}),
    ],
)
def test_the_other_benchmarks_run(module, sizes, tmp_path):
    out = tmp_path / "lines.jsonl"
    module.main(module.Settings(rounds=1, out=out, **sizes))
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(lines) >= 9
    if module is norms:
        assert all(line["largest_difference"] < 1e-3 for line in lines)


@pytest.mark.slow
def test_products_are_measured_in_gradients():
    line = products.measure("mlp", 64, 2)
    assert line["gradient"]["ratio"]["median"] == 1
    assert 1 < line["product"]["flops_ratio"] < products.LIMIT
    assert all(line[case]["ratio"]["median"] > 0 for case in ("product", "loop", "vmap"))


@pytest.mark.slow
def test_traces_of_matrices_of_low_rank_are_better_with_their_span():
    found = {m: traces.measure(traces.SPECTRA["outliers"], m, 30, 3) for m in ("hutchinson", "xtrace")}
    assert found["xtrace"]["error"] < found["hutchinson"]["error"] / 5


@pytest.mark.slow
def test_the_side_of_the_comparison_that_runs_here_is_right():
    found = peer_curvature.here(peer_curvature.arrays(), 1)
    assert found["top"] == pytest.approx(found["exact_top"], rel=1e-3)
    assert abs(found["trace"] - found["exact_trace"]) < 4 * found["trace_error"]
