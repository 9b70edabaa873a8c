"""Equally large images of a TFDS set, read into memory."""

from typing import Any

import numpy as np

from experiments.data.arrays import Batch, Data
from experiments.data.prepared import test_split
from experiments.settings import SettingsError


def images(builder: Any, name: str) -> Data:
    """All images of both parts: `image` uint8 [n, height, width, channels], `label` int32 [n]."""
    train, test = (_read(builder, split, name) for split in ("train", test_split(builder)))
    return Data(train, test, builder.info.features["label"].num_classes)


def _read(builder: Any, split: str, name: str) -> Batch:
    features = builder.info.features
    shape: Any = features["image"].shape if {"image", "label"} <= set(features) else (None,)
    if None in shape or split not in builder.info.splits:
        raise SettingsError(
            f"--data {name} is not a set of equally large images with labels, for training and "
            "test: give one that is, such as cifar10"
        )
    source = builder.as_data_source(split=split)
    image = np.empty((len(source), *shape), np.uint8)
    label = np.empty(len(source), np.int32)
    for start in range(0, len(source), 1000):  # blocks are twice as fast as single records
        records = source.__getitems__(range(start, min(start + 1000, len(source))))
        image[start : start + 1000] = [record["image"] for record in records]
        label[start : start + 1000] = [record["label"] for record in records]
    return {"image": image, "label": label}
