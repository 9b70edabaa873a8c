"""Runs side by side in one program: each has the numbers of a run by itself."""

import dataclasses
import json

import jax
import numpy as np
import optax
import pytest

from experiments import grid
from experiments.data import load
from experiments.methods.baselines import averaged, ham
from experiments.running.programs import compile_programs
from experiments.running.run import run
from experiments.running.sharpness import MEASURED
from experiments.running.side_by_side import compile_side_by_side, run_side_by_side
from experiments.settings import Settings
from experiments.settings.defaults import resolved
from experiments.settings.of_method import MethodSettings
from tests.experiments.runs import message_of
from tests.experiments.runs import run as train_alone
from tests.registry import over

SETUP = {
    "data": "mnist1d",
    "model": "mlp",
    "batch_size": 40,
    "train_examples": 200,
    "epochs": 3,
    "evaluate_every": 2,
}
METHODS = ("sgd", "sam", "momentum_sam", "vsam", "rst", "ausam", "averaged", "ham", "looksam", "pugd")


@pytest.mark.parametrize("method", over(METHODS, ("sgd", "vsam", "ausam")))
def test_each_run_has_the_numbers_of_a_run_by_itself(method, tmp_path):
    radius = {} if method in ("sgd", "averaged", "ham", "pugd") else {"rho": 0.3}
    if method == "ham":
        radius = {"mirror_strength": 2.0}
    own = MethodSettings(**radius, window=10 if method == "vsam" else None)
    first = Settings(**SETUP, method=method, learning_rate=0.1, weight_decay=1e-3, method_settings=own)
    second = dataclasses.replace(first, seed=7, learning_rate=0.05)
    if "rho" in radius:
        second = dataclasses.replace(second, method_settings=dataclasses.replace(own, rho=0.1))
    runs = [resolved(dataclasses.replace(each, out=tmp_path / str(each.seed))) for each in (first, second)]
    data = load(runs[0])
    together = run_side_by_side(runs, data, compile_side_by_side(runs[0], data, 2), lambda **_: None)
    programs = compile_programs(runs[0], data)
    for settings, (result, lines, state) in zip(runs, together, strict=True):
        alone, alone_state = run(settings, data, programs, lambda **_: None)
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-3, atol=2e-4),
            state.params,
            alone_state.params,
        )
        for name in ("train_loss", "test_loss", "test_accuracy", "gradients", "steps"):
            assert result[name] == pytest.approx(alone[name], rel=1e-3, abs=0.003), name
        record = [json.loads(line) for line in (settings.out / "metrics.jsonl").read_text().splitlines()]
        assert [line.keys() for line in lines] == [line.keys() for line in record]
        assert result["side_by_side"] == 2 and "side_by_side" not in alone
    assert together[0][0]["params_sha256"] != together[1][0]["params_sha256"]


def test_each_run_records_its_own_sharpness(tmp_path):
    first = Settings(**SETUP | {"epochs": 1}, method="sam", learning_rate=0.1, sharpness_every=1)
    second = dataclasses.replace(first, learning_rate=0.01)
    runs = [
        resolved(dataclasses.replace(each, out=tmp_path / str(n))) for n, each in enumerate((first, second))
    ]
    data = load(runs[0])
    together = run_side_by_side(runs, data, compile_side_by_side(runs[0], data, 2), lambda **_: None)
    programs = compile_programs(runs[0], data)
    for settings, (_, (line,), _) in zip(runs, together, strict=True):
        run(settings, data, programs, lambda **_: None)
        (alone,) = (settings.out / "metrics.jsonl").read_text().splitlines()
        alone = json.loads(alone)
        known = [name for name in MEASURED if alone[name] is not None]  # at the end the rate is 0
        assert {"batch_sharpness", "critical_sharpness"} <= {*known}
        assert {name: line[name] for name in known} == pytest.approx(
            {name: alone[name] for name in known}, rel=0.05
        )


def test_a_grid_trains_side_by_side_and_goes_on(tmp_path, capsys):
    flags = ["--data", "mnist1d", "--batch-size", "40", "--train-examples", "80", "--epochs", "1"]
    flags += [
        "--vary",
        "method=sgd,sam",
        "rho=0.1,0.2",
        "seed=0,1,2",
        "--side-by-side",
        "4",
        "--out",
        str(tmp_path),
    ]
    grid.main(flags)
    assert "9 of 9 runs are finished" in capsys.readouterr().out
    results = {file.parent.name: file for file in tmp_path.glob("*/result.json")}
    assert len(results) == 9 and json.loads(results["sam-rho0.2-seed2"].read_text())["seed"] == 2
    seeds = {json.loads(file.read_text())["params_sha256"] for file in results.values()}
    assert len(seeds) == 9
    results["sam-rho0.1-seed1"].unlink()
    written = {name: file.stat().st_mtime_ns for name, file in results.items() if file.exists()}
    grid.main(flags)
    assert "9 of 9 runs are finished" in capsys.readouterr().out
    assert {name: results[name].stat().st_mtime_ns for name in written} == written
    assert json.loads(results["sam-rho0.1-seed1"].read_text())["params_sha256"] in seeds


def test_streams_cannot_go_side_by_side(tmp_path, tfds_dir, capsys):
    flags = ["--data", "fashion_mnist", "--data-dir", tfds_dir, "--stream", "True", "--vary", "seed=0,1"]
    flags += ["--batch-size", "40", "--train-examples", "80", "--side-by-side", "2", "--out", str(tmp_path)]
    with pytest.raises(SystemExit):
        grid.main(flags)
    assert "is streamed, so that runs cannot go side by side" in capsys.readouterr().err
    assert "--side-by-side 0" in message_of(lambda: grid.main([*flags[:8], "--side-by-side", "0"]), capsys)


def test_the_average_of_weights_and_ham_are_their_equations():
    random = np.random.default_rng(0)
    w, b = random.normal(size=(3, 2)), random.normal(size=2)
    params = {"w": w.astype(np.float32), "b": b.astype(np.float32)}
    base = optax.sgd(lambda step: 0.1 / (1 + step), momentum=0.9)
    schedule = lambda step: 0.1 / (1 + step)  # noqa: E731
    for make in (lambda: averaged(base, 4.0), lambda: ham(base, schedule, 2.0, 0.5)):
        transformation, weights = make(), params
        state = transformation.init(weights)
        exact = {"w": w.copy(), "b": b.copy()}
        trace, average = {"w": 0 * w, "b": 0 * b}, {"w": w.copy(), "b": b.copy()}
        is_ham = not hasattr(state, "average")
        for step in range(4):
            grads = {"w": random.normal(size=(3, 2)), "b": random.normal(size=2)}
            updates, state = transformation.update(jax.tree.map(np.float32, grads), state, weights)
            weights = optax.apply_updates(weights, updates)
            for name in exact:
                trace[name] = 0.9 * trace[name] + grads[name]
                exact[name] = exact[name] - 0.1 / (1 + step) * trace[name]
                if is_ham and name == "w":
                    push = 2.0 * np.sign(exact[name]) * grads[name] + 0.5
                    exact[name] = exact[name] * np.exp(-0.1 / (1 + step) * push)
                average[name] = average[name] + (exact[name] - average[name]) / 4
        for name in exact:
            np.testing.assert_allclose(weights[name], exact[name], rtol=1e-4, atol=1e-5)
            if not is_ham:
                np.testing.assert_allclose(state.average[name], average[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "words", ["averaged --average-steps 0.5", "averaged --average-steps nan", "ham --mirror-decay -1"]
)
def test_numbers_of_the_baselines_are_checked(words, tmp_path, capsys):
    message = message_of(lambda: train_alone(tmp_path / "x", "--method", *words.split()), capsys)
    assert words.split()[1].removeprefix("--").replace("-", "_") in message
