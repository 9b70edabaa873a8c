"""Recipes of published experiments: their numbers, and how a command line starts from them."""

import dataclasses
import json
import re
import shlex

import pytest

from experiments import models, train, tuned
from experiments.methods import accepted
from experiments.recipes import RECIPES, __main__, recipe
from experiments.settings import Settings
from experiments.settings.command_line import defaults_in
from experiments.settings.defaults import resolved
from tests.experiments.runs import ROOT, message_of, metrics

PAGE = ROOT / "docs/experiments.md"

DEMOS = ("vsam-digits", "ausam-stick-figures", "tsam-trec")

VSAM = {"rho": 0.05, "window": 50, "slices": 5, "max_rate": 0.8, "rate_gain": (0.13, 0.13)}
VSAM |= {"reuse_decay": 0.7, "reuse_steps": 6, "warmup_steps": 1170, "tail": 10}
AUSAM = {"rho": 0.1, "fraction": 0.5, "score_range": (0.1, 0.5), "score": "loss_difference"}
CUTOUT, BASIC = ("crop", "flip", "cutout"), ("crop", "flip")

# As they stand in the authors' code: epochs, batch size, rate, decay, augmentation, the method's.
NUMBERS = {
    "vsam-cifar10-resnet18": (200, 128, 0.05, 1e-3, CUTOUT, VSAM),
    "vsam-cifar100-wrn28-10": (200, 128, 0.05, 1e-3, CUTOUT, VSAM),
    "ausam-cifar100-wrn28-10": (200, 256, 0.1, 1e-3, CUTOUT, AUSAM | {"ramp_steps": 5850}),
    "ausam-tiny-imagenet-resnet18": (200, 128, 0.1, 1e-3, CUTOUT, AUSAM | {"ramp_steps": 23430}),
    "rst-cifar10-resnet18": (200, 256, 0.1, 1e-3, BASIC, {"rho": 0.05, "probability": 0.5}),
    "grst-cifar100-wrn28-10": (200, 256, 0.1, 1e-3, BASIC, {"rho": 0.1, "probability": 0.5, "alpha": 0.8}),
    "pugd-cifar10": (10, 100, 0.1, 5e-4, BASIC, {"radius": 1.0}),
    "sam-cifar10-wrn28-10": (200, 256, 0.1, 5e-4, BASIC, {"rho": 0.05}),
    "asam-cifar10-wrn28-10": (200, 128, 0.1, 5e-4, BASIC, {"rho": 0.5, "eta": 0.0}),
}


# The numbers


@pytest.mark.parametrize("name", NUMBERS)
def test_recipe_has_the_authors_numbers(name):
    settings = recipe(name).settings
    epochs, batch_size, learning_rate, weight_decay, augment, of_the_method = NUMBERS[name]
    assert (settings.epochs, settings.batch_size) == (epochs, batch_size)
    assert (settings.learning_rate, settings.weight_decay) == (learning_rate, weight_decay)
    assert (settings.augment, settings.schedule, settings.momentum) == (augment, "cosine", 0.9)
    given = {key: value for key, value in vars(settings.method_settings).items() if value is not None}
    assert given == of_the_method


@pytest.mark.parametrize("name", ["rst-cifar10-resnet18", "rst-cifar100-wrn28-10", "grst-cifar100-wrn28-10"])
def test_decay_of_rst_is_in_the_loss_and_its_gradients_are_clipped(name):
    settings = recipe(name).settings
    assert settings.decay_in_loss and settings.nesterov and settings.clip_norm == 5


@pytest.mark.parametrize(
    ("name", "classes"), [("vsam-cifar10-resnet18", 10), ("ausam-cifar100-wrn28-10", 100)]
)
def test_a_tenth_of_the_label_goes_to_the_other_classes(name, classes):
    smoothing = recipe(name).settings.label_smoothing  # over all classes, the label's own too
    assert smoothing * (classes - 1) / classes == pytest.approx(0.1, rel=1e-12)


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_is_sound_and_its_file_is_named_after_it(name, monkeypatch):
    monkeypatch.setattr(models, "check_installed", lambda: None)  # MiniLM's packages are an extra
    found = recipe(name)
    settings, words = found.settings, name.replace("-", "_")
    assert words.startswith(settings.method.replace("look_layersam", "looksam") + "_")
    assert settings.data.split("/")[-1].removesuffix("2012") in words
    assert str(settings.out) == f"runs/{name}" and ("lsq" in words) == (settings.quantize_bits == 4)
    assert found.paper.arxiv and found.source and found.differs
    resolved(settings)


@pytest.mark.parametrize("name", [name for name in RECIPES if name not in DEMOS])
def test_nothing_tuned_takes_the_place_of_a_papers_number(name, monkeypatch):
    monkeypatch.setattr(models, "check_installed", lambda: None)
    settings = recipe(name).settings
    tunable = {"learning_rate", "weight_decay"} | {"rho", "radius", "window"} & set(accepted(settings.method))
    best = {settings.method: dict.fromkeys(tunable, 0.77)}
    monkeypatch.setattr(tuned, "tuned", lambda settings: best)
    assert tuned.with_tuned(settings) == settings


# The command line


def test_words_after_the_recipe_override_it(tmp_path):
    args = ["--epochs", "2", "--train-examples", "60", "--batch-size", "20", "--reuse-decay", "0.5"]
    train.main(["recipe:vsam-digits", *args, "--out", str(tmp_path / "x")])
    result = json.loads((tmp_path / "x/result.json").read_text())
    config = json.loads((tmp_path / "x/config.json").read_text())["settings"]
    assert (result["method"], result["epochs"], result["steps"]) == ("vsam", 2, 6)
    assert config["reuse_decay"] == 0.5 and len(metrics(tmp_path / "x")) == 2


def test_another_method_keeps_the_set_up_and_none_of_the_methods_settings():
    settings, left = defaults_in(["recipe:vsam-cifar10-resnet18", "--method", "sgd", "--seed", "1"])
    vsam = recipe("vsam-cifar10-resnet18").settings
    assert settings == dataclasses.replace(vsam, method="sgd", method_settings=Settings().method_settings)
    assert left == ["--method", "sgd", "--seed", "1"]
    assert defaults_in(["--seed", "1"]) == (Settings(), ["--seed", "1"])


def test_help_after_a_recipe_shows_its_values(capsys):
    with pytest.raises(SystemExit) as exit:
        train.main(["recipe:rst-cifar100-wrn28-10", "--help"])
    assert exit.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for part in ("(default: cifar100)", "--no-nesterov", "--probability", "runs/rst-cifar100-wrn28-10"):
        assert part in text
    assert "--tilt" not in text


def test_unknown_recipe_is_one_line_with_the_names(capsys):
    line = message_of(lambda: train.main(["recipe:nonsense", "--epochs", "1"]), capsys)
    assert "recipe:nonsense" in line and all(name in line for name in RECIPES)


def test_table_has_every_recipe_and_its_paper(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    __main__.main()
    text = capsys.readouterr().out
    assert all(name in text for name in RECIPES) and "2403.08821" in text


COMMANDS = re.findall(r"^(python -m experiments.train .*?)(?: +#|$)", PAGE.read_text(), flags=re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_of_the_page_are_sound(command, monkeypatch):
    seen = []
    monkeypatch.setattr(models, "check_installed", lambda: None)  # MiniLM's packages are an extra
    monkeypatch.setattr(train, "train", lambda settings: seen.append(resolved(settings)))
    try:
        train.main(shlex.split(command)[3:])
    except SystemExit as exit:
        assert exit.code == 0 and "--help" in command
    else:
        assert len(seen) == 1
