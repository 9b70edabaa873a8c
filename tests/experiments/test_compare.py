"""The comparison with its table and picture."""

import dataclasses
import json
import math
import re

import numpy as np
import pytest

from experiments import compare, methods
from experiments.reports import comparison, trajectories
from experiments.reports.ranking import draw_ranking
from experiments.running import records
from experiments.running.scores import Score
from experiments.settings import Settings
from experiments.settings.defaults import resolved
from tests.experiments.runs import message_of

ACCURACY = Score("test", "accuracy")


@pytest.mark.slow
def test_comparison_writes_the_summary_and_the_picture_and_reuses_runs(tmp_path, capsys):
    args = ["--methods", "sgd", "rst", "--seeds", "2", "--epochs", "2", "--timing-rounds", "1"]
    args += ["--train-examples", "60", "--batch-size", "20", "--sharpness-every", "2", "--out", str(tmp_path)]
    compare.main(args)
    content = json.loads((tmp_path / "summary.json").read_text())
    keys = ["score_mean", "score_std", "gradients_per_step", "step_time_vs_sgd"]
    keys += ["top_eigenvalue", "surrogate_gap", "seeds"]
    assert list(content["methods"]) == ["sgd", "rst"]
    for row in content["methods"].values():
        assert list(row) == keys and row["seeds"] == 2
    assert content["methods"]["sgd"]["step_time_vs_sgd"] == 1.0
    assert (tmp_path / "comparison.png").stat().st_size > 10_000
    assert (tmp_path / "sharpness.png").stat().st_size > 10_000
    first, second = map(json.loads, (tmp_path / "rst-seed0/metrics.jsonl").read_text().splitlines())
    recorded = {"top_eigenvalue", "psf_norm", "surrogate_gap", "loss_change_rank"}
    assert not recorded & set(first) and recorded < set(second)
    assert all(np.isfinite(second[name]) for name in recorded) and -1 <= second["loss_change_rank"] <= 1
    result = json.loads((tmp_path / "rst-seed0/result.json").read_text())
    assert all(result[name] == second[name] for name in recorded)  # of the same weights
    assert "RST" in capsys.readouterr().out
    results = {file: file.stat().st_mtime_ns for file in tmp_path.glob("*-seed*/result.json")}
    assert len(results) == 4
    (tmp_path / "rst-seed1/result.json").unlink()  # as if interrupted
    (tmp_path / "sgd-seed0/metrics.jsonl").unlink()
    compare.main(args)
    for file, written in results.items():
        assert (file.stat().st_mtime_ns == written) == (file.parent.name not in ("rst-seed1", "sgd-seed0"))
    assert (tmp_path / "sgd-seed0/metrics.jsonl").exists()
    again = json.loads((tmp_path / "summary.json").read_text())["methods"]["rst"]
    assert again["score_mean"] == content["methods"]["rst"]["score_mean"]


def test_a_run_that_has_diverged_is_a_row_without_numbers(tmp_path):
    sharpness = {"top_eigenvalue": math.nan, "surrogate_gap": None}
    row = compare.summary([{"test_accuracy": 0.1, "gradients_per_step": 2.0} | sharpness] * 2, 1.5, ACCURACY)
    assert row["score_mean"] == 0.1 and all(math.isnan(row[name]) for name in sharpness)
    records.write_json(tmp_path / "summary.json", {"methods": {"sam": row}, "all": [math.inf]})
    assert "NaN" not in (tmp_path / "summary.json").read_text()
    read = records.read_json(tmp_path / "summary.json")
    assert read["methods"]["sam"]["top_eigenvalue"] is None and read["all"] == [None]


def test_trajectories_are_means_over_runs_of_the_recorded_epochs():
    def run(offset):
        lines = [{"epoch": n, "step": 10 * n, "gradients": 10.0 * n * n} for n in (1, 2, 3, 4)]
        for line in lines[1::2]:
            line |= {"surrogate_gap": offset + line["epoch"]}
        return lines

    runs = [run(0.0), run(2.0)]
    epochs, mean, spread = trajectories.trajectory(runs, "surrogate_gap")
    assert epochs.tolist() == [2, 4] and mean.tolist() == [3, 5]
    np.testing.assert_allclose(spread, 2**0.5)
    assert trajectories.trajectory(runs, "gate")[1].tolist() == [3, 7]  # of each epoch, not since the start


def test_run_with_other_settings_is_set_aside(tmp_path):
    settings = resolved(Settings(method="sgd", out=tmp_path / "sgd-seed0", resume=True))
    records.RunFolder(settings)
    compare.set_aside_if_different(settings)
    assert [path.name for path in tmp_path.iterdir()] == ["sgd-seed0"]
    compare.set_aside_if_different(dataclasses.replace(settings, epochs=2))
    (aside,) = tmp_path.iterdir()
    assert aside.name.startswith("sgd-seed0-until-") and (aside / "config.json").exists()


def test_comparison_refuses_bad_settings_in_one_line(tmp_path, capsys):
    for args, part in (
        (["--methods", "nonsense"], "--method nonsense"),
        (["--seeds", "0"], "--seeds 0"),
        (["--timing-rounds", "0"], "--timing-rounds 0"),
        (["--epochs", "0"], "--epochs 0"),
    ):
        line = message_of(lambda: compare.main(["--out", str(tmp_path / "x"), *args]), capsys)  # noqa: B023
        assert part in line and not (tmp_path / "x").exists()


def test_long_table_says_which_methods_cost_no_more_than_sgd(tmp_path, capsys):
    names = list(methods.METHODS)
    rows = {
        name: {
            "score_mean": 0.9 + 0.001 * number,
            "score_std": 0.0015,
            "gradients_per_step": 1 + number % 2,
            "step_time_vs_sgd": 1 + number % 2,
            "top_eigenvalue": 1.0 + number,
            "surrogate_gap": 0.1,
            "seeds": 3,
        }
        for number, name in enumerate(names)
    }
    sam = names.index("sam")
    cheap = [name for n, name in enumerate(names) if n >= sam - 1 and n % 2 == 0 and name != "sgd"]
    assert comparison.as_cheap_as_sgd(rows, ACCURACY) == cheap
    comparison.print_table(rows, ACCURACY)
    printed = capsys.readouterr().out
    table, last = printed.split("in at most 1.1 times SGD's time: ")
    assert last.strip() == ", ".join(comparison.title(name) for name in reversed(cheap))
    places = [re.search(rf"│ {re.escape(comparison.title(name))} +│", table).start() for name in names]
    assert places == sorted(places, reverse=True)
    rows["sgd"]["score_mean"] = 0.99  # all others far below
    draw_ranking(rows, ACCURACY, "everything", tmp_path / "all.png")
    draw_ranking(
        {name: rows[name] for name in rows if name != "sgd"}, ACCURACY, "no SGD", tmp_path / "all.png"
    )
    assert (tmp_path / "all.png").stat().st_size > 50_000


def test_labels_in_the_picture_never_overlap():
    heights = [90.0, 90.1, 90.2, 95.0, 90.15, 94.9]
    placed = comparison.spread_out(heights, (80.0, 96.0))
    assert np.diff(np.sort(placed)).min() >= 0.9 and placed.max() <= 96
    assert (np.argsort(placed) == np.argsort(heights)).all()


def test_groups_of_methods_stand_for_their_members():
    settings = compare.CompareSettings()
    assert compare.names(settings) == methods.DEMO
    everything = dataclasses.replace(settings, methods=("all",))
    assert set(compare.names(everything)) == set(methods.METHODS)
    runs = compare.all_runs(dataclasses.replace(settings, methods=("demo", "asam", "sam")))
    assert list(runs) == [*methods.DEMO, "asam"]
