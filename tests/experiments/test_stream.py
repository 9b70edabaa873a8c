"""Data sets that are read while the network trains: order, shares, photographs, Tiny ImageNet."""

import contextlib
import gc
import io
import itertools
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments import data
from experiments.data import imagenet, stream, tiny_imagenet
from experiments.data.arrays import Stream
from experiments.data.feed import Feed
from experiments.data.prepared import builder_of
from experiments.data.stream import Reading
from experiments.running.checkpoints import Checkpoints
from experiments.settings import SettingsError
from tests.experiments import runs


def shaken(record, random):
    """Says its number, and what was drawn for it."""
    draw = 0 if random is None else random.integers(1, 1000)
    return {"image": np.array([record, draw]), "label": np.int32(record % 10)}


def shaken_image(record, random):
    draw = random.integers(1, 1000)
    return {"image": record["image"] + draw, "label": np.int32(record["label"])}


NUMBERS = Stream(range(23), shaken, num_examples=23, num_classes=10)


def training(count, first_step=0, seed=0, of=NUMBERS, size=6, **reading):
    batches = stream.training_batches(of, Reading(size, **reading), seed, first_step)
    with contextlib.closing(batches):
        return list(itertools.islice(batches, count))


def assert_same(some, others):
    for one, other in zip(some, others, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


def joined(shares):
    return [
        {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        for parts in zip(*shares, strict=True)
    ]


# Training


def test_every_epoch_is_shuffled_and_changed_anew():
    assert stream.num_steps(NUMBERS, 6) == 3  # five examples of each epoch are left out
    batches = training(6)
    epochs = [np.concatenate([batch["index"] for batch in part]) for part in (batches[:3], batches[3:])]
    for epoch in epochs:
        assert len(set(epoch)) == 18 and epoch.dtype == np.int32 and (np.diff(epoch) < 0).any()
    assert (epochs[0] != epochs[1]).any()
    for batch in batches:
        np.testing.assert_array_equal(batch["image"][:, 0], batch["index"])
        np.testing.assert_array_equal(batch["label"], batch["index"] % 10)
    draws = np.concatenate([batch["image"][:, 1] for batch in batches])
    assert len(set(draws)) > 30


def test_seeds_share_no_epoch():
    """Grain adds seed and epoch: unmixed, seed 1 would begin with the second epoch of seed 0."""
    epochs = [training(6), training(3, seed=1)]
    orders = {tuple(batch["index"]) for batch in itertools.chain(*epochs)}
    assert len(orders) == 9


def test_shares_of_processes_make_the_batch_of_one():
    shares = [training(5, process_index=index, process_count=3) for index in range(3)]
    assert all(len(batch["index"]) == 2 for share in shares for batch in share)
    assert_same(joined(shares), training(5))


def test_goes_on_within_an_epoch():
    everything = training(8)
    assert_same(training(4, first_step=4), everything[4:])
    shares = [training(4, first_step=4, process_index=index, process_count=2) for index in range(2)]
    assert_same(joined(shares), everything[4:])


def test_first_examples_only():
    few = training(2, of=NUMBERS._replace(num_examples=12))
    assert sorted(np.concatenate([batch["index"] for batch in few])) == list(range(12))


def test_label_noise_is_a_matter_of_the_example():
    noisy = Stream([0] * 1200, shaken, num_examples=1200, num_classes=10, label_noise=0.5)
    labels = {}
    for seed in range(2):
        batches = training(200, of=noisy, seed=seed)
        rows = [np.concatenate([batch[name] for batch in batches]) for name in ("index", "label")]
        labels[seed] = dict(zip(*rows, strict=True))
    assert labels[0] == labels[1]
    assert 0.4 < np.mean([label != 0 for label in labels[0].values()]) < 0.5  # a tenth of half is right
    assert set(labels[0].values()) == set(range(10))


def test_bad_sizes_are_refused_by_name():
    with pytest.raises(SettingsError, match="--batch-size 24 .* 23 training examples"):
        stream.training_batches(NUMBERS, Reading(24), seed=0)
    with pytest.raises(SettingsError, match="--batch-size 6 .* 4 processes: give a multiple of 4"):
        stream.training_batches(NUMBERS, Reading(6, process_count=4), seed=0)


# Evaluation


def test_evaluation_sees_each_example_once():
    steps = stream.num_evaluation_steps(NUMBERS, 6)
    shares = []
    for index in range(2):
        with contextlib.closing(stream.evaluation_batches(NUMBERS, Reading(6, index, 2))) as batches:
            shares.append(list(itertools.islice(batches, 2 * steps)))
    for part in (slice(steps), slice(steps, None)):
        batches = joined(shares)[part]
        index, real = (np.concatenate([batch[name] for batch in batches]) for name in ("index", "real"))
        assert len(index) == 24 and index[real].tolist() == list(range(23))
        assert not any(batch["image"][:, 1].any() for batch in batches)


def test_sample_is_spread_evenly():
    assert stream.sample(NUMBERS, 3)["index"].tolist() == [0, 11, 22]
    assert stream.sample(NUMBERS, 100)["image"].shape == (23, 2)


# Photographs


def photograph(width, height, mode="RGB", form="JPEG"):
    """Left to right brighter."""
    row = np.linspace(0, 255, width).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(np.tile(row, (height, 1))).convert(mode).save(file, form)
    return {"image": file.getvalue(), "label": 7}


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("random", [None, np.random.default_rng(0)])
def test_photographs_become_squares(mode, random):
    seen = imagenet.view(photograph(50, 30, mode), random)
    assert seen["image"].shape == (224, 224, 3) and seen["image"].dtype == np.uint8
    assert seen["label"] == 7 and seen["label"].dtype == np.int32


def test_middle_is_what_resizing_and_cutting_leave():
    image = imagenet.view(photograph(512, 256), None)["image"]
    expected = np.linspace(0, 255, 512)[512 // 2 - 112 : 512 // 2 + 112]
    np.testing.assert_allclose(image[100, :, 0], expected, atol=3)


def test_random_parts_have_the_areas_and_shapes_of_inception():
    random = np.random.default_rng(0)
    boxes = np.array([imagenet.random_part(500, 375, random) for _ in range(500)])
    assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] <= (500, 375)).all()
    width, height = (boxes[:, 2:] - boxes[:, :2]).T
    share, ratio = width * height / (500 * 375), width / height
    assert 0.075 < share.min() < 0.12 and 0.9 < share.max() <= 1
    assert 0.74 < ratio.min() < 0.78 and 1.28 < ratio.max() < 1.35
    assert imagenet.random_part(1000, 10, random) == imagenet.middle(1000, 10)


def test_imagenet_is_streamed_and_trained_on(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    monkeypatch.setattr(imagenet, "SIDE", 32)  # compiles sooner than 224
    photographs = [photograph(40 + number, 60) for number in range(4)]
    asked = []

    def source(self, split, decoders):
        asked.append((split, type(decoders["image"])))
        return photographs

    with tfds.testing.mock_data(as_data_source_fn=source):
        builder = tfds.builder("imagenet2012")
        names = ("train", "validation", "test")
        splits = [tfds.core.SplitInfo(name=name, shard_lengths=[4], num_bytes=0) for name in names]
        builder.info.set_splits(tfds.core.splits.SplitDict(splits))
        assert stream.is_large(builder.info)
        parts = stream.streams(builder)
        monkeypatch.setattr(data, "builder_of", lambda name, data_dir: builder)
        args = ["--data", "imagenet2012", "--method", "rst", "--epochs", "1", "--batch-size", "2"]
        args += ["--dtype", "bfloat16", "--mixup", "0.2", "--label-smoothing", "0.1"]
        assert runs.run(tmp_path / "x", *args)["steps"] == 2
    skipped = tfds.decode.SkipDecoding
    assert asked == 2 * [("train", skipped), ("validation", skipped)]  # the test part has no labels
    assert parts[0].num_classes == 1000
    with contextlib.closing(stream.training_batches(parts[0], Reading(4), seed=0)) as batches:
        batch = next(batches)
    assert batch["image"].shape == (4, 32, 32, 3) and sorted(batch["index"]) == [0, 1, 2, 3]


# Tiny ImageNet


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The set prepared from an archive as the official one, of seven images."""
    import tensorflow_datasets as tfds

    folder = tmp_path_factory.mktemp("tiny_imagenet")
    top, grey = "tiny-imagenet-200", photograph(64, 64, "L")["image"]
    with zipfile.ZipFile(folder / "archive", "w") as files:
        files.writestr(f"{top}/wnids.txt", "n2\nn1\n")
        files.writestr(f"{top}/train/n1/n1_boxes.txt", "n1_0.JPEG\t0\t10\t63\t58\n")
        for word, number in itertools.product(("n1", "n2"), range(3)):
            colour = photograph(64, 64)["image"]
            files.writestr(f"{top}/train/{word}/images/{word}_{number}.JPEG", grey if number else colour)
        files.writestr(f"{top}/val/images/val_0.JPEG", grey)
        files.writestr(f"{top}/val/val_annotations.txt", "val_0.JPEG\tn1\t0\t32\t44\t62\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tfds.download.DownloadManager, "download", lambda self, url: folder / "archive")
        tiny_imagenet.TinyImagenet(data_dir=folder).download_and_prepare(file_format="array_record")
    return builder_of("tiny_imagenet", folder)


def test_tiny_imagenet_is_prepared(tiny):
    assert not stream.is_large(tiny.info)  # of the size that TFDS tells, here of seven images
    train, test = stream.streams(tiny)
    assert sorted(record["label"] for record in train.records) == [0, 0, 0, 1, 1, 1]
    with contextlib.closing(stream.evaluation_batches(test, Reading(2))) as batches:
        batch = next(batches)
    assert batch["label"][0] == 1 and batch["real"].tolist() == [True, False]
    assert batch["image"].shape == (2, 64, 64, 3) and batch["image"].dtype == np.uint8
    grey = batch["image"][0]
    assert (grey == grey[..., :1]).all() and (grey[:, -1] > grey[:, 0] + 200).all()


@pytest.mark.slow
def test_tiny_imagenet_is_trained_on(tiny, tmp_path):
    args = ["--data", "tiny_imagenet", "--data-dir", str(tiny.data_dir).split("/tiny_imagenet/")[0]]
    result = runs.run(tmp_path / "x", *args, "--method", "sam", "--epochs", "2", "--batch-size", "3")
    assert result["steps"] == 4


# Workers


@pytest.mark.slow
def test_workers_change_nothing(tiny):
    """They open the files anew."""
    train, _ = stream.streams(tiny)
    some = training(4, of=train._replace(view=shaken_image), size=2, first_step=2, workers=2)
    assert_same(some, training(6, of=train._replace(view=shaken_image), size=2)[2:])
    assert type(some[0]["image"]) is np.ndarray  # not in memory shared with a worker


@pytest.mark.slow
def test_workers_do_not_outlive_a_killed_run():
    program = """if True:
        from experiments.data.arrays import Stream
        from experiments.data.stream import Reading, as_it_is, training_batches
        records = [{"image": [0], "label": 0}] * 8
        next(training_batches(Stream(records, as_it_is, 8, 1), Reading(2, workers=2), seed=0))
        print("reading", flush=True)
        input()
    """
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=root) as process:
        assert process.stdout.readline() == b"reading\n"
        process.kill()
        process.communicate(timeout=20)  # until the last of them has closed the output


# Training


@pytest.mark.slow
def test_interrupted_streamed_run_ends_with_the_numbers_of_a_whole_one(
    tfds_dir, tmp_path, monkeypatch, compiled_once
):
    args = ["--data", "fashion_mnist", "--data-dir", tfds_dir, "--stream", "True", "--method", "ausam"]
    args += ["--train-examples", "130", "--batch-size", "40", "--epochs", "3", "--label-noise", "0.3"]
    original = Checkpoints.save

    def few(builder):
        learnt, tested = stream.streams(builder)
        return learnt, tested._replace(num_examples=300)

    monkeypatch.setattr(data, "streams", few)
    runs.run(tmp_path / "whole", *args)

    def save(self, checkpoint):
        original(self, checkpoint)
        self.finish()
        raise InterruptedError

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", save)
        with pytest.raises(InterruptedError):
            runs.run(tmp_path / "x", *args)
    runs.run(tmp_path / "x", *args, "--resume")
    assert runs.outcome(tmp_path / "x") == runs.outcome(tmp_path / "whole")
    last = runs.metrics(tmp_path / "x")[-1]
    assert last["step"] == 9 and last["gradients"] == 6 + 6  # whole batches in the first epoch
    feeds = [each for each in gc.get_objects() if isinstance(each, Feed)]
    assert feeds and not any(feed.batches for feed in feeds)  # a grid would keep all their workers
