"""Sums of finished runs: groups, intervals, shares of SAM's gain, pictures."""

import json

import numpy as np
import pytest
from scipy import stats

from experiments import summarize
from experiments.reports import intervals
from experiments.running.records import as_json
from experiments.settings import Settings
from experiments.settings.defaults import resolved
from tests.experiments.runs import message_of

EPOCHS = 3


def write(folder, method, seed, accuracy, step_seconds=1.0, digest=None, **settings):
    """A finished run."""
    equal = Settings(method=method, seed=seed, epochs=EPOCHS, learning_rate=0.1, weight_decay=5e-4)
    given = as_json(resolved(equal)) | settings
    gradients = 1 if method == "sgd" else 2
    lines = [
        {"test_accuracy": accuracy * part, "seconds": step_seconds * part, "gradients": gradients * part}
        for part in (0.5, 0.9, 1.0)
    ]
    result = {
        "test_accuracy": accuracy,
        "gradients_per_step": gradients,
        "step_seconds": step_seconds,
    }
    folder.mkdir(parents=True)
    config = {"settings": given, "device": "cpu", "machine": {}}
    config |= {"data_sha256": digest} if digest else {}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def sweep(folder, accuracies, **settings):
    for method, values in accuracies.items():
        for seed, accuracy in enumerate(values):
            name, time = f"{method}-seed{seed}", 1.0 if method == "sgd" else 1.5
            write(folder / name, method, seed, accuracy, time, **settings)


def summed(*folders, out):
    summarize.main([*map(str, folders), "--out", str(out)])
    return {row["label"]: row for row in json.loads((out / "summary.json").read_text())["groups"]}


def test_margin_is_students():
    assert intervals.margin([0.9, 0.92, 0.94]) == pytest.approx(4.302652729911275 * 0.02 / 3**0.5)
    assert intervals.margin([0.5, 0.7]) == pytest.approx(12.706204736432095 * 0.1)
    assert intervals.margin([0.9]) is None
    assert intervals.margin(np.array([[0.9, 1.0], [0.9, 2.0]])).tolist() == pytest.approx([0, 6.353102368])


def test_ends_of_the_share_are_where_the_t_test_turns():
    parts, wholes = np.array([0.010, 0.013, 0.016, 0.008]), np.array([0.020, 0.022, 0.019, 0.021])
    value, low, high = intervals.share(parts, wholes)
    assert value == pytest.approx(parts.mean() / wholes.mean()) and low < value < high
    for end in (low, high):
        assert stats.ttest_1samp(parts - end * wholes, 0).pvalue == pytest.approx(0.05)
    assert intervals.share(0.5 * wholes, wholes) == pytest.approx((0.5, 0.5, 0.5))
    assert intervals.share(parts, -wholes) is None  # a loss
    assert intervals.share(parts, [0.02, -0.01, 0.03, 0.0]) is None  # within noise
    assert intervals.share(parts[:1], wholes[:1]) is None


def test_table_pictures_and_shares_of_handmade_runs(tmp_path, capsys):
    sweep(
        tmp_path / "grid",
        {"vsam": [0.92, 0.93, 0.95], "sam": [0.94, 0.95, 0.96], "sgd": [0.90, 0.91, 0.92], "rst": [0.93]},
    )
    rows = summed(tmp_path / "grid", out=tmp_path / "out")
    assert list(rows) == ["SGD", "SAM", "RST", "vSAM"]
    sam, rst, vsam = rows["SAM"], rows["RST"], rows["vSAM"]
    assert sam["score_mean"] == pytest.approx(0.95) and sam["seeds"] == [0, 1, 2]
    assert sam["score_margin"] == pytest.approx(4.302652729911275 * 0.01 / 3**0.5)
    assert sam["step_time_vs_sgd"] == 1.5 and sam["gradients_per_step"] == 2
    assert sam["share_of_gain"] is None and rst["share_of_gain"] is None and rst["score_margin"] is None
    t = 4.302652729911275 * np.std([0.02, 0.02, 0.03], ddof=1) / 3**0.5 / 0.04
    assert vsam["share_of_gain"] == pytest.approx([7 / 12, 7 / 12 - t, 7 / 12 + t])  # SAM's gain is constant
    for name in ("score_by_seconds.png", "score_by_gradients.png"):
        assert (tmp_path / "out" / name).stat().st_size > 10_000
    text = (tmp_path / "out/summary.md").read_text()
    assert text.startswith("# digits, conv, 3 epochs\n\n| runs | test accuracy (%) |")
    assert "| RST | 93.0 | 1 | 2.00 | 1.50 |  |" in text and "| SAM | 95.0 ± 2.5 | 3 |" in text
    assert "vSAM" in capsys.readouterr().out


def test_labels_are_what_differs_and_the_best_sam_of_a_task_is_the_unit(tmp_path):
    for number, noise in enumerate((0.0, 0.2)):
        plain, shift = {"label_noise": noise}, -0.1 * number
        sweep(tmp_path / f"sgd{number}", {"sgd": [0.90 + shift, 0.91 + shift]}, **plain)
        for rho, gain in ((0.05, 0.02), (0.1, 0.04)):
            accuracies = {"sam": [0.90 + gain + shift, 0.91 + gain + shift]}
            sweep(tmp_path / f"{number}{rho}", accuracies, rho=rho, **plain)
    rows = summed(tmp_path, out=tmp_path / "out")
    names = ["SGD", "SAM, rho 0.05", "SAM, rho 0.1"]
    assert list(rows) == [f"{name}, label noise {noise}" for noise in (0.0, 0.2) for name in names]
    for noise in (0.0, 0.2):
        assert rows[f"SAM, rho 0.05, label noise {noise}"]["share_of_gain"] == pytest.approx([0.5] * 3)
        assert rows[f"SAM, rho 0.1, label noise {noise}"]["share_of_gain"] is None
    notes = json.loads((tmp_path / "out/summary.json").read_text())["notes"]
    assert "SAM, rho 0.1, label noise 0.2" in notes[-1] and "rho 0.05" not in notes[-1]


def test_learning_rates_and_decays_that_differ_between_methods_are_named(tmp_path):
    """Tuned ones are filled in, and may be those of one method alone."""
    numbers = {"learning_rate": 0.004, "weight_decay": 0.032}
    sweep(tmp_path / "base", {"sgd": [0.5, 0.6]}, **numbers)
    sweep(tmp_path / "others", {"sam": [0.9, 0.8], "rst": [0.9, 0.8]})
    assert list(summed(tmp_path, out=tmp_path / "out")) == [
        "SGD, learning rate 0.004, weight decay 0.032",
        "SAM, learning rate 0.1, weight decay 0.0005",
        "RST, learning rate 0.1, weight decay 0.0005",
    ]
    sweep(tmp_path / "other task", {"sgd": [0.5, 0.6]}, data="mnist1d", **numbers)
    assert "SAM, learning rate 0.1, weight decay 0.0005, data digits" in summed(tmp_path, out=tmp_path / "2")
    rows = summed(tmp_path / "others", tmp_path / "other task", out=tmp_path / "3")
    assert list(rows) == ["SAM, data digits", "RST, data digits", "SGD, data mnist1d"]


def test_what_is_left_out_is_named_in_one_line_each(tmp_path, capsys):
    sweep(tmp_path / "grid", {"sgd": [0.8] * 6})
    grid = tmp_path / "grid"
    (grid / "sgd-seed1/result.json").unlink()
    (grid / "sgd-seed2/result.json").write_text("{half")
    (grid / "sgd-seed3/metrics.jsonl").write_text('5\n[1]\n"x"\n')
    (grid / "sgd-seed4/config.json").write_text('{"settings": "those of another program"}')
    (grid / "sgd-seed5").rename(grid / "sgd-seed5-until-20250101-000000")
    write(tmp_path / "more", "sgd", 0, 0.7)
    rows = summed(grid, tmp_path / "more", out=tmp_path / "out")
    assert rows["SGD"]["seeds"] == [0] and rows["SGD"]["score_mean"] == 0.8
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 5 and all(line.startswith("left out: ") for line in lines)
    for line, name in zip(lines, ("seed1", "seed2", "seed3", "seed4", "more"), strict=True):
        assert name in line


def test_runs_of_other_data_are_other_groups_with_units_of_their_own(tmp_path, capsys):
    for number, digest in enumerate(("0a1b2c3d" * 8, "4e5f6071" * 8)):
        shift = -0.1 * number
        accuracies = {"sgd": [0.90, 0.91], "sam": [0.94, 0.95], "vsam": [0.92, 0.93]}
        accuracies = {name: [value + shift for value in values] for name, values in accuracies.items()}
        sweep(tmp_path / f"grid{number}", accuracies, digest=digest)
    rows = summed(tmp_path, out=tmp_path / "out")
    assert [row["seeds"] for row in rows.values()] == [[0, 1]] * 6  # the same settings are not the same run
    names = [
        f"{name}, data {digest}" for digest in ("0a1b2c3d", "4e5f6071") for name in ("SGD", "SAM", "vSAM")
    ]
    assert list(rows) == names and "4e5f6071" in capsys.readouterr().out
    for digest in ("0a1b2c3d", "4e5f6071"):
        assert rows[f"vSAM, data {digest}"]["share_of_gain"] == pytest.approx([0.5] * 3)
    # A run of an earlier version does not say what it was trained on.
    write(tmp_path / "old", "sgd", 2, 0.5)
    assert "SGD, data unknown" in summed(tmp_path, out=tmp_path / "out")


def test_data_are_named_where_the_settings_do_not_tell_them_apart(tmp_path):
    for seed, (noise, digest) in enumerate(((0.0, "a" * 64), (0.2, "b" * 64))):
        write(tmp_path / str(seed), "sgd", seed, 0.9, digest=digest, label_noise=noise)
    assert list(summed(tmp_path, out=tmp_path / "out")) == ["SGD, label noise 0.0", "SGD, label noise 0.2"]


def test_a_setting_that_is_missing_is_one_that_is_none(tmp_path, capsys):
    sweep(tmp_path / "grid", {"sgd": [0.8, 0.9]})
    file = tmp_path / "grid/sgd-seed0/config.json"
    config = json.loads(file.read_text())
    assert config["settings"].pop("labels") is None
    file.write_text(json.dumps(config))
    write(tmp_path / "more", "sgd", 0, 0.7)
    rows = summed(tmp_path / "grid", tmp_path / "more", out=tmp_path / "out")
    assert rows["SGD"]["seeds"] == [0, 1] and len(rows) == 1
    assert "more is the same run as" in capsys.readouterr().err


def test_nothing_to_sum_up_is_one_line(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for folder, part in (("empty", "holds no finished run"), ("none", "is no folder")):
        args = [str(tmp_path / folder), "--out", str(tmp_path / "out")]
        assert part in message_of(lambda: summarize.main(args), capsys)  # noqa: B023
    assert not (tmp_path / "out").exists()


def test_the_relative_rise_is_drawn_where_it_was_recorded(tmp_path):
    sweep(tmp_path / "grid", {"sam": [0.9, 0.92]})
    assert "SAM" in summed(tmp_path / "grid", out=tmp_path / "none")
    assert not (tmp_path / "none/relative_rise.png").exists()
    for number, file in enumerate(sorted((tmp_path / "grid").rglob("metrics.jsonl"))):
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        rises = (None, 0.2 + number, 0.5)  # the first step of an epoch may not be perturbed
        new = [json.dumps(line | {"relative_rise": rise}) for line, rise in zip(lines, rises, strict=True)]
        file.write_text("\n".join(new) + "\n")
    summed(tmp_path / "grid", out=tmp_path / "out")
    assert (tmp_path / "out/relative_rise.png").stat().st_size > 10_000
