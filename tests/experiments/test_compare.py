"""Curvature, the comparison with its table and picture, and tuning."""

import dataclasses
import json
import re

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from experiments import compare, data, methods, train, tune, tuned
from experiments.models.network import Linen
from experiments.reports import comparison, trajectories
from experiments.reports.ranking import draw_ranking
from experiments.running import programs, records
from experiments.running.inputs import make_inputs
from experiments.running.sharpness import top_eigenvalues
from experiments.settings import Settings
from tests.experiments.runs import message_of

# Sharpness


def test_the_top_eigenvalue_equals_the_dense_hessian():
    class Tiny(nn.Module):
        @nn.compact
        def __call__(self, images, train):
            x = nn.Conv(2, (3, 3), strides=4)(images)
            x = nn.BatchNorm(use_running_average=not train)(x)
            return nn.Dense(3)(jnp.tanh(x).reshape(len(images), -1))

    settings = train.resolved(Settings(method="sgd", train_examples=60, batch_size=20))
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


# Comparison and tuning


def test_comparison_writes_the_summary_and_the_picture_and_reuses_runs(tmp_path, capsys):
    args = ["--methods", "sgd", "rst", "--seeds", "2", "--epochs", "2", "--timing-rounds", "1"]
    args += ["--train-examples", "60", "--batch-size", "20", "--sharpness-every", "2", "--out", str(tmp_path)]
    compare.main(args)
    content = json.loads((tmp_path / "summary.json").read_text())
    keys = ["accuracy_mean", "accuracy_std", "gradients_per_step", "step_time_vs_sgd"]
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
    assert again["accuracy_mean"] == content["methods"]["rst"]["accuracy_mean"]


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
    settings = train.resolved(Settings(method="sgd", out=tmp_path / "sgd-seed0", resume=True))
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
            "accuracy_mean": 0.9 + 0.001 * number,
            "accuracy_std": 0.0015,
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
    assert comparison.as_cheap_as_sgd(rows) == cheap
    comparison.print_table(rows)
    printed = capsys.readouterr().out
    table, last = printed.split("in at most 1.1 times SGD's time: ")
    assert last.strip() == ", ".join(comparison.title(name) for name in reversed(cheap))
    places = [re.search(rf"│ {re.escape(comparison.title(name))} +│", table).start() for name in names]
    assert places == sorted(places, reverse=True)
    rows["sgd"]["accuracy_mean"] = 0.99  # all others far below
    draw_ranking(rows, "everything", tmp_path / "all.png")
    assert (tmp_path / "all.png").stat().st_size > 50_000


def test_labels_in_the_picture_never_overlap():
    heights = [90.0, 90.1, 90.2, 95.0, 90.15, 94.9]
    placed = comparison.spread_out(heights, (80.0, 96.0))
    assert np.diff(np.sort(placed)).min() >= 0.9 and placed.max() <= 96
    assert (np.argsort(placed) == np.argsort(heights)).all()


def test_every_method_is_tuned_with_the_same_budget_and_its_best_is_the_default():
    assert set(tune.GRIDS) == set(methods.METHODS)
    assert {len(points) for points in tune.GRIDS.values()} == {12}
    entries = json.loads((tuned.FOLDER / "digits.json").read_text())["methods"]
    assert set(entries) == set(methods.METHODS)
    for name, entry in entries.items():
        filled = train.resolved(Settings(method=name))
        values = vars(filled) | vars(filled.method_settings)
        assert [set(point) - {"accuracy_mean", "accuracy_std"} for point in entry["grid"]] == [
            set(point) for point in tune.GRIDS[name]
        ]
        assert all(values[key] == value for key, value in entry["best"].items())


@pytest.mark.parametrize("name", methods.METHODS)
def test_every_point_of_a_grid_is_accepted(name):
    set_ups = ({}, {"data": "fashion_mnist"}, {"data": "fashion_mnist", "optimizer": "adamw"})
    for settings in (tune.TuneSettings(**set_up) for set_up in set_ups):
        if name in methods.OPTIMIZERS and settings.optimizer != "sgd":
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
    assert tuned.file_of(changed).name == "cifar10-resnet8-quantize_bits_3-augment_crop_flip.json"


def test_radii_of_other_data_sets_are_one_wide_grid_where_they_are_lengths():
    points = {name: tune.points_of(name, Settings(data="cifar10")) for name in tune.GRIDS}
    assert {point["rho"] for point in points["sam"]} == {point["rho"] for point in points["vsam"]}
    assert points["sam"][0]["rho"] == 0.02 and points["sam"][-1]["rho"] == pytest.approx(1.7)
    assert {point["window"] for point in points["vsam"]} == {10}
    for name, step in (("asam", "rho"), ("pugd", "radius"), ("random_perturbation", "noise_scale")):
        for point, lower in zip(tune.points_of(name, Settings()), points[name], strict=True):
            assert lower == point | {step: pytest.approx(point[step] / 4, rel=0.06)}


@pytest.mark.parametrize("name", methods.METHODS)
def test_every_method_fits_into_the_training_loop(name):
    """Its step traces, and gives back a state of the same shapes; nothing is compiled."""
    settings = train.resolved(Settings(method=name, train_examples=60, batch_size=20))
    loaded = data.load(settings)
    trainer = programs.trainer_of(settings, loaded)
    inputs = make_inputs(settings, loaded, trainer.task)
    state = jax.eval_shape(trainer.init, inputs)
    whole = name in methods.WHOLE_FIRST_EPOCH
    batch = jax.tree.map(lambda array: array[:20], inputs.examples.train)
    indices = jax.ShapeDtypeStruct((20,), jnp.int32)
    after = jax.eval_shape(lambda *args: trainer.step(*args, whole), state, inputs, batch, indices)
    assert after == state


def test_groups_of_methods_stand_for_their_members():
    settings = compare.CompareSettings()
    assert compare.names(settings) == methods.DEMO
    everything = dataclasses.replace(settings, methods=("all",))
    assert set(compare.names(everything)) == set(methods.METHODS)
    runs = compare.all_runs(dataclasses.replace(settings, methods=("demo", "asam", "sam")))
    assert list(runs) == [*methods.DEMO, "asam"]


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


def test_what_was_tuned_for_a_part_of_the_data_is_not_taken_for_the_whole():
    part = Settings(method="sam", data="fashion_mnist", train_examples=500, label_noise=0.2, augment=())
    assert train.resolved(part).method_settings.rho == 0.57
    assert train.resolved(dataclasses.replace(part, label_noise=None)).method_settings.rho is None
    assert train.resolved(Settings(method="sam", data="fashion_mnist")).method_settings.rho is None
    assert train.resolved(Settings(method="sam", train_examples=100)).method_settings.rho is None
    assert train.resolved(Settings(method="sam", label_noise=0.2)).method_settings.rho == 1.1  # as usual
    assert train.resolved(Settings(method="sam", model="vit_ti")).method_settings.rho is None
