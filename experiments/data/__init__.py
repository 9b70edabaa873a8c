"""Data sets by their names on the command line."""

import dataclasses
from typing import Any, TypeVar

from experiments.data.arrays import Batch as Batch
from experiments.data.arrays import Data as Data
from experiments.data.arrays import fold as fold
from experiments.data.arrays import on_validation, rows, with_random_labels
from experiments.data.characters import tinyshakespeare
from experiments.data.digits import LABEL_NOISE, digits
from experiments.data.ett import ett
from experiments.data.images import images
from experiments.data.kinds import kind_of
from experiments.data.labels import with_labels
from experiments.data.mnist1d import mnist1d
from experiments.data.mpii import mpii
from experiments.data.prepared import builder_of
from experiments.data.stick_figures import stick_figures
from experiments.data.stream import is_large, sample, streams
from experiments.data.text import shortened, texts
from experiments.settings import Settings, SettingsError, Setup, flag

S = TypeVar("S", bound=Setup)

# Sets that crop, flip and cutout do not suit: figures must not be mirrored, 8x8 digits not moved.
AUGMENT = {
    "digits": (),
    "mnist": ("crop",),
    "kmnist": ("crop",),
    "emnist": ("crop",),
    "svhn_cropped": ("crop", "cutout"),
    "fashion_mnist": ("crop", "flip"),
    "imagenet2012": ("flip",),  # its images are cropped as they are read
}

MODEL = {
    "image": "conv",
    "text": "text",
    "pose": "simcc",
    "series": "mlp",
    "forecast": "samformer",
    "characters": "decoder",
}
HORIZON = 96

# Examples of a stream that means, deviations and sharpness are taken of.
SAMPLE = 1000


def with_defaults(settings: S) -> S:
    """Fills in what the data set decides: the network, random changes, share of wrong labels."""
    augment: Any = settings.augment
    noise, kind = settings.label_noise, kind_of(settings.data)
    if augment is None:
        augment = AUGMENT.get(settings.data, ("crop", "flip", "cutout")) if kind == "image" else ()
    if noise is None:
        noise = LABEL_NOISE if settings.data == "digits" else 0.0
    model = settings.model or MODEL[kind]
    horizon = settings.horizon or (HORIZON if kind == "forecast" else None)
    return dataclasses.replace(settings, model=model, augment=augment, label_noise=noise, horizon=horizon)


def load(settings: Settings) -> Data:
    """Reads the data set once, cuts it to size and makes the asked share of labels random.

    Which examples and which labels does not depend on the run's seed: every method and every seed
    sees the same data. A large set is not read, but for a sample.
    """
    data = _read(settings)
    if settings.workers and not data.streams:
        raise SettingsError(
            f"--workers {settings.workers} has nothing to do, since --data {settings.data} is read at once: "
            "leave it out, or stream a set of images"
        )
    available, wanted = data.num_examples, settings.train_examples
    if wanted is not None and wanted > available:
        raise SettingsError(
            f"--train-examples {wanted} is more than {settings.data} has: give {available} or less"
        )
    used = min(available, wanted or available)
    if settings.batch_size > used:
        raise SettingsError(
            f"--batch-size {settings.batch_size} is more than the {used} training examples: give a "
            "smaller batch"
        )
    if data.streams:
        for name, usual in (("labels", None), ("evaluate_on", "test")):
            if getattr(settings, name) != usual:
                raise SettingsError(
                    f"{flag(name)} {getattr(settings, name)} is not for --data {settings.data}, which is "
                    "streamed: give --stream False, or leave it out"
                )
        train, test = data.streams
        train = train._replace(num_examples=used, label_noise=settings.label_noise or 0.0)
        return data._replace(train=sample(train, SAMPLE), streams=(train, test))
    train = data.train if settings.labels is None else with_labels(data, settings)
    train = rows(train, slice(used))
    if settings.model == "minilm":  # whose places do not depend on the length
        train = shortened(train)
    if settings.label_noise:
        train = with_random_labels(train, settings.label_noise, data.num_classes)
    groups = None if data.groups is None else data.groups[:used]
    data = data._replace(train=train, groups=groups)
    if settings.evaluate_on == "validation":
        data = on_validation(data)
        if settings.batch_size > data.num_examples:
            raise SettingsError(
                f"--batch-size {settings.batch_size} is more than the {data.num_examples} training examples "
                "that --evaluate-on validation leaves: give a smaller batch"
            )
    return data


def _read(settings: Settings) -> Data:
    name, kind = settings.data, kind_of(settings.data)
    folder, horizon = settings.data_dir, settings.horizon or HORIZON
    in_memory = {
        "digits": digits,
        "stick_figures": stick_figures,
        "mpii": lambda: mpii(folder),
        "mnist1d": mnist1d,
        "etth1": lambda: ett("etth1", horizon, folder),
        "etth2": lambda: ett("etth2", horizon, folder),
        "tinyshakespeare": lambda: tinyshakespeare(folder),
    }
    if settings.stream and (name in in_memory or kind != "image"):
        raise SettingsError(
            f"--stream True is not for --data {name}: leave it out, or give a TFDS set of images"
        )
    if settings.data_dir is not None and name in ("digits", "stick_figures", "mnist1d"):
        raise SettingsError(
            f"--data-dir {settings.data_dir} is not for --data {name}, which reads no files: leave it out"
        )
    if name in in_memory:
        return in_memory[name]()
    builder = builder_of(name, settings.data_dir)
    if kind == "text":
        return texts(builder, name, settings.model)
    if settings.stream or (settings.stream is None and is_large(builder.info)):
        train, test = streams(builder)
        return Data({}, {}, train.num_classes, (train, test))
    return images(builder, name)
