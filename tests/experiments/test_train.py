"""The record of a run, and what interruptions and damage do to it."""

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time

import jax.numpy as jnp
import pytest

from experiments import checkpoints, train
from experiments.settings import MethodSettings, Settings
from tests.experiments.runs import METRICS, ROOT, TINY, message_of, metrics, run

# The command line


def test_command_line_writes_the_record_of_a_run(tmp_path, compilation_cache):
    command = [sys.executable, "-m", "experiments.train", "--method", "ausam", "--data", "digits"]
    command += ["--model", "conv", "--epochs", "2", "--batch-size", "50", "--rho", "0.2"]
    command += ["--seed", "0", "--out", str(tmp_path / "x")]
    environment = os.environ | compilation_cache
    done = subprocess.run(command, cwd=ROOT, env=environment, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert "test accuracy" in done.stdout
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


def test_help_explains_every_setting(capsys):
    with pytest.raises(SystemExit) as exit:
        train.main(["--help"])
    assert exit.value.code == 0
    text = capsys.readouterr().out
    names = [f.name for kind in (Settings, MethodSettings) for f in dataclasses.fields(kind)]
    for name in set(names) - {"method_settings"}:
        assert "--" + name.replace("_", "-") in text


# Interruption


def test_killed_run_resumes_with_the_numbers_of_an_uninterrupted_one(tmp_path, compilation_cache):
    args = [*TINY, "--method", "rst", "--rho", "0.1", "--epochs", "25", "--augment", "flip"]
    whole = run(tmp_path / "whole", *args)
    killed = tmp_path / "killed"
    command = [sys.executable, "-m", "experiments.train", *args, "--out", str(killed)]
    process = subprocess.Popen(
        command, cwd=ROOT, env=os.environ | compilation_cache, stderr=subprocess.DEVNULL
    )
    epochs = random.randint(1, 10)
    while not (killed / "metrics.jsonl").exists() or len(metrics(killed)) < epochs:
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(random.uniform(0, 0.2))
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (killed / "result.json").exists()
    resumed = run(killed, *args, "--resume")
    assert resumed["params_sha256"] == whole["params_sha256"]
    assert metrics(killed) == metrics(tmp_path / "whole")


def test_resume_of_a_finished_run_changes_nothing(tmp_path):
    args = [*TINY, "--method", "sgd", "--epochs", "2"]
    first = run(tmp_path / "x", *args, "--resume")  # in an empty folder, just starts
    before = metrics(tmp_path / "x")
    again = run(tmp_path / "x", *args, "--resume")
    assert again["params_sha256"] == first["params_sha256"]
    assert metrics(tmp_path / "x") == before


def damage(folder):
    """Cuts every file of a checkpoint in half."""
    for file in folder.rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def test_damaged_checkpoint_falls_back_to_the_one_before(tmp_path, capsys):
    args = [*TINY, "--method", "sgd", "--epochs", "3"]
    whole = run(tmp_path / "x", *args)
    lines = metrics(tmp_path / "x")
    damage(tmp_path / "x/checkpoints/3")
    (tmp_path / "x/checkpoints/4.orbax-checkpoint-tmp-7").mkdir()
    resumed = run(tmp_path / "x", *args, "--resume")
    assert "checkpoint of epoch 3 is damaged" in capsys.readouterr().err
    assert resumed["params_sha256"] == whole["params_sha256"]
    assert metrics(tmp_path / "x") == lines


def test_without_a_good_checkpoint_one_line_and_nothing_deleted(tmp_path, capsys):
    args = [*TINY, "--method", "sgd", "--epochs", "2"]
    run(tmp_path / "x", *args)
    for epoch in ("1", "2"):
        damage(tmp_path / "x/checkpoints" / epoch)
    before = {file: file.read_bytes() for file in (tmp_path / "x").rglob("*") if file.is_file()}
    capsys.readouterr()
    line = message_of(lambda: run(tmp_path / "x", *args, "--resume"), capsys)
    assert "no checkpoint can be read" in line and "epoch 2" in line
    after = {file: file.read_bytes() for file in (tmp_path / "x").rglob("*") if file.is_file()}
    assert after == before


def test_changed_bit_in_a_checkpoint_is_noticed(tmp_path):
    fresh, state = {"w": jnp.zeros(3)}, {"w": jnp.arange(3.0)}
    kept = checkpoints.Checkpoints(tmp_path)
    kept.save(1, state)
    other = checkpoints.Checkpoints(tmp_path / "other")
    other.save(1, {"w": jnp.arange(3.0) + 1})
    digest = (tmp_path / "other/checkpoints/1/digest/metadata").read_bytes()
    (tmp_path / "checkpoints/1/digest/metadata").write_bytes(digest)
    with pytest.raises(checkpoints.SettingsError, match="digest"):
        checkpoints.Checkpoints(tmp_path).restore(fresh)
