"""Tiny runs of the command line."""

import json
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


def message_of(call, capsys):
    """The one line with which a call exits with code 2."""
    with pytest.raises(SystemExit) as exit:
        call()
    assert exit.value.code == 2
    printed = capsys.readouterr()
    lines = printed.err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    return lines[0]
