"""Bad input: one line that names the setting, its value and the repair."""

import importlib
import os
import socket
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import pytest

from experiments import tune
from experiments.running import checkpoints
from tests.experiments.runs import TINY, message_of, run

# Messages

BAD_INPUT = [
    (
        ["--train-examples", "60", "--batch-size", "50", "--evaluate-on", "validation"],
        "--batch-size 50 is more than the 48 training examples that --evaluate-on validation leaves",
    ),
    (["--method", "nonsense"], "--method nonsense"),
    (["--model", "nonsense"], "--model nonsense"),
    (["--data", "nonsense"], "--data nonsense"),
    (["--data", "cifar10", "--data-dir", "/nowhere"], "--data-dir /nowhere"),
    (["--data", "cifar10", "--data-dir", str(Path(__file__).parent)], "holds no prepared cifar10"),
    (["--data", "glue/sst2", "--data-dir", str(Path(__file__).parent)], "holds no prepared glue/sst2"),
    (["--rho", "-1"], "rho"),
    (["--rho", "nan"], "rho"),
    (["--method", "sgd", "--rho", "0.1"], "--rho 0.1"),
    (["--method", "rst", "--probability", "1.5"], "probability"),
    (["--method", "ausam", "--fraction", "0.001"], "--fraction 0.001"),
    (["--method", "esam", "--example-fraction", "0.001"], "--example-fraction 0.001"),
    (["--method", "bsam", "--num-microbatches", "7"], "--num-microbatches 7"),
    (["--method", "random_perturbation", "--batch-size", "25"], "--batch-size 25"),
    (["--method", "friendly_sam", "--theta", "0.5"], "--theta 0.5"),
    (["--batch-size", "501"], "--batch-size 501"),
    (["--batch-size", "0"], "--batch-size 0"),
    (["--epochs", "0"], "--epochs 0"),
    (["--train-examples", "501"], "--train-examples 501"),
    (["--train-examples", "0"], "--train-examples 0"),
    (["--label-noise", "1.5"], "--label-noise 1.5"),
    (["--label-noise", "-0.1"], "--label-noise -0.1"),
    (["--learning-rate", "-1"], "--learning-rate -1"),
    (["--learning-rate", "inf"], "--learning-rate inf"),
    (["--weight-decay", "-1"], "--weight-decay -1"),
    (["--momentum", "1"], "--momentum 1"),
    (["--quantize-bits", "1"], "--quantize-bits 1"),
    (["--quantize-bits", "4", "--model", "conv_nnx"], "--quantize-bits 4"),
    (["--adapter-rank", "0"], "--adapter-rank 0 is out of range: give 1 or more"),
    (["--adapter-rank", "8"], "--adapter-rank 8 is not for --model conv, which is not pretrained: give"),
    (["--method", "flat_lora"], "--method flat_lora trains adapters, and the run has none: give"),
    (["--method", "bi_lora"], "--method bi_lora trains adapters, and the run has none: give"),
    (["--model", "text"], "--model text is not for --data digits: give conv"),
    (["--model", "minilm"], "--model minilm is not for --data digits: give conv"),
    (["--data", "trec", "--model", "minilm", "--quantize-bits", "4"], "for --model minilm: give text"),
    (["--data", "stick_figures", "--model", "conv"], "give simcc"),
    (["--data", "stick_figures", "--label-noise", "0.2"], "--label-noise 0.2"),
    (["--data", "stick_figures", "--method", "fgsam"], "--method fgsam"),
    (["--data", "trec", "--augment", "flip"], "--augment"),
    (["--data", "trec", "--mixup", "0.2"], "--mixup 0.2"),
    (["--data", "mpii", "--data-dir", "/nowhere"], "--data-dir /nowhere"),
    (["--stream", "True"], "--stream True"),
    (["--workers", "-1"], "--workers -1"),
    (["--workers", "2"], "--workers 2 has nothing to do"),
    (["--data-dir", "/nowhere"], "--data-dir /nowhere is not for --data digits"),
    (["--method", "ham", "--clip-norm", "0.1"], "--clip-norm 0.1 is not used by --method ham"),
    (["--method", "decoupled_wsam", "--clip-norm", "1"], "--clip-norm 1.0 is not used by --method decoupled"),
    (["--method", "adasam", "--weight-decay", "0.1"], "--weight-decay 0.1 is not used by --method adasam"),
    (["--mixup", "-1"], "--mixup -1"),
    (["--label-smoothing", "1"], "--label-smoothing 1"),
    (["--clip-norm", "0"], "--clip-norm 0"),
    (["--warmup-epochs", "60"], "--warmup-epochs 60"),
    (["--optimizer", "lamb", "--nesterov"], "--nesterov True"),
    (["--optimizer", "adamw", "--decay-in-loss"], "--decay-in-loss True"),
    (["--profile", "3", "2"], "--profile"),
    (["--method", "adasam", "--optimizer", "lamb"], "--optimizer lamb"),
    (["--method", "adasam", "--clip-norm", "1"], "--clip-norm 1.0"),
    (["--method", "bsam", "--decay-in-loss"], "--decay-in-loss True"),
    (["--method", "esam", "--example-fraction", "nan"], "--example-fraction nan"),
    (["--seed", "-1"], "--seed -1"),
    (["--checkpoint-every", "0"], "--checkpoint-every 0"),
]


@pytest.mark.parametrize(("args", "part"), BAD_INPUT, ids=lambda value: str(value)[:40])
def test_bad_input_is_one_line_and_writes_nothing(args, part, tmp_path, capsys):
    line = message_of(lambda: run(tmp_path / "x", *args), capsys)
    assert part in line
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("args", [["--epochs", "many"], ["--roh", "0.1"], ["--noise", "pink"]])
def test_what_the_parser_refuses_exits_with_2(args, tmp_path):
    with pytest.raises(SystemExit) as exit:
        run(tmp_path / "x", *args)
    assert exit.value.code == 2 and not (tmp_path / "x").exists()


def test_set_that_is_missing_is_one_line_at_once_without_a_network(tmp_path, capsys, monkeypatch):
    def nothing_known(*_):
        raise OSError(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", nothing_known)
    monkeypatch.setattr(urllib.request, "getproxies", dict)
    builder = SimpleNamespace(
        is_prepared=lambda: False,
        info=SimpleNamespace(homepage="https://example.com/page"),
        data_path=tmp_path / "cifar10/3.0.2",
    )
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    monkeypatch.setattr("tensorflow_datasets.builder", lambda *_, **__: builder)
    line = message_of(lambda: run(tmp_path / "x", "--data", "cifar10"), capsys)
    assert f"--data cifar10 is not in {tmp_path}," in line and "without a network" in line


def test_folder_of_another_run_is_refused(tmp_path, capsys):
    args = [*TINY, "--method", "sgd", "--epochs", "1"]
    run(tmp_path / "x", *args)
    capsys.readouterr()
    assert "--resume" in message_of(lambda: run(tmp_path / "x", *args), capsys)
    changed = [*args, "--resume", "--momentum", "0.5"]
    line = message_of(lambda: run(tmp_path / "x", *changed), capsys)
    assert "--momentum 0.5" in line and "0.9" in line


def test_folder_that_cannot_be_written_is_refused(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    line = message_of(lambda: run(tmp_path / "file/x"), capsys)
    assert "--out" in line and "give another folder" in line


@pytest.mark.slow
def test_full_disk_is_one_line_and_the_run_can_go_on(tmp_path, capsys, monkeypatch):
    args = [*TINY, "--method", "sgd", "--epochs", "2"]
    whole = run(tmp_path / "whole", *args)
    capsys.readouterr()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.ocp.CheckpointManager, "save", full)
        line = message_of(lambda: run(tmp_path / "x", *args), capsys)
    assert "--out" in line and "No space left on device" in line and "--resume" in line
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        line = message_of(lambda: run(tmp_path / "x", *args, "--resume"), capsys)
    assert "--out" in line and "No space left on device" in line
    assert run(tmp_path / "x", *args, "--resume")["params_sha256"] == whole["params_sha256"]


@pytest.mark.parametrize(
    "args, part",
    [
        (
            ["--methods", "sgd", "--learning-rate", "0.5"],
            "--learning-rate 0.5 is searched by the grid of sgd",
        ),
        (
            ["--methods", "pugd", "--learning-rate", "0.5"],
            "--learning-rate 0.5 is searched by the grid of pugd",
        ),
        (
            ["--methods", "sgd", "--data", "mnist1d", "--model", "mlp", "--weight-decay", "0"],
            "give a number above 0",
        ),
    ],
)
def test_numbers_that_a_grid_searches_are_refused(args, part, capsys):
    assert part in message_of(lambda: tune.main(args), capsys)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("experiments.sharpness", "experiments.sharpness"),
        ("experiments.compare", "experiments.compare"),
        ("experiments.evidence.__main__", "experiments.evidence"),
        ("experiments.evidence.judge_rules", "experiments.evidence.judge_rules"),
    ],
)
def test_help_names_the_command_that_was_given(module, name, capsys):
    with pytest.raises(SystemExit):
        importlib.import_module(module).main(["--help"])
    assert capsys.readouterr().out.startswith(f"usage: python -m {name} ")
