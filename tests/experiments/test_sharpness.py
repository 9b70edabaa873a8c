"""The sharpness that is recorded of a run."""

import dataclasses

import jax
import jax.flatten_util
import jax.numpy as jnp
import optax
import pytest
from flax import linen as nn

from experiments import data, train
from experiments import sharpness as side_by_side
from experiments.models.network import Linen
from experiments.running import programs
from experiments.running.inputs import make_inputs
from experiments.running.records import read_json, read_metrics
from experiments.running.sharpness import MEASURED, batches, top_eigenvalues
from experiments.running.standing import standing
from experiments.settings import Settings
from experiments.settings.defaults import resolved
from tests.experiments.runs import message_of


@pytest.mark.slow
def test_the_top_eigenvalue_equals_the_dense_hessian():
    class Tiny(nn.Module):
        @nn.compact
        def __call__(self, images, train):
            x = nn.Conv(2, (3, 3), strides=4)(images)
            x = nn.BatchNorm(use_running_average=not train)(x)
            return nn.Dense(3)(jnp.tanh(x).reshape(len(images), -1))

    settings = resolved(Settings(method="sgd", train_examples=60, batch_size=20))
    loaded = data.load(settings)
    label = loaded.train["label"] % 3
    loaded = loaded._replace(train=loaded.train | {"label": label})
    trainer = dataclasses.replace(programs.trainer_of(settings, loaded), network=Linen(Tiny()))
    examples = make_inputs(settings, loaded, trainer.task).examples
    images = trainer.task.prepare(loaded.train, examples.constants, None)["image"]
    variables = Tiny().init(jax.random.key(1), images, train=False)
    params, unravel = jax.flatten_util.ravel_pytree(variables["params"])

    def loss(flat):
        logits = Tiny().apply(variables | {"params": unravel(flat)}, images, train=False)
        return optax.losses.softmax_cross_entropy_with_integer_labels(logits, label).mean()

    expected = jnp.linalg.eigvalsh(jax.hessian(loss)(params))[-1]
    found = top_eigenvalues(trainer, variables["params"], variables["batch_stats"], examples)
    assert found.values[0] == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.slow
def test_runs_record_how_sharp_they_are_and_are_set_side_by_side(tmp_path, capsys):
    words = ["--train-examples", "100", "--batch-size", "50", "--epochs", "2", "--sharpness-every", "1"]
    for method in ("sgd", "sam"):
        train.main(["--method", method, *words, "--schedule", "constant", "--out", str(tmp_path / method)])
        for line in read_metrics(tmp_path / method / "metrics.jsonl"):
            assert all(isinstance(line[name], float) for name in MEASURED)
            assert 0 < line["critical_sharpness"] <= line["top_eigenvalue"] * 2
            assert line["directional_sharpness"] <= line["top_eigenvalue"] * 1.01
    capsys.readouterr()
    runs = [str(tmp_path / method) for method in ("sgd", "sam")]
    side_by_side.main([*runs, "--batches", "2", "--out", str(tmp_path / "both")])
    text = capsys.readouterr().out
    assert all(words in text for words in ("sgd", "sam", "batch sharpness", "2 / learning rate"))
    assert (tmp_path / "both/sharpness.png").stat().st_size > 10_000
    found = read_json(tmp_path / "both/sharpness.json")["runs"]
    assert found["sgd"]["parameters"] == found["sam"]["parameters"]
    assert found["sgd"]["trace"] != found["sam"]["trace"]
    assert found["sgd"]["2 / learning rate"] == "20" and "no 2 / learning rate" not in text
    # A cosine has ended at the last checkpoint of one run.
    cosine = ["--method", "sgd", *words[:-2], "--schedule", "cosine", "--out", str(tmp_path / "ended")]
    train.main(cosine)
    assert standing(tmp_path / "ended").learning_rate is None
    assert standing(tmp_path / "sgd").learning_rate == pytest.approx(0.1)
    capsys.readouterr()
    runs = [str(tmp_path / name) for name in ("ended", "sgd")]
    side_by_side.main([*runs, "--batches", "1", "--out", str(tmp_path / "three")])
    assert "no 2 / learning rate for ended" in capsys.readouterr().out
    found = read_json(tmp_path / "three/sharpness.json")["runs"]
    assert "2 / learning rate" not in found["ended"] and "2 / learning rate" in found["sgd"]


def test_batches_are_drawn_as_in_training():
    """Neighbours in a series are alike: a batch of them has another gradient."""
    settings = resolved(Settings(data="mnist1d", model="mlp", train_examples=200, method="sam"))
    read = data.load(settings)
    trainer = programs.compile_programs(settings, read).trainer
    examples = make_inputs(settings, read, trainer.task).examples
    parts = [part["series"] for part in batches(trainer, examples, 60)]
    assert [len(part) for part in parts] == [60, 60, 60, 20]
    drawn = jnp.concatenate(parts)
    assert sorted(map(tuple, drawn.tolist())) == sorted(map(tuple, read.train["series"].tolist()))
    places = [read.train["series"].tolist().index(row) for row in parts[0].tolist()]
    assert min(places) < 20 and max(places) >= 180
    again = [part["series"] for part in batches(trainer, examples, 60)]
    assert all(bool((x == y).all()) for x, y in zip(parts, again, strict=True))


def test_what_is_no_run_is_refused(tmp_path, capsys):
    line = message_of(lambda: side_by_side.main([str(tmp_path)]), capsys)
    assert "holds no config.json: give the folder of a run" in line
    line = message_of(lambda: side_by_side.main([str(tmp_path), "--batches", "0"]), capsys)
    assert "--batches 0 is out of range: give 1 or more" in line
    line = message_of(lambda: side_by_side.main([]), capsys)
    assert "give the folder of a run" in line


def test_runs_of_the_same_name_are_called_by_their_paths(tmp_path):
    assert side_by_side.names_of((tmp_path / "a", tmp_path / "b")) == ["a", "b"]
    same = (tmp_path / "a" / "x", tmp_path / "b" / "x")
    assert side_by_side.names_of(same) == [str(path) for path in same]
