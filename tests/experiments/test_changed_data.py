"""Data that change between two calls: no run is made of both, and neither is taken for the other."""

import json

import numpy as np
import pytest

from experiments import compare, data, grid, radius, sharpness
from experiments.data.digits import digits
from experiments.running import records
from experiments.running.queue import set_aside_if_different
from experiments.settings import Settings
from experiments.settings.defaults import resolved
from tests.experiments.runs import TINY, contents, message_of, outcome, run

FLAGS = [*TINY, "--model", "mlp", "--label-noise", "0", "--epochs", "2"]
CHANGED = "has other examples or labels than those with which the run in --out"


@pytest.fixture
def labels(tmp_path):
    """The flags of a file of labels, and a function that replaces its content by right or by wrong ones."""
    file, right = tmp_path / "labels.npz", digits().train["label"]

    def replace(wrong=False):
        np.savez(file, y=np.random.default_rng(0).permutation(right) if wrong else right)

    replace()
    return ["--labels", f"{file}:y"], replace


def config(folder):
    return json.loads((folder / "config.json").read_text())


def without_result(folder):
    """As if interrupted after the first epoch."""
    (folder / "result.json").unlink()
    metrics = folder / "metrics.jsonl"
    metrics.write_text(metrics.read_text().splitlines(keepends=True)[0])


def test_every_example_and_label_counts():
    loaded = data.load(resolved(Settings(method="sgd", train_examples=60, batch_size=20)))
    digest = records.digest_of(loaded)
    assert digest == records.digest_of(loaded._replace(num_classes=11, validation=loaded.test))
    for part in ("train", "test"):
        for name, array in getattr(loaded, part).items():
            changed = array.copy()
            changed.flat[-1] += 1
            other = loaded._replace(**{part: getattr(loaded, part) | {name: changed}})
            assert records.digest_of(other) != digest


def test_a_run_does_not_go_on_with_other_labels(labels, tmp_path, capsys, compiled_once):
    flags, replace = labels
    args = [*FLAGS, *flags, "--method", "sgd"]
    run(tmp_path / "x", *args)
    before = outcome(tmp_path / "x")
    without_result(tmp_path / "x")
    files = contents(tmp_path / "x")
    replace(wrong=True)
    capsys.readouterr()
    line = message_of(lambda: run(tmp_path / "x", *args, "--resume"), capsys)
    assert f"--data digits {' '.join(flags)} {CHANGED} {tmp_path / 'x'} began" in line
    assert line.endswith(": restore them, or give another --out") and contents(tmp_path / "x") == files
    replace()
    run(tmp_path / "x", *args, "--resume")
    assert outcome(tmp_path / "x") == before
    # A run of an earlier version has no digest of its data, and receives that of those it goes on with.
    written = config(tmp_path / "x")
    records.write_json(tmp_path / "x/config.json", {"settings": written["settings"]})
    run(tmp_path / "x", *args, "--resume")
    assert config(tmp_path / "x") == {key: written[key] for key in ("settings", "data_sha256")}


def test_a_comparison_sets_runs_of_other_labels_aside(labels, tmp_path, monkeypatch):
    flags, replace = labels
    monkeypatch.setattr(compare, "measured", lambda *_: {"top_eigenvalue": 1.0, "surrogate_gap": 0.0})
    monkeypatch.setattr(compare, "step_seconds", lambda runs, *_: dict.fromkeys(runs, np.ones(1)))
    args = [
        *FLAGS[:-1],
        "1",
        *flags,
        "--methods",
        "sgd",
        "--timing-rounds",
        "1",
        "--out",
        str(tmp_path / "x"),
    ]
    compare.main([*args, "--seeds", "1"])
    first = config(tmp_path / "x/sgd-seed0")["data_sha256"]
    replace(wrong=True)
    compare.main([*args, "--seeds", "2"])
    (aside,) = tmp_path.glob("x/*-until-*")
    assert aside.name.startswith("sgd-seed0-until-") and config(aside)["data_sha256"] == first
    second = {config(tmp_path / f"x/sgd-seed{seed}")["data_sha256"] for seed in (0, 1)}
    assert len(second) == 1 and first not in second


def test_a_run_without_a_digest_is_not_set_aside(tmp_path):
    settings = resolved(Settings(method="sgd", out=tmp_path / "x", resume=True))
    records.RunFolder(settings)
    set_aside_if_different(settings, "a digest")
    records.RunFolder(settings).keep_digest("a digest")
    set_aside_if_different(settings, "a digest")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    set_aside_if_different(settings, "another")
    assert "x" not in [path.name for path in tmp_path.iterdir()]


@pytest.mark.parametrize("together", ["1", "3"])
def test_a_grid_goes_on_with_the_same_labels_alone(together, labels, tmp_path, capsys):
    flags, replace = labels
    out = tmp_path / "x"
    args = [*FLAGS, *flags, "--side-by-side", together, "--out", str(out), "--vary", "method=sgd"]
    grid.main([*args, "seed=0,1"])
    without_result(out / "sgd-seed1")
    replace(wrong=True)
    capsys.readouterr()
    with pytest.raises(SystemExit):
        grid.main([*args, "seed=2,1,0"])
    printed = capsys.readouterr()
    assert printed.out.startswith("2 of 3 runs are finished")
    assert f"{CHANGED} {out / 'sgd-seed1'} began" in printed.err and len(printed.err.splitlines()) == 1
    before, refused, new = (config(out / f"sgd-seed{seed}")["data_sha256"] for seed in range(3))
    assert before == refused != new  # the others go on, and summarize tells them apart
    if together == "1":
        replace()
        grid.main([*args, "seed=1"])
        assert "1 of 1 runs are finished" in capsys.readouterr().out


def test_a_run_is_not_measured_on_other_labels(labels, tmp_path, capsys, compiled_once):
    flags, replace = labels
    run(tmp_path / "x", *FLAGS, *flags, "--method", "sgd")
    replace(wrong=True)
    capsys.readouterr()
    measure = ["--batches", "1", "--out", str(tmp_path / "out")]
    for call in (
        lambda: sharpness.main([str(tmp_path / "x"), *measure]),
        lambda: radius.main([str(tmp_path / "x"), "--batches", "1"]),
    ):
        line = message_of(call, capsys)
        assert f"{tmp_path / 'x'} was trained on other examples or labels than --data digits" in line
        assert line.endswith(f"{' '.join(flags)} has now: restore them")
