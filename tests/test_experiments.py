"""The experiments: their files, their resumption, their messages, their numbers."""

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

import optax_sam
from experiments import checkpoints, compare, data, records, report, train, tune
from experiments.augment import AUGMENTATIONS, augment
from experiments.curvature import top_eigenvalue, training_curvature
from experiments.inputs import make_inputs
from experiments.settings import MethodSettings, Settings
from experiments.training import compile_programs

ROOT = Path(__file__).parents[1]
TINY = ["--train-examples", "60", "--batch-size", "20"]
METRICS = {"epoch", "step", "train_loss", "test_loss", "test_accuracy", "step_seconds", "gradients"}


@pytest.fixture(autouse=True)
def usual_promotion():
    """Optax's cosine schedule mixes int and float: as users have it, promotion is implicit."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture(scope="module", autouse=True)
def compilation_cache(tmp_path_factory):
    """The same small programs are compiled by many tests and their subprocesses."""
    settings = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    yield {name.upper(): str(value) for name, value in settings.items()}
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture
def tfds_dir(monkeypatch):
    """A folder with prepared TFDS data; the tests that need one are left out elsewhere."""
    given = os.environ.get("TFDS_DATA_DIR") or ROOT.parent / "shared/data/tensorflow_datasets"
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    if not (Path(given) / "fashion_mnist").is_dir():
        pytest.skip("no prepared TFDS data on this machine; the mocked test covers the plumbing")
    return str(given)


def run(out, *args):
    """Trains by the command line's main function; the content of result.json."""
    train.main(["--out", str(out), *args])
    return json.loads((out / "result.json").read_text())


def metrics(out):
    """The lines of metrics.jsonl without their times."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if "seconds" not in k} for line in lines]


def message_of(call, capsys):
    """The one line with which a call exits with code 2."""
    with pytest.raises(SystemExit) as exit:
        call()
    assert exit.value.code == 2
    printed = capsys.readouterr()
    lines = printed.err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    return lines[0]


# The command line


def test_command_line_writes_the_record_of_a_run(tmp_path, compilation_cache):
    command = [sys.executable, "-m", "experiments.train", "--method", "ausam", "--data", "digits"]
    command += ["--model", "conv", "--epochs", "2", "--batch-size", "50", "--rho", "0.2"]
    command += ["--seed", "0", "--out", str(tmp_path / "x")]
    environment = os.environ | compilation_cache
    done = subprocess.run(command, cwd=ROOT, env=environment, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert "test accuracy" in done.stdout
    lines = [json.loads(line) for line in (tmp_path / "x/metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2] and lines[-1]["step"] == 20
    assert all(set(line) >= METRICS for line in lines)
    result = json.loads((tmp_path / "x/result.json").read_text())
    assert {"test_accuracy", "params_sha256", "seconds", "compile_seconds"} <= set(result)
    # The first epoch takes whole batches, 2 gradients each; then half of each batch, 1 gradient.
    assert lines[0]["gradients"] == 20 and lines[1]["gradients"] == 30
    config = json.loads((tmp_path / "x/config.json").read_text())
    assert config["settings"]["rho"] == 0.2 and config["settings"]["label_noise"] == 0.2
    assert {"jax", "optax", "flax", "python"} <= set(config["versions"])
    assert {"device", "source_revision", "command"} <= set(config)


def test_help_explains_every_setting(capsys):
    with pytest.raises(SystemExit) as exit:
        train.main(["--help"])
    assert exit.value.code == 0
    text = capsys.readouterr().out
    names = [f.name for kind in (Settings, MethodSettings) for f in dataclasses.fields(kind)]
    for name in set(names) - {"knobs"}:
        assert "--" + name.replace("_", "-") in text


# Interruption


def test_killed_run_resumes_with_the_numbers_of_an_uninterrupted_one(tmp_path, compilation_cache):
    args = [*TINY, "--method", "rst", "--rho", "0.1", "--epochs", "25", "--augment", "flip"]
    whole = run(tmp_path / "whole", *args)
    killed = tmp_path / "killed"
    command = [sys.executable, "-m", "experiments.train", *args, "--out", str(killed)]
    process = subprocess.Popen(
        command, cwd=ROOT, env=os.environ | compilation_cache, stderr=subprocess.DEVNULL
    )
    epochs = random.randint(1, 10)
    while not (killed / "metrics.jsonl").exists() or len(metrics(killed)) < epochs:
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(random.uniform(0, 0.2))
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (killed / "result.json").exists()
    resumed = run(killed, *args, "--resume")
    assert resumed["params_sha256"] == whole["params_sha256"]
    assert metrics(killed) == metrics(tmp_path / "whole")


def test_resume_of_a_finished_run_changes_nothing(tmp_path):
    args = [*TINY, "--method", "sgd", "--epochs", "2"]
    first = run(tmp_path / "x", *args, "--resume")  # in an empty folder, just starts
    before = metrics(tmp_path / "x")
    again = run(tmp_path / "x", *args, "--resume")
    assert again["params_sha256"] == first["params_sha256"]
    assert metrics(tmp_path / "x") == before


def damage(folder):
    """Cuts every file of a checkpoint in half."""
    for file in folder.rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def test_damaged_checkpoint_falls_back_to_the_one_before(tmp_path, capsys):
    args = [*TINY, "--method", "sgd", "--epochs", "3"]
    whole = run(tmp_path / "x", *args)
    lines = metrics(tmp_path / "x")
    damage(tmp_path / "x/checkpoints/3")
    (tmp_path / "x/checkpoints/4.orbax-checkpoint-tmp-7").mkdir()
    resumed = run(tmp_path / "x", *args, "--resume")
    assert "checkpoint of epoch 3 is damaged" in capsys.readouterr().err
    assert resumed["params_sha256"] == whole["params_sha256"]
    assert metrics(tmp_path / "x") == lines


def test_without_a_good_checkpoint_one_line_and_nothing_deleted(tmp_path, capsys):
    args = [*TINY, "--method", "sgd", "--epochs", "2"]
    run(tmp_path / "x", *args)
    for epoch in ("1", "2"):
        damage(tmp_path / "x/checkpoints" / epoch)
    before = {file: file.read_bytes() for file in (tmp_path / "x").rglob("*") if file.is_file()}
    capsys.readouterr()
    line = message_of(lambda: run(tmp_path / "x", *args, "--resume"), capsys)
    assert "no checkpoint can be read" in line and "epoch 2" in line
    after = {file: file.read_bytes() for file in (tmp_path / "x").rglob("*") if file.is_file()}
    assert after == before


def test_changed_bit_in_a_checkpoint_is_noticed(tmp_path):
    fresh, state = {"w": jnp.zeros(3)}, {"w": jnp.arange(3.0)}
    kept = checkpoints.Checkpoints(tmp_path)
    kept.save(1, state)
    other = checkpoints.Checkpoints(tmp_path / "other")
    other.save(1, {"w": jnp.arange(3.0) + 1})
    digest = (tmp_path / "other/checkpoints/1/digest/metadata").read_bytes()
    (tmp_path / "checkpoints/1/digest/metadata").write_bytes(digest)
    with pytest.raises(checkpoints.SettingsError, match="digest"):
        checkpoints.Checkpoints(tmp_path).restore(fresh)


# Messages

BAD_INPUT = [
    (["--method", "nonsense"], "--method nonsense"),
    (["--model", "nonsense"], "--model nonsense"),
    (["--data", "nonsense"], "--data nonsense"),
    (["--data", "cifar10", "--data-dir", "/nowhere"], "--data-dir /nowhere"),
    (["--data", "cifar10", "--data-dir", str(Path(__file__).parent)], "holds no prepared cifar10"),
    (["--rho", "-1"], "rho"),
    (["--rho", "nan"], "rho"),
    (["--method", "sgd", "--rho", "0.1"], "--rho 0.1"),
    (["--method", "rst", "--probability", "1.5"], "probability"),
    (["--method", "ausam", "--fraction", "0.001"], "--fraction 0.001"),
    (["--batch-size", "501"], "--batch-size 501"),
    (["--batch-size", "0"], "--batch-size 0"),
    (["--epochs", "0"], "--epochs 0"),
    (["--train-examples", "501"], "--train-examples 501"),
    (["--train-examples", "0"], "--train-examples 0"),
    (["--label-noise", "1.5"], "--label-noise 1.5"),
    (["--label-noise", "-0.1"], "--label-noise -0.1"),
    (["--learning-rate", "-1"], "--learning-rate -1"),
    (["--learning-rate", "inf"], "--learning-rate inf"),
    (["--weight-decay", "-1"], "--weight-decay -1"),
    (["--momentum", "1"], "--momentum 1"),
    (["--seed", "-1"], "--seed -1"),
    (["--checkpoint-every", "0"], "--checkpoint-every 0"),
]


@pytest.mark.parametrize(("args", "part"), BAD_INPUT, ids=lambda value: str(value)[:40])
def test_bad_input_is_one_line_and_writes_nothing(args, part, tmp_path, capsys):
    line = message_of(lambda: run(tmp_path / "x", *args), capsys)
    assert part in line
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("args", [["--epochs", "many"], ["--roh", "0.1"], ["--noise", "pink"]])
def test_what_the_parser_refuses_exits_with_2(args, tmp_path):
    with pytest.raises(SystemExit) as exit:
        run(tmp_path / "x", *args)
    assert exit.value.code == 2 and not (tmp_path / "x").exists()


def test_folder_of_another_run_is_refused(tmp_path, capsys):
    args = [*TINY, "--method", "sgd", "--epochs", "1"]
    run(tmp_path / "x", *args)
    capsys.readouterr()
    assert "--resume" in message_of(lambda: run(tmp_path / "x", *args), capsys)
    changed = [*args, "--resume", "--momentum", "0.5"]
    line = message_of(lambda: run(tmp_path / "x", *changed), capsys)
    assert "--momentum 0.5" in line and "0.9" in line


def test_folder_that_cannot_be_written_is_refused(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    line = message_of(lambda: run(tmp_path / "file/x"), capsys)
    assert "--out" in line and "give another folder" in line


def test_full_disk_is_one_line_and_the_run_can_go_on(tmp_path, capsys, monkeypatch):
    args = [*TINY, "--method", "sgd", "--epochs", "2"]
    whole = run(tmp_path / "whole", *args)
    capsys.readouterr()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.ocp.CheckpointManager, "save", full)
        line = message_of(lambda: run(tmp_path / "x", *args), capsys)
    assert "--out" in line and "No space left on device" in line and "--resume" in line
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        line = message_of(lambda: run(tmp_path / "x", *args, "--resume"), capsys)
    assert "--out" in line and "No space left on device" in line
    assert run(tmp_path / "x", *args, "--resume")["params_sha256"] == whole["params_sha256"]


# Data


def test_digits_have_500_noisy_training_examples_and_clean_test_examples():
    settings = data.with_defaults(Settings(method="sgd"))
    noisy = data.load(settings)
    clean = data.load(dataclasses.replace(settings, label_noise=0.0))
    assert noisy.train.image.shape == (500, 8, 8, 1) and noisy.test.label.shape == (1297,)
    wrong = (noisy.train.label != clean.train.label).sum()
    assert 80 <= wrong <= 100  # 100 random labels of ten classes, some of them right by chance
    np.testing.assert_array_equal(noisy.test.label, clean.test.label)


def test_validation_examples_are_training_examples_each_once():
    everything = data.load(data.with_defaults(Settings(method="sgd")))
    folds = [data.fold(everything, number, 5) for number in range(5)]
    assert all(len(part.train.label) == 400 for part in folds)
    held_out = sorted(image.tobytes() for part in folds for image in part.test.image)
    assert held_out == sorted(image.tobytes() for image in everything.train.image)
    for part in folds:
        trained = {image.tobytes() for image in part.train.image}
        assert not trained & {image.tobytes() for image in part.test.image}
        assert not trained & {image.tobytes() for image in everything.test.image}


@pytest.mark.parametrize(("name", "shape"), [("fashion_mnist", (28, 28, 1))])
def test_tfds_set_by_name(name, shape, tfds_dir):
    args = {"data": name, "data_dir": Path(tfds_dir), "train_examples": 1000}
    loaded = data.load(data.with_defaults(Settings(**args)))
    assert loaded.train.image.shape == (1000, *shape) and loaded.train.image.dtype == np.uint8
    assert loaded.test.image.shape == (10000, *shape) and loaded.num_classes == 10
    assert set(loaded.train.label) == set(range(10)) and loaded.train.image.std() > 10


def test_mocked_tfds_set_is_trained_on(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    real = tfds.builder

    def builder(name, data_dir=None):
        """The mock leaves splits empty, and knows single records only."""
        made = real(name, data_dir=data_dir)
        made.is_prepared = lambda: True
        split = {"shard_lengths": [30], "num_bytes": 0}
        splits = [tfds.core.SplitInfo(name=name, **split) for name in ("train", "test")]
        made.info.set_splits(tfds.core.splits.SplitDict(splits))
        return made

    monkeypatch.setattr(tfds, "builder", builder)
    with tfds.testing.mock_data(num_examples=30):
        source = type(real("cifar10").as_data_source("train"))
        blocks = lambda self, numbers: [self[number] for number in numbers]  # noqa: E731
        monkeypatch.setattr(source, "__getitems__", blocks)
        args = ["--data", "cifar10", "--method", "sgd", "--epochs", "1", "--batch-size", "10"]
        result = run(tmp_path / "x", *args)
    assert result["steps"] == 3


# Augmentation


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_augmentation_keeps_shapes_and_follows_the_key(name):
    images = jax.random.normal(jax.random.key(0), (16, 32, 32, 3))
    first, same, other = (augment(jax.random.key(n), images, [name]) for n in (1, 1, 2))
    assert first.shape == images.shape and first.dtype == images.dtype
    np.testing.assert_array_equal(first, same)
    assert (first != other).any()
    changed = (first != images).any((1, 2, 3))
    assert 2 <= changed.sum() and len(set(changed.tolist())) == (1 if name == "crop" else 2)


def test_flip_mirrors_and_cutout_zeroes_a_square():
    image = jnp.arange(1.0, 1 + 32 * 32).reshape(32, 32, 1)
    keys = jax.random.split(jax.random.key(0), 64)
    for key in keys:
        flipped = AUGMENTATIONS["flip"](key, image)
        assert (flipped == image).all() or (flipped == image[:, ::-1]).all()
    holes = [int((AUGMENTATIONS["cutout"](key, image) == 0).sum()) for key in keys]
    assert max(holes) == 16 * 16 and 0 in holes


# Training


def test_ausam_hears_which_examples_it_sees(monkeypatch):
    settings = train.resolved(Settings(method="ausam", train_examples=60, batch_size=20, label_noise=0.0))
    loaded = data.load(settings)
    # Each image says its own number, so that indices can be checked against what is seen.
    image = np.broadcast_to(np.arange(60, dtype=np.uint8)[:, None, None, None], (60, 8, 8, 1))
    loaded = loaded._replace(train=data.Split(image, loaded.train.label))
    seen, original = [], optax_sam.SharpnessAware.value_and_grad

    def value_and_grad(self, losses, has_aux):
        def spy(params, batch, *, indices, **rest):
            jax.debug.callback(lambda *rows: seen.append(rows), indices, batch["image"][:, 0, 0, 0])
            call = original(self, losses, has_aux)
            return call(params, batch, indices=indices, **rest)

        return spy

    monkeypatch.setattr(optax_sam.SharpnessAware, "value_and_grad", value_and_grad)
    programs, inputs = compile_programs(settings, loaded), make_inputs(settings, loaded)
    state = programs.init(inputs)
    for steps, scored in ((programs.first_steps, 60), (programs.steps, 90)):
        seen.clear()
        state = jax.block_until_ready(steps(state, inputs, np.int32(3)))
        jax.effects_barrier()
        indices, images = (np.concatenate([rows[part] for rows in seen]) for part in (0, 1))
        assert sorted(indices.tolist()) == list(range(60))
        images = images * inputs.examples.scale.item() + inputs.examples.mean.item()
        np.testing.assert_allclose(images, indices, atol=1e-3)
        scores = state.opt_state[0]
        counts = [leaf for leaf in jax.tree.leaves(scores) if leaf.shape == (60,)]
        assert any(leaf.sum() == scored for leaf in counts)


def test_batch_statistics_come_from_the_clean_pass():
    """With a learning rate of 0, perturbed passes leave no trace in them."""
    stats = {}
    for method, knobs in (("sgd", {}), ("sam", {"rho": 5.0})):
        settings = Settings(method=method, learning_rate=0.0, knobs=MethodSettings(**knobs))
        settings = train.resolved(dataclasses.replace(settings, train_examples=60, batch_size=20))
        loaded = data.load(settings)
        programs, inputs = compile_programs(settings, loaded), make_inputs(settings, loaded)
        state = programs.steps(programs.init(inputs), inputs, np.int32(3))
        stats[method] = state.batch_stats
    for one, other in zip(*map(jax.tree.leaves, stats.values()), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


# Curvature


def test_power_iteration_finds_the_largest_eigenvalue_even_below_a_larger_negative_one():
    matrix = jnp.diag(jnp.array([3.0, -7.0, 1.0, 2.0]))
    found = top_eigenvalue(lambda v: matrix @ v, jnp.ones(4), jax.random.key(0), tolerance=1e-6)
    assert found.value == pytest.approx(3.0, rel=1e-3)


def test_training_curvature_equals_the_dense_hessian():
    class Tiny(nn.Module):
        @nn.compact
        def __call__(self, images, train):
            x = nn.Conv(2, (3, 3), strides=4)(images)
            x = nn.BatchNorm(use_running_average=not train)(x)
            return nn.Dense(3)(jnp.tanh(x).reshape(len(images), -1))

    settings = train.resolved(Settings(method="sgd", train_examples=60, batch_size=20))
    loaded = data.load(settings)
    loaded = loaded._replace(train=data.Split(loaded.train.image, loaded.train.label % 3))
    examples = make_inputs(settings, loaded).examples
    images = examples.standardized(jnp.asarray(loaded.train.image))
    variables = Tiny().init(jax.random.key(1), images, train=False)
    params, unravel = jax.flatten_util.ravel_pytree(variables["params"])

    def loss(flat):
        logits = Tiny().apply(variables | {"params": unravel(flat)}, images, train=False)
        return optax.losses.softmax_cross_entropy_with_integer_labels(logits, loaded.train.label).mean()

    expected = jnp.linalg.eigvalsh(jax.hessian(loss)(params))[-1]
    found = training_curvature(Tiny(), variables["params"], variables["batch_stats"], examples)
    assert found.value == pytest.approx(float(expected), rel=1e-2)


# Comparison and tuning


def test_comparison_writes_the_summary_and_the_picture_and_reuses_runs(tmp_path, capsys):
    args = ["--methods", "sgd", "rst", "--seeds", "2", "--epochs", "2", "--timing-rounds", "1"]
    args += ["--train-examples", "60", "--batch-size", "20", "--out", str(tmp_path)]
    compare.main(args)
    content = json.loads((tmp_path / "summary.json").read_text())
    keys = ["accuracy_mean", "accuracy_std", "gradients_per_step", "step_time_vs_sgd"]
    keys += ["top_eigenvalue", "seeds"]
    assert list(content["methods"]) == ["sgd", "rst"]
    for row in content["methods"].values():
        assert list(row) == keys and row["seeds"] == 2
    assert content["methods"]["sgd"]["step_time_vs_sgd"] == 1.0
    assert (tmp_path / "comparison.png").stat().st_size > 10_000
    assert "RST" in capsys.readouterr().out
    results = {file: file.stat().st_mtime_ns for file in tmp_path.glob("*-seed*/result.json")}
    assert len(results) == 4
    (tmp_path / "rst-seed1/result.json").unlink()  # as if interrupted
    compare.main(args)
    for file, written in results.items():
        assert (file.stat().st_mtime_ns == written) == (file.parent.name != "rst-seed1")
    again = json.loads((tmp_path / "summary.json").read_text())["methods"]["rst"]
    assert again["accuracy_mean"] == content["methods"]["rst"]["accuracy_mean"]


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


def test_labels_in_the_picture_never_overlap():
    heights = [90.0, 90.1, 90.2, 95.0, 90.15, 94.9]
    placed = report.spread_out(heights, (80.0, 96.0))
    assert np.diff(np.sort(placed)).min() >= 0.9 and placed.max() <= 96
    assert (np.argsort(placed) == np.argsort(heights)).all()


def test_every_method_is_tuned_with_the_same_budget_and_its_best_is_the_default():
    assert set(tune.GRIDS) == set(compare.ALL)
    assert len({len(points) for points in tune.GRIDS.values()}) == 1
    for name in compare.ALL:
        filled = train.resolved(Settings(method=name))
        values = vars(filled) | vars(filled.knobs)
        entry = json.loads((tune.TUNED / "digits.json").read_text())["methods"][name]
        assert [set(point) - {"accuracy_mean", "accuracy_std"} for point in entry["grid"]] == [
            set(point) for point in tune.GRIDS[name]
        ]
        assert all(values[key] == value for key, value in entry["best"].items())


def test_tuning_writes_the_best_point(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tune, "TUNED", tmp_path)
    monkeypatch.setattr(tune, "GRIDS", {"sgd": tune.grid(learning_rate=[0.0, 0.1])})
    tune.main(["--methods", "sgd", "--folds", "2", "--epochs", "3"])
    entry = json.loads((tmp_path / "digits.json").read_text())["methods"]["sgd"]
    assert entry["best"] == {"learning_rate": 0.1} and len(entry["grid"]) == 2
    assert "best" in capsys.readouterr().out
