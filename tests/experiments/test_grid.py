"""Sweeps over settings: which runs they make, how they share the work, what they say of failures."""

import dataclasses
import json
import time

import pytest

from experiments import grid
from experiments.running import queue
from experiments.running.programs import structure
from experiments.running.records import RunFolder, alone_in
from experiments.settings import Settings
from experiments.settings.defaults import resolved
from tests.experiments.runs import TINY, message_of, metrics, one_device, outcome, run

FLAGS = [*TINY, "--epochs", "2"]


@pytest.fixture
def compiled(monkeypatch):
    """Settings of what has been compiled."""
    found, compile_programs = [], queue.compile_programs

    def counted(settings, data):
        found.append(settings)
        return compile_programs(settings, data)

    monkeypatch.setattr(queue, "compile_programs", counted)
    return found


def sweep(out, *args):
    """The exit code of a sweep."""
    try:
        grid.main([*FLAGS, "--out", str(out), "--vary", *args])
    except SystemExit as exit:
        return exit.code
    return 0


def asked(*vary, **setup):
    return grid.all_runs(grid.GridSettings(vary=vary, **setup))


def test_runs_are_the_product_of_the_values_that_each_method_takes():
    found = asked("method=sgd,sam,vsam", "rho=0.05,0.1", "seed=0,1,2", "window=10", epochs=5)
    names = [f"{name}-seed{seed}" for name in ("sgd", "sam-rho0.05", "sam-rho0.1") for seed in range(3)]
    names += [f"vsam-rho{rho}-window10-seed{seed}" for rho in (0.05, 0.1) for seed in range(3)]
    assert list(found) == names and {each.epochs for each in found.values()} == {5}
    assert found["sam-rho0.1-seed2"].method_settings.rho == 0.1 and found["sam-rho0.1-seed2"].seed == 2
    assert list(asked("batch-size=20,50")) == ["sam-batch_size20-seed0", "sam-batch_size50-seed0"]


def test_values_are_those_of_the_command_line():
    found = asked("augment=crop flip,,None", "nesterov=True", "data=glue/sst2,digits", "rho=None")
    assert list(found) == [
        f"sam-{augment}-nesterovTrue-{data}-rhoNone-seed0"
        for augment in ("crop+flip", "augment", "augmentNone")
        for data in ("glue_sst2", "digits")
    ]


def test_programs_are_shared_by_seeds_and_radii_and_finished_runs_are_left_alone(tmp_path, compiled, capsys):
    args = ["method=sgd,sam", "rho=0.05,0.1", "seed=0,1"]
    assert sweep(tmp_path, *args) == 0
    assert [each.method for each in compiled] == ["sam", "sgd"]  # what has most runs comes first
    assert "6 of 6 runs are finished" in capsys.readouterr().out
    alone = run(tmp_path / "alone", *FLAGS, "--method", "sam", "--rho", "0.1", "--seed", "1")
    again = json.loads((tmp_path / "sam-rho0.1-seed1/result.json").read_text())
    assert again["params_sha256"] == alone["params_sha256"]
    results = {file: file.stat().st_mtime_ns for file in tmp_path.glob("*-seed*/result.json")}
    (tmp_path / "sam-rho0.05-seed0/result.json").unlink()  # as if interrupted
    assert sweep(tmp_path, *args, "--momentum", "0.9") == 0 and len(compiled) == 3
    changed = [file.parent.name for file, written in results.items() if file.stat().st_mtime_ns != written]
    assert changed == ["sam-rho0.05-seed0"]
    assert sweep(tmp_path, "method=sgd", "--momentum", "0.8") == 0
    assert [path.name[:16] for path in tmp_path.glob("*-until-*")] == ["sgd-seed0-until-"]


def test_equal_programs_are_told_by_the_settings():
    sam = resolved(Settings(method="sam"))
    own = dataclasses.replace(sam.method_settings, rho=0.3)
    assert structure(dataclasses.replace(sam, method_settings=own, seed=3, learning_rate=1.0)) == structure(
        sam
    )
    assert structure(dataclasses.replace(sam, momentum=0.8)) != structure(sam)
    bsam = resolved(Settings(method="bsam"))
    assert structure(dataclasses.replace(bsam, weight_decay=0.1)) != structure(bsam)


def test_failed_runs_are_told_at_the_end_and_the_others_go_on(tmp_path, compiled, monkeypatch, capsys):
    def compile_programs(settings, data):
        if settings.method == "rst":
            raise RuntimeError("out of memory\nand much more")
        return counted(settings, data)

    counted = queue.compile_programs
    monkeypatch.setattr(queue, "compile_programs", compile_programs)
    args = ["method=rst,sam,sgd", "rho=-1,0.1", "batch-size=20,61", "learning-rate=1e30"]
    assert sweep(tmp_path, *args) == 1
    printed = capsys.readouterr()
    assert printed.out.startswith("2 of 10 runs are finished;")  # diverged ones too
    lines = dict(line.removeprefix("failed: ").split(": ", 1) for line in printed.err.strip().splitlines())
    assert len(lines) == 8
    assert lines["rst-rho0.1-batch_size20-learning_rate1e+30-seed0"] == "RuntimeError: out of memory"
    assert "rho=-1.0" in lines["sam-rho-1.0-batch_size20-learning_rate1e+30-seed0"]
    assert "--batch-size 61" in lines["sgd-batch_size61-learning_rate1e+30-seed0"]


def test_mistakes_are_one_line_and_write_nothing(tmp_path, capsys):
    for args, part in (
        (["rho"], "--vary rho has no values"),
        (["roh=0.1"], "--vary roh=0.1"),
        (["out=x"], "--vary out=x"),
        (["seed=0", "seed=1"], "--vary seed=1 is the second"),
        (["method=sgd", "rho=0.1"], "--vary rho is no setting of sgd"),
        (["seed=0", "--processes", "0"], "--processes 0"),
    ):
        assert part in message_of(lambda: grid.main(["--out", str(tmp_path / "x"), "--vary", *args]), capsys)  # noqa: B023
    assert sweep(tmp_path / "x", "rho=0.1,small") == 2
    assert "--rho" in capsys.readouterr().err and not (tmp_path / "x").exists()


@pytest.mark.slow
def test_runs_in_the_hands_of_another_process_are_passed_over(tmp_path, compiled, capsys):
    held = resolved(asked("method=sgd", train_examples=60, batch_size=20, epochs=2)["sgd-seed0"])
    held = dataclasses.replace(held, out=tmp_path / "sgd-seed0")
    RunFolder(held)
    with alone_in(held.out):
        assert sweep(tmp_path, "method=sgd,sam") == 0
        assert [each.method for each in compiled] == ["sam"]
        assert "1 of 2 runs are finished, 1 in the hands of another process" in capsys.readouterr().out
    assert sweep(tmp_path, "method=sgd,sam") == 0
    assert [each.method for each in compiled] == ["sam", "sgd"]


@pytest.mark.slow
def test_two_processes_share_the_work(tmp_path, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", one_device()["XLA_FLAGS"])
    train_run, mine = queue.run, []

    def patient(settings, data, programs, listener):
        """Waits, at work in its first folder, for the other process to finish a run."""

        def waiting(**numbers):
            while not mine and not list(tmp_path.glob("*/result.json")):
                time.sleep(0.01)
            listener(**numbers)

        result = train_run(settings, data, programs, waiting)
        mine.append(settings.out.name)
        return result

    monkeypatch.setattr(queue, "run", patient)
    assert sweep(tmp_path, "method=sgd,sam", "seed=0,1", "--processes", "2") == 0
    folders = [path.parent for path in tmp_path.glob("*/result.json")]
    assert len(folders) == 4 and 0 < len(set(mine)) == len(mine) < 4
    run(tmp_path / "alone", *FLAGS, "--method", "sam", "--seed", "1")
    assert outcome(tmp_path / "alone") == outcome(tmp_path / "sam-seed1")
    assert all([line["epoch"] for line in metrics(folder)] == [1, 2] for folder in folders)
