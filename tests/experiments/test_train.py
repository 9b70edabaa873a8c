"""The record of a run, and what interruptions do to it."""

import dataclasses
import json
import random
import re
import signal
import time

import pytest

from experiments import train
from experiments.methods import NAMES, accepted
from experiments.settings import Settings, flag
from experiments.settings.command_line import command_line
from experiments.settings.of_method import MethodSettings
from tests.experiments.runs import (
    METRICS,
    TINY,
    metrics,
    num_lines,
    only_line,
    outcome,
    run,
    start,
    wait_until,
)

# The command line


def test_command_line_writes_the_record_of_a_run(tmp_path, capsys):
    args = ["--method", "ausam", "--data", "digits", "--model", "conv", "--epochs", "2"]
    run(tmp_path / "x", *args, "--batch-size", "50", "--rho", "0.2", "--seed", "0")
    assert "test accuracy" in capsys.readouterr().out
    lines = [json.loads(line) for line in (tmp_path / "x/metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2] and lines[-1]["step"] == 20
    assert all(set(line) >= METRICS for line in lines)
    result = json.loads((tmp_path / "x/result.json").read_text())
    assert {"test_accuracy", "params_sha256", "seconds", "compile_seconds"} <= set(result)
    # The first epoch takes whole batches, 2 gradients each; then half of each batch, 1 gradient.
    assert lines[0]["gradients"] == 20 and lines[1]["gradients"] == 30
    config = json.loads((tmp_path / "x/config.json").read_text())
    assert config["settings"]["rho"] == 0.2 and config["settings"]["label_noise"] == 0.2
    assert {"jax", "optax", "flax", "python"} <= set(config["versions"])
    assert {"device", "source_revision", "command"} <= set(config)


def test_the_test_part_is_looked_at_as_often_as_asked_and_at_the_end(tmp_path):
    run(tmp_path / "x", *TINY, "--method", "sgd", "--epochs", "3", "--evaluate-every", "2")
    looks = ["test_accuracy" in line for line in metrics(tmp_path / "x")]
    assert looks == [False, True, True]


def test_every_setting_of_a_method_is_some_methods():
    names = {field.name for field in dataclasses.fields(MethodSettings)}
    assert names <= {name for method in NAMES for name in accepted(method)}


@pytest.mark.parametrize("method", ["sgd", "vsam", "sparse_sam", "bsam"])
def test_help_explains_every_setting_of_the_method_on_two_screens(method, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as exit:
        train.main(["--method", method, "--help"])
    assert exit.value.code == 0
    text = capsys.readouterr().out
    assert len(text.splitlines()) <= 2 * 60
    shown = set(re.findall(r"--[a-z0-9-]*[a-z0-9]", text))
    taken = {field.name for field in dataclasses.fields(MethodSettings)} & set(accepted(method))
    expected = {field.name for field in dataclasses.fields(Settings)} - {"method_settings"} | taken
    assert shown == {flag(name) for name in expected} | {"--help"}


# Interruption


def started(out, args):
    """A process that has trained for some epochs."""
    process = start(out, *args)
    epochs = random.randint(1, 10)
    assert wait_until(lambda: num_lines(out) >= epochs, process), process.communicate()
    time.sleep(random.uniform(0, 0.2))
    return process


@pytest.fixture(scope="module")
def whole(tmp_path_factory, compiled_once):
    """Flags and folder of an uninterrupted run."""
    args = [*TINY, "--method", "rst", "--rho", "0.1", "--epochs", "25", "--augment", "flip"]
    out = tmp_path_factory.mktemp("whole") / "x"
    run(out, *args)
    return args, out


def test_killed_run_resumes_with_the_numbers_of_an_uninterrupted_one(whole, tmp_path):
    args, out = whole
    killed = tmp_path / "killed"
    process = started(killed, args)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (killed / "result.json").exists()
    run(killed, *args, "--resume")
    assert outcome(killed) == outcome(out)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_run_says_how_to_go_on_and_does(number, code, whole, tmp_path):
    args, out = whole
    process = started(tmp_path / "x", args)
    process.send_signal(number)
    assert only_line(process) == ("interrupted: --resume continues the run", code)
    assert not (tmp_path / "x/result.json").exists()
    run(tmp_path / "x", *args, "--resume")
    assert outcome(tmp_path / "x") == outcome(out)


def test_signals_are_left_as_they_were_and_an_ignored_ctrl_c_stays_ignored():
    seen = []

    def train(settings):
        seen.append([signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)])

    before = [signal.signal(signal.SIGINT, signal.SIG_IGN), signal.getsignal(signal.SIGTERM)]
    try:
        command_line(Settings, train, [], "")
        assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == [signal.SIG_IGN, before[1]]
    finally:
        signal.signal(signal.SIGINT, before[0])
    assert seen[0][0] == signal.SIG_IGN and callable(seen[0][1])


def test_resume_of_a_finished_run_changes_nothing(tmp_path):
    args = [*TINY, "--method", "sgd", "--epochs", "2"]
    run(tmp_path / "x", *args, "--resume")  # in an empty folder, just starts
    before = outcome(tmp_path / "x")
    run(tmp_path / "x", *args, "--resume")
    assert outcome(tmp_path / "x") == before
