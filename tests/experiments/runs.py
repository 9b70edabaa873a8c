"""Tiny runs of the command line."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments import train

ROOT = Path(__file__).parents[2]
TINY = ["--train-examples", "60", "--batch-size", "20"]
METRICS = {"epoch", "step", "train_loss", "test_loss", "test_accuracy", "step_seconds", "gradients"}


def run(out, *args):
    """Trains by the command line's main function; the content of result.json."""
    train.main(["--out", str(out), *args])
    return json.loads((out / "result.json").read_text())


def metrics(out):
    """The lines of metrics.jsonl without their times."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if "seconds" not in k} for line in lines]


def outcome(out):
    """What does not depend on interruptions: the final parameters' digest, and the metrics."""
    return json.loads((out / "result.json").read_text())["params_sha256"], metrics(out)


def contents(folder):
    """Every file of a folder."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def start(out, *args):
    """The same in a process of its own, which it returns; it has the compilation cache of the tests."""
    command = [sys.executable, "-m", "experiments.train", *args, "--out", str(out)]
    # Tests that run in the background of a shell ignore Ctrl-C, and what they start would too.
    own = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(command, cwd=ROOT, text=True, env=one_device(), **pipes)
    finally:
        signal.signal(signal.SIGINT, own)


def one_device():
    """The environment of a process with one device, and not the eight of the tests."""
    flags = [flag for flag in os.environ["XLA_FLAGS"].split() if "device_count" not in flag]
    return os.environ | {"XLA_FLAGS": " ".join(flags)}


def wait_until(condition, process):
    """Waits for something that a process does; False if it ends before."""
    while process.poll() is None:
        if condition():
            return True
        time.sleep(0.001)
    return False


def num_lines(out):
    """Whole lines of metrics.jsonl."""
    file = out / "metrics.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


def only_line(process):
    """The one line that a process prints before it ends, and its exit code."""
    out, error = process.communicate(timeout=120)
    assert not out and len(error.splitlines()) == 1, (out, error)
    return error.strip(), process.returncode


def message_of(call, capsys):
    """The one line with which a call exits with code 2."""
    with pytest.raises(SystemExit) as exit:
        call()
    assert exit.value.code == 2
    printed = capsys.readouterr()
    lines = printed.err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    return lines[0]
