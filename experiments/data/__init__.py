"""Data sets by their names on the command line."""

import dataclasses
from typing import Any, TypeVar

from experiments.data.arrays import Batch as Batch
from experiments.data.arrays import Data as Data
from experiments.data.arrays import fold as fold
from experiments.data.arrays import num_rows, rows, with_random_labels
from experiments.data.digits import LABEL_NOISE, digits
from experiments.data.images import images
from experiments.data.prepared import builder_of
from experiments.settings import Settings, SettingsError, Setup

S = TypeVar("S", bound=Setup)

# Sets that crop, flip and cutout do not suit: figures must not be mirrored, 8x8 digits not moved.
AUGMENT = {
    "digits": (),
    "mnist": ("crop",),
    "kmnist": ("crop",),
    "emnist": ("crop",),
    "svhn_cropped": ("crop", "cutout"),
    "fashion_mnist": ("crop", "flip"),
}


def with_defaults(settings: S) -> S:
    """Fills in what the data set decides: its random changes, its share of wrong labels."""
    augment: Any = settings.augment
    noise = settings.label_noise
    if augment is None:
        augment = AUGMENT.get(settings.data, ("crop", "flip", "cutout"))
    if noise is None:
        noise = LABEL_NOISE if settings.data == "digits" else 0.0
    return dataclasses.replace(settings, augment=augment, label_noise=noise)


def load(settings: Settings) -> Data:
    """Reads the data set once, cuts it to size and makes the asked share of labels random.

    Which examples and which labels does not depend on the run's seed: every method and every seed
    sees the same data.
    """
    data = _read(settings)
    available, wanted = num_rows(data.train), settings.train_examples
    if wanted is not None and wanted > available:
        raise SettingsError(
            f"--train-examples {wanted} is more than {settings.data} has: give {available} or less"
        )
    train = rows(data.train, slice(wanted))
    if settings.batch_size > num_rows(train):
        raise SettingsError(
            f"--batch-size {settings.batch_size} is more than the {num_rows(train)} training "
            "examples: give a smaller batch"
        )
    if settings.label_noise:
        train = with_random_labels(train, settings.label_noise, data.num_classes)
    return data._replace(train=train)


def _read(settings: Settings) -> Data:
    name = settings.data
    return digits() if name == "digits" else images(builder_of(name, settings.data_dir), name)
