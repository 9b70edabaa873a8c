"""Losses that are not finite, in tables and pictures: last, named, and in nobody's way."""

import json
import math
import re

import numpy as np
import pytest
from matplotlib import pyplot as plt

from experiments import compare, methods, summarize, train, tune
from experiments.reports import comparison, intervals
from experiments.reports.comparison import Curve, title
from experiments.reports.ranking import draw_ranking
from experiments.running.records import as_json
from experiments.running.scores import Score
from experiments.settings import Settings
from experiments.settings.defaults import resolved

LOSS = Score("test", "loss")


def results(*losses):
    others = {"gradients_per_step": 1.0, "top_eigenvalue": 2.0, "surrogate_gap": 0.1}
    return [{"test_loss": loss} | others for loss in losses]


def rows_of(names, diverged):
    return {
        name: compare.summary(results(None if name in diverged else 1.0 + n, 1.5 + n), 1.0, LOSS)
        for n, name in enumerate(names)
    }


@pytest.fixture
def headings(monkeypatch):
    """Of all pictures that are written."""
    found, written = [], plt.Figure.savefig

    def savefig(figure, *args, **kwargs):
        found.append(figure.get_suptitle())
        written(figure, *args, **kwargs)

    monkeypatch.setattr(plt.Figure, "savefig", savefig)
    return found


def test_one_of_several_seeds_makes_the_mean_infinite():
    row = compare.summary(results(1.0, None, 2.0), 1.0, LOSS)
    assert row["score_mean"] == math.inf and math.isnan(row["score_std"])
    assert LOSS.text(row["score_mean"], row["score_std"]) == "not finite"
    assert intervals.share([1.0, math.inf], [1.0, 2.0]) is None


@pytest.mark.parametrize("diverged", [["sgd"], ["sam", "rst"], [*methods.METHODS]], ids=len)
def test_it_is_the_last_of_a_long_table_and_stands_at_the_edge_of_its_picture(diverged, tmp_path, capsys):
    names = [*methods.METHODS]
    rows = rows_of(names, diverged)
    comparison.print_table(rows, LOSS)
    table = capsys.readouterr().out
    ended = [name for name in names if name not in diverged]
    places = [re.search(rf"│ {re.escape(title(name))} +│", table).start() for name in ended + diverged]
    assert places == sorted(places) and len(re.findall("not (?:finite)?", table)) == len(diverged)
    draw_ranking(rows, LOSS, "everything", tmp_path / "all.png")
    assert (tmp_path / "all.png").stat().st_size > 50_000


@pytest.mark.parametrize("diverged", [[], ["sgd"], ["sgd", "sam", "rst"]], ids=len)
def test_it_is_named_over_the_picture_of_a_short_table(diverged, tmp_path, headings):
    names = ["sgd", "sam", "rst"]
    curves = {
        name: Curve(np.array([1.0, 2.0]), np.array([3.0, math.inf if name in diverged else 2.0]), np.zeros(2))
        for name in names
    }
    comparison.draw(rows_of(names, diverged), curves, LOSS, "three", tmp_path / "three.png")
    (heading,) = headings
    wanted = f"; diverged: {', '.join(map(title, diverged))}" if diverged else ""
    assert heading == "three" + wanted


def run_folder(folder, method, seed, losses):
    settings = as_json(
        resolved(Settings(data="etth1", model="samformer", method=method, seed=seed, epochs=2))
    )
    lines = [{"test_loss": x, "seconds": n + 1.0, "gradients": n + 1.0} for n, x in enumerate(losses)]
    result = {"test_loss": losses[-1], "gradients_per_step": 1.0, "step_seconds": 1.0}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"settings": settings, "device": "cpu", "machine": {}}))
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.parametrize("diverged", [["sam"], ["sgd", "sam", "rst"]], ids=len)
def test_a_sum_of_runs_says_so_and_has_no_share(diverged, tmp_path, headings, capsys):
    for method in ("sgd", "sam", "rst"):
        for seed in range(2):
            end = None if seed and method in diverged else 1.0 + 0.1 * seed
            run_folder(tmp_path / f"{method}{seed}", method, seed, [None if seed else 3.0, end])
    summarize.main([str(tmp_path), "--out", str(tmp_path / "sum")])
    rows = json.loads((tmp_path / "sum/summary.json").read_text())["groups"]
    assert {row["settings"]["method"] for row in rows if row["score_mean"] is None} == {*diverged}
    assert all(row["share_of_gain"] is None for row in rows)
    text = (tmp_path / "sum/summary.md").read_text()
    assert text.count("not finite") == len(diverged) and "nan" not in text and "inf" not in text
    labels = [row["label"] for row in rows if row["score_mean"] is None]
    assert all(heading.endswith("; diverged: " + ", ".join(labels)) for heading in headings)
    assert len(headings) == 2


def test_a_network_of_nan_has_no_accuracy(tmp_path):
    """It names the first class, which a tenth of the examples have."""
    words = ["--model", "mlp", "--train-examples", "60", "--batch-size", "20", "--epochs", "2"]
    for seed in "01":
        for method, rate in (("sgd", "1e8"), ("sam", "0.1"), ("rst", "1e8")):
            name = ["--method", method, "--learning-rate", rate, "--weight-decay", "0", "--seed", seed]
            train.main([*words, *name, "--out", str(tmp_path / f"runs/{method}{seed}")])
    result = json.loads((tmp_path / "runs/sgd0/result.json").read_text())
    assert result["test_loss"] is None and result["test_accuracy"] is None
    summarize.main([str(tmp_path / "runs"), "--out", str(tmp_path / "sum")])
    rows = json.loads((tmp_path / "sum/summary.json").read_text())["groups"]
    assert [row["score_mean"] is None for row in rows] == [True, False, True]
    assert all(row["share_of_gain"] is None for row in rows)
    accuracies = [{"test_accuracy": x, **results(1.0)[0]} for x in (0.5, None)]
    row = compare.summary(accuracies, 1.0, Score("test", "accuracy"))
    assert row["score_mean"] == -math.inf  # the last of a table that is in order


def test_a_search_does_not_choose_a_network_of_nan(tmp_path):
    settings = tune.TuneSettings(
        data="digits", methods=("sgd",), model="mlp", train_examples=60, batch_size=20, epochs=2
    )
    data = tune.load(settings)
    point = tune.with_point(settings, "sgd", {"learning_rate": 1e8}, 0)
    part = tune.trial_data(data, 0, settings)
    assert tune.trained_score(point, part, tune.compile_programs(point, part)) == -math.inf


def test_a_point_at_which_one_of_several_trials_diverges_is_not_chosen(tmp_path, monkeypatch):
    scores = iter([-math.inf, 0.9, 0.3, 0.4])
    monkeypatch.setattr(tune, "trained_score", lambda *_: next(scores))
    monkeypatch.setattr(tune, "compile_programs", lambda *_: None)
    monkeypatch.setattr(tune, "points_of", lambda *_: [{"rho": 0.1}, {"rho": 0.2}])
    settings = tune.TuneSettings(data="digits", methods=("sam",), seeds=2, parts=1)
    found = tune.search("sam", tune.load(settings), settings)
    assert found["best"]["rho"] == 0.2
    assert math.isnan(found["grid"][0]["score_std"])
