"""Labels of a data set that are kept in a file of their own, such as CIFAR-10N's (Wei et al., 2022)."""

import zipfile
from pathlib import Path

import numpy as np

from experiments.data.arrays import Batch, Data, num_rows
from experiments.settings import Settings, SettingsError


def with_labels(data: Data, settings: Settings) -> Batch:
    """The training part with the labels that `--labels FILE.npz:NAME` names.

    Raises:
      SettingsError: the file cannot be read, or has not that name, or not one label for each example.
    """
    assert settings.labels
    given = f"--labels {settings.labels}"
    file, colon, name = settings.labels.rpartition(":")
    if not colon:
        raise SettingsError(f"{given} names no array of the file: give FILE.npz:NAME")
    if not Path(file).is_file():
        raise SettingsError(f"{given}: {file} is no file: give FILE.npz:NAME")
    try:
        with np.load(file) as arrays:
            names = arrays.files
            label = arrays[name] if name in names else None
    except (OSError, ValueError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise SettingsError(f"{given}: {file} is no .npz file of labels ({error}): give one") from error
    if label is None:
        raise SettingsError(f"{given}: {file} has no {name}: give one of {', '.join(names)}")
    count = num_rows(data.train)
    fits = label.shape == (count,) and np.issubdtype(label.dtype, np.integer)
    if not fits or label.min() < 0 or label.max() >= data.num_classes:
        raise SettingsError(
            f"{given} has shape {label.shape} and type {label.dtype}: give {count} integers from 0 to "
            f"{data.num_classes - 1}, one for each training example of --data {settings.data}"
        )
    return data.train | {"label": label.astype(np.int32)}
