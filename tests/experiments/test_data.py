"""Data, augmentation, and what the training step sees of them."""

import dataclasses
from pathlib import Path

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest

import optax_sam
from experiments import data
from experiments.data.arrays import in_batches
from experiments.running.programs import compile_programs
from experiments.settings import Settings
from experiments.settings.defaults import resolved
from experiments.settings.of_method import MethodSettings
from experiments.tasks.augment import AUGMENTATIONS, augment, mixup
from experiments.tasks.classification import Classification, cross_entropy
from tests.experiments.runs import run

# Data


def test_digits_have_500_noisy_training_examples_and_clean_test_examples():
    settings = data.with_defaults(Settings(method="sgd"))
    noisy = data.load(settings)
    clean = data.load(dataclasses.replace(settings, label_noise=0.0))
    assert noisy.train["image"].shape == (500, 8, 8, 1) and noisy.test["label"].shape == (1297,)
    wrong = (noisy.train["label"] != clean.train["label"]).sum()
    assert 80 <= wrong <= 100  # 100 random labels of ten classes, some of them right by chance
    np.testing.assert_array_equal(noisy.test["label"], clean.test["label"])


def test_validation_examples_are_training_examples_each_once():
    everything = data.load(data.with_defaults(Settings(method="sgd")))
    folds = [data.fold(everything, number, 5) for number in range(5)]
    assert all(len(part.train["label"]) == 400 for part in folds)
    held_out = sorted(image.tobytes() for part in folds for image in part.test["image"])
    assert held_out == sorted(image.tobytes() for image in everything.train["image"])
    for part in folds:
        trained = {image.tobytes() for image in part.train["image"]}
        assert not trained & {image.tobytes() for image in part.test["image"]}
        assert not trained & {image.tobytes() for image in everything.test["image"]}


@pytest.mark.parametrize(("name", "shape"), [("fashion_mnist", (28, 28, 1))])
def test_tfds_set_by_name(name, shape, tfds_dir):
    args = {"data": name, "data_dir": Path(tfds_dir), "train_examples": 1000}
    loaded = data.load(data.with_defaults(Settings(**args)))
    assert loaded.train["image"].shape == (1000, *shape) and loaded.train["image"].dtype == np.uint8
    assert loaded.test["image"].shape == (10000, *shape) and loaded.num_classes == 10
    assert set(loaded.train["label"]) == set(range(10)) and loaded.train["image"].std() > 10


@pytest.mark.parametrize(
    ("name", "classes"), [("cifar10", 10), pytest.param("cifar100", 100, marks=pytest.mark.slow)]
)
def test_mocked_tfds_set_is_trained_on(name, classes, tmp_path, monkeypatch):
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
        source = type(real(name).as_data_source("train"))
        blocks = lambda self, numbers: [self[number] for number in numbers]  # noqa: E731
        monkeypatch.setattr(source, "__getitems__", blocks)
        args = ["--data", name, "--method", "sgd", "--epochs", "1", "--batch-size", "10"]
        result = run(tmp_path / "x", *args)
    assert result["steps"] == 3 and result["num_params"] == 14_416 + 33 * classes


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
    settings = resolved(Settings(method="ausam", train_examples=60, batch_size=20, label_noise=0.0))
    loaded = data.load(settings)
    # Each image says its own number, so that indices can be checked against what is seen.
    image = np.broadcast_to(np.arange(60, dtype=np.uint8)[:, None, None, None], (60, 8, 8, 1))
    loaded = loaded._replace(train=loaded.train | {"image": image})
    seen, original = [], optax_sam.SharpnessAware.value_and_grad

    def value_and_grad(self, losses, has_aux):
        def spy(params, batch, *, indices, **rest):
            jax.debug.callback(lambda *rows: seen.append(rows), indices, batch["image"][:, 0, 0, 0])
            call = original(self, losses, has_aux)
            return call(params, batch, indices=indices, **rest)

        return spy

    monkeypatch.setattr(optax_sam.SharpnessAware, "value_and_grad", value_and_grad)
    programs = compile_programs(settings, loaded)
    inputs = programs.inputs(settings, loaded)
    state = programs.init(inputs)
    for steps, scored in ((programs.first_steps, 60), (programs.steps, 90)):
        seen.clear()
        state = jax.block_until_ready(steps(state, inputs, np.int32(3)))
        jax.effects_barrier()
        indices, images = (np.concatenate([rows[part] for rows in seen]) for part in (0, 1))
        assert sorted(indices.tolist()) == list(range(60))
        constants = inputs.examples.constants
        images = images * constants["scale"].item() + constants["mean"].item()
        np.testing.assert_allclose(images, indices, atol=1e-3)
        scores = state.opt_state[0]
        counts = [leaf for leaf in jax.tree.leaves(scores) if leaf.shape == (60,)]
        assert any(leaf.sum() == scored for leaf in counts)


def test_batch_statistics_come_from_the_clean_pass():
    """With a learning rate of 0, perturbed passes leave no trace in them."""
    stats = {}
    for method, method_settings in (("sgd", {}), ("sam", {"rho": 5.0})):
        settings = Settings(
            method=method, learning_rate=0.0, method_settings=MethodSettings(**method_settings)
        )
        settings = resolved(dataclasses.replace(settings, train_examples=60, batch_size=20))
        loaded = data.load(settings)
        programs = compile_programs(settings, loaded)
        inputs = programs.inputs(settings, loaded)
        state = programs.steps(programs.init(inputs), inputs, np.int32(3))
        stats[method] = state.batch_stats
    for one, other in zip(*map(jax.tree.leaves, stats.values()), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-8)


def test_mixup_mixes_each_image_and_its_loss_with_the_one_before():
    batch = {"image": jax.random.normal(jax.random.key(0), (4, 3, 3, 1)), "label": jnp.array([0, 1, 2, 0])}
    mixed = mixup(jax.random.key(1), batch, 0.4)
    weight = float(mixed["weight"][0])
    images = np.asarray(batch["image"], float)
    expected = weight * images + (1 - weight) * images[[3, 0, 1, 2]]
    np.testing.assert_allclose(mixed["image"], expected, rtol=1e-5, atol=1e-6)
    logits = jax.random.normal(jax.random.key(2), (4, 3))
    log_p = np.asarray(logits, float) - np.log(np.exp(np.asarray(logits, float)).sum(1, keepdims=True))
    mine, others = -log_p[range(4), [0, 1, 2, 0]], -log_p[range(4), [0, 0, 1, 2]]
    losses = Classification(mixup=0.4).losses(logits, mixed)
    np.testing.assert_allclose(losses, weight * mine + (1 - weight) * others, rtol=1e-5)
    assert 0 < weight < 1 and weight != float(mixup(jax.random.key(2), batch, 0.4)["weight"][0])


def test_label_smoothing_spreads_a_share_over_all_labels():
    logits, labels = jax.random.normal(jax.random.key(0), (5, 3)), jnp.array([0, 1, 2, 0, 1])
    log_p = np.asarray(logits, float) - np.log(np.exp(np.asarray(logits, float)).sum(1, keepdims=True))
    expected = -(0.9 * log_p[range(5), labels] + 0.1 * log_p.mean(1))
    np.testing.assert_allclose(cross_entropy(logits, labels, 0.1), expected, rtol=1e-5)


@pytest.mark.parametrize("inputs", ["image", "series"])
def test_labels_are_smoothed_in_training_alone(inputs):
    task = Classification(label_smoothing=0.2, inputs=inputs)
    rows = {inputs: jnp.ones([5, 2, 2, 1]), "label": jnp.array([0, 1, 2, 0, 1])}
    constants = {"mean": jnp.zeros([1, 1, 1, 1]), "scale": jnp.ones([1, 1, 1, 1])}
    logits = jax.random.normal(jax.random.key(0), (5, 3))
    for key, smoothing in ((None, None), (jax.random.key(1), 0.2)):
        found = task.losses(logits, task.prepare(rows, constants, key))
        np.testing.assert_allclose(found, cross_entropy(logits, rows["label"], smoothing), rtol=1e-6)


def test_rows_that_fill_up_the_last_batch_are_not_real():
    batches = in_batches({"label": np.arange(5), "image": np.ones((5, 2))}, 3)
    assert batches["image"].shape == (2, 3, 2)
    np.testing.assert_array_equal(batches["label"][batches["real"]], range(5))
    np.testing.assert_array_equal(batches["real"], [[1, 1, 1], [1, 1, 0]])
