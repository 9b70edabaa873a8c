"""Tuning: equal budgets, one file for each task, and what is taken from it."""

import dataclasses
import json

import numpy as np
import pytest

from experiments import methods, tune, tuned
from experiments.data import Data
from experiments.settings import Settings, SettingsError
from experiments.settings.defaults import resolved
from tests.experiments.runs import message_of


def test_every_method_is_tuned_with_the_same_budget_and_its_best_is_the_default():
    assert set(tune.GRIDS) == set(methods.METHODS)
    assert {len(points) for points in tune.GRIDS.values()} == {12}
    entries = json.loads((tuned.FOLDER / "digits.json").read_text())["methods"]
    assert 40 < len(entries) and set(entries) <= set(methods.METHODS)
    for name, entry in entries.items():
        filled = resolved(Settings(method=name))
        values = vars(filled) | vars(filled.method_settings)
        assert [set(point) - {"score_mean", "score_std"} for point in entry["grid"]] == [
            set(point) for point in tune.GRIDS[name]
        ]
        assert all(values[key] == value for key, value in entry["best"].items())


@pytest.mark.parametrize("name", methods.METHODS)
def test_every_point_of_a_grid_is_accepted(name):
    set_ups = ({}, {"data": "fashion_mnist"}, {"data": "fashion_mnist", "optimizer": "adamw"})
    for settings in (tune.TuneSettings(**set_up) for set_up in set_ups):
        if name in methods.WHOLE_OPTIMIZERS and settings.optimizer != "sgd":
            continue
        points = tune.points_of(name, settings)
        assert len(points) == 12
        for point in points:
            methods.check(tune.with_point(settings, name, point, seed=0))


def test_fewer_points_are_spread_over_the_grid_and_sgds_lie_around_a_given_rate():
    points = tune.points_of("sam", Settings(), 4)
    assert [point["rho"] for point in points] == [tune.RADII[number] for number in (0, 4, 7, 11)]
    decays = {point["weight_decay"] for point in tune.points_of("sgd", Settings(), 4)}
    assert len(decays) == 3  # of both settings, not of the first alone
    rates = {
        point["learning_rate"] for point in tune.points_of("sgd", Settings(data="trec", learning_rate=0.4))
    }
    assert rates == {0.1, 0.2, 0.4, 0.8}
    adaptive = tune.points_of("sgd", Settings(data="trec", optimizer="adamw"))
    assert max(point["learning_rate"] for point in adaptive) == 0.004


def test_every_task_has_a_file_of_its_own():
    assert (
        tuned.file_of(Settings()) == tuned.file_of(Settings(label_noise=0.2)) == tuned.FOLDER / "digits.json"
    )
    other = Settings(data="glue/sst2", optimizer="adamw", train_examples=500, label_noise=0.3)
    assert tuned.file_of(other).name == "glue_sst2-adamw-train_examples_500-label_noise_0.3.json"
    changed = Settings(data="cifar10", model="resnet8", augment=("crop", "flip"), quantize_bits=3)
    adapted = Settings(data="trec", model="minilm", adapter_rank=8)
    assert tuned.file_of(adapted).name == "trec-minilm-adapter_rank_8.json"
    assert tuned.file_of(changed).name == "cifar10-resnet8-quantize_bits_3-augment_crop_flip.json"


def test_radii_of_other_data_sets_are_one_wide_grid_where_they_are_lengths():
    points = {name: tune.points_of(name, Settings(data="cifar10")) for name in tune.GRIDS}
    assert {point["rho"] for point in points["sam"]} == {point["rho"] for point in points["vsam"]}
    assert points["sam"][0]["rho"] == 0.02 and points["sam"][-1]["rho"] == pytest.approx(1.7)
    assert {point["window"] for point in points["vsam"]} == {10}
    for name, step in (("asam", "rho"), ("pugd", "radius"), ("random_perturbation", "noise_scale")):
        for point, lower in zip(tune.points_of(name, Settings()), points[name], strict=True):
            assert lower == point | {step: pytest.approx(point[step] / 4, rel=0.06)}


def test_tuning_writes_the_best_point(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tuned, "FOLDER", tmp_path)
    monkeypatch.setattr(tune, "GRIDS", {"sgd": tune.grid(learning_rate=[0.0, 0.1])})
    flags = ["--folds", "2", "--parts", "1", "--points", "2", "--epochs", "3", "--weight-decay", "0.001"]
    tune.main(["--methods", "sgd", *flags])
    entry = json.loads((tmp_path / "digits.json").read_text())["methods"]["sgd"]
    assert entry["best"] == {
        "learning_rate": 0.1,
        "weight_decay": 0.001,
    }  # what is given for all belongs to it
    assert len(entry["grid"]) == 2 and entry["trials_per_point"] == 1
    assert "best" in capsys.readouterr().out


def test_tuning_needs_parts_with_a_batch_and_methods_that_fit(tmp_path, monkeypatch, tfds_dir, capsys):
    monkeypatch.setattr(tuned, "FOLDER", tmp_path)
    monkeypatch.setenv("TFDS_DATA_DIR", tfds_dir)
    for words, part in (
        (["--data", "fashion_mnist", "--stream", "True"], "--data fashion_mnist"),
        (["--batch-size", "300", "--folds", "2"], "--folds 2"),
        (["--methods", "sgd", "adasam", "--optimizer", "lamb"], "--optimizer lamb"),
    ):
        assert part in message_of(lambda: tune.main(words), capsys)  # noqa: B023
    assert not list(tmp_path.iterdir())
    assert [point["rho"] for point in tune.points_of("sam", Settings(), 5)] == [
        tune.RADII[number] for number in (0, 3, 6, 8, 11)
    ]


def test_a_series_is_tuned_on_its_own_validation_part():
    """Its windows overlap: a fold's future hours are targets of training windows too."""
    hours = np.arange(12.0)[:, None]
    data = Data({"x": hours[:8]}, {"x": hours[10:]}, num_classes=1, validation={"x": hours[8:10]})
    found = tune.trial_data(data, 0, tune.TuneSettings())
    assert found.train["x"].ravel().tolist() == [*range(8)] and found.test["x"].ravel().tolist() == [8, 9]
    with pytest.raises(SettingsError, match=r"--parts 2 has nothing to count, since --data etth1"):
        tune.check_parts(data, tune.TuneSettings(data="etth1", parts=2, batch_size=4))


@pytest.mark.parametrize(
    ("groups", "folds", "message"),
    [
        ([0, 1, 1, 1, 1, 1, 2, 3], 2, "--folds 2 leaves 2 training examples, fewer than --batch-size 4"),
        ([0, 0, 0, 1, 1, 1, 2, 2], 4, "--folds 4 leaves a part without examples"),
    ],
)
def test_every_part_has_a_batch_to_train_on_and_examples_to_judge_by(groups, folds, message):
    """Examples that show the same thing stay together, and make parts unequal."""
    row = {"x": np.arange(8.0)}
    data = Data(row, row, num_classes=1, groups=np.array(groups))
    with pytest.raises(SettingsError, match=message):
        tune.check_parts(data, tune.TuneSettings(folds=folds, batch_size=4))
    tune.check_parts(data._replace(groups=np.arange(8)), tune.TuneSettings(folds=folds, batch_size=4))


def test_the_part_that_judges_a_search_is_not_asked_for(capsys):
    message = message_of(lambda: tune.main(["--methods", "sam", "--evaluate-on", "validation"]), capsys)
    assert "--evaluate-on validation" in message and "leave it out" in message


def test_what_was_tuned_for_a_part_of_the_data_is_not_taken_for_the_whole():
    part = Settings(method="sam", data="fashion_mnist", train_examples=500, label_noise=0.2, augment=())
    assert resolved(part).method_settings.rho == 0.57
    assert resolved(dataclasses.replace(part, label_noise=None)).method_settings.rho is None
    assert resolved(Settings(method="sam", data="fashion_mnist")).method_settings.rho is None
    assert resolved(Settings(method="sam", train_examples=100)).method_settings.rho is None
    assert resolved(Settings(method="sam", label_noise=0.2)).method_settings.rho == 1.1  # as usual
    assert resolved(Settings(method="sam", model="vit_ti")).method_settings.rho is None


def test_adasam_is_tuned_without_a_decay_and_refused_with_one(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tuned, "FOLDER", tmp_path)
    monkeypatch.setattr(tune, "search", lambda method, data, settings: {"best": {}})
    monkeypatch.setattr(tune, "print_grid", lambda method, entry, score: None)
    tune.main(["--methods", "adasam"])
    assert "adasam" in json.loads((tmp_path / "digits.json").read_text())["methods"]
    refused = ["--methods", "adasam", "--weight-decay", "0.1"]
    assert "--weight-decay 0.1" in message_of(lambda: tune.main(refused), capsys)
