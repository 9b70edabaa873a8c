"""Image sets as arrays in memory: scikit-learn's digits, and any TFDS set by its name."""

import dataclasses
import logging
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import sklearn.datasets

from experiments.settings import Settings, SettingsError

# The digits task: few examples and wrong labels, so that flat minima can show what they are worth.
DIGITS_TRAIN_EXAMPLES = 500
DIGITS_LABEL_NOISE = 0.2

# Sets that crop, flip and cutout do not suit: figures must not be mirrored, 8x8 digits not moved.
AUGMENT = {
    "digits": (),
    "mnist": ("crop",),
    "kmnist": ("crop",),
    "emnist": ("crop",),
    "svhn_cropped": ("crop", "cutout"),
    "fashion_mnist": ("crop", "flip"),
}


class Split(NamedTuple):
    """Examples side by side.

    Attributes:
      image: uint8 [n, height, width, channels], in NumPy or on the device.
      label: int32 [n].
    """

    image: Any
    label: Any


class Data(NamedTuple):
    """A data set in memory.

    Attributes:
      train: what is trained on, label noise included.
      test: what is only ever measured.
      num_classes: number of labels.
    """

    train: Split
    test: Split
    num_classes: int


def with_defaults(settings: Settings) -> Settings:
    """Fills in what the data set decides: its random changes, its share of wrong labels."""
    augment: Any = settings.augment
    noise = settings.label_noise
    if augment is None:
        augment = AUGMENT.get(settings.data, ("crop", "flip", "cutout"))
    if noise is None:
        noise = DIGITS_LABEL_NOISE if settings.data == "digits" else 0.0
    return dataclasses.replace(settings, augment=augment, label_noise=noise)


def load(settings: Settings) -> Data:
    """Reads the data set once, cuts it to size and makes the asked share of labels random.

    Which examples and which labels does not depend on the run's seed: every method and every seed
    sees the same data.
    """
    data = _digits() if settings.data == "digits" else _tfds(settings.data, settings.data_dir)
    available, wanted = len(data.train.label), settings.train_examples
    if wanted is not None and wanted > available:
        raise SettingsError(
            f"--train-examples {wanted} is more than {settings.data} has: give {available} or less"
        )
    train = Split(data.train.image[:wanted], data.train.label[:wanted])
    if settings.batch_size > len(train.label):
        raise SettingsError(
            f"--batch-size {settings.batch_size} is more than the {len(train.label)} training "
            "examples: give a smaller batch"
        )
    train = with_random_labels(train, settings.label_noise or 0.0, data.num_classes)
    return data._replace(train=train)


def with_random_labels(split: Split, share: float, num_classes: int) -> Split:
    """Gives a share of the examples a label drawn evenly from all (which may be the right one)."""
    random = np.random.default_rng(0)
    chosen = random.permutation(len(split.label))[: round(share * len(split.label))]
    label = split.label.copy()
    label[chosen] = random.integers(0, num_classes, len(chosen))
    return split._replace(label=label)


def fold(data: Data, number: int, folds: int) -> Data:
    """Cross-validation: part `number` of the training examples becomes the test part.

    The real test part is dropped, so that nothing tuned on the folds can have seen it. A rest that
    would make one part longer than another stays out: equal shapes need one compilation.
    """
    size = len(data.train.label) // folds * folds
    held_out = np.arange(size) % folds == number
    train = Split(*(array[:size][~held_out] for array in data.train))
    return data._replace(train=train, test=Split(*(array[:size][held_out] for array in data.train)))


def _digits() -> Data:
    digits: Any = sklearn.datasets.load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    images = digits.images[order, :, :, None].astype(np.uint8)
    everything = Split(images, digits.target[order].astype(np.int32))
    train = Split(*(array[:DIGITS_TRAIN_EXAMPLES] for array in everything))
    test = Split(*(array[DIGITS_TRAIN_EXAMPLES:] for array in everything))
    return Data(train, test, num_classes=10)


def _tfds(name: str, data_dir: Path | None) -> Data:
    import tensorflow_datasets as tfds  # here, because the digits do without it

    logging.getLogger("absl").setLevel(logging.ERROR)  # TFDS recommends OpenCV at every start
    try:
        tfds.builder_cls(name)
    except tfds.core.registered.DatasetNotFoundError:
        raise SettingsError(
            f"--data {name} is not known: give digits or a TFDS image set, such as cifar10"
        ) from None
    given = data_dir or os.environ.get("TFDS_DATA_DIR")
    if given:
        _check_prepared(name, Path(given), "--data-dir" if data_dir else "TFDS_DATA_DIR")
    builder = tfds.builder(name, data_dir=given)
    if not builder.is_prepared():
        _download(builder, name)
    return Data(
        train=_read(builder, "train", name),
        test=_read(builder, "test" if "test" in builder.info.splits else "validation", name),
        num_classes=builder.info.features["label"].num_classes,
    )


def _check_prepared(name: str, folder: Path, setting: str) -> None:
    # TFDS would start a download here, or complain about file formats.
    if not folder.is_dir():
        raise SettingsError(f"{setting} {folder} is not a folder: give the one that holds {name}")
    if not any((folder / name).glob("**/dataset_info.json")):
        names = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
        raise SettingsError(
            f"{setting} {folder} holds no prepared {name}, only {names}: give another folder, or "
            f"none to download {name}"
        )


def _download(builder: Any, name: str) -> None:
    try:
        builder.download_and_prepare(file_format="array_record")
    except Exception as error:  # anything from the network, the disk or a site's own format
        reason = " ".join(str(error).split())[:200]
        raise SettingsError(
            f"--data {name} cannot be downloaded ({reason}): prepare it elsewhere and give its "
            "folder as --data-dir"
        ) from error


def _read(builder: Any, split: str, name: str) -> Split:
    features = builder.info.features
    shape: Any = features["image"].shape if {"image", "label"} <= set(features) else (None,)
    if None in shape or split not in builder.info.splits:
        raise SettingsError(
            f"--data {name} is not a set of equally large images with labels, for training and "
            "test: give one that is, such as cifar10"
        )
    source = builder.as_data_source(split=split)
    images = np.empty((len(source), *shape), np.uint8)
    labels = np.empty(len(source), np.int32)
    for start in range(0, len(source), 1000):  # blocks are twice as fast as single records
        records = source.__getitems__(range(start, min(start + 1000, len(source))))
        images[start : start + 1000] = [record["image"] for record in records]
        labels[start : start + 1000] = [record["label"] for record in records]
    return Split(images, labels)
