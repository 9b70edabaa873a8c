"""Temperatures and loads of electricity transformers (Zhou et al., 2021, arXiv:2012.07436), hour by hour."""

from pathlib import Path

import numpy as np

from experiments.data.arrays import Batch, Data
from experiments.settings import SettingsError

LOOK_BACK = 512
MONTH = 30 * 24
# Twelve months to train on, four to choose by, four to be judged by.
ENDS = 12 * MONTH, 16 * MONTH, 20 * MONTH


def ett(name: str, horizon: int, folder: Path | None) -> Data:
    """All windows of a series, one hour apart; the first of a later part look back into the part before.

    Each channel has mean 0 and deviation 1 in the training part.

    Returns:
      `past` float32 [n, 512, 7] and `future` float32 [n, horizon, 7].

    Raises:
      SettingsError: the file is not there, or has not the columns or the rows.
    """
    values = _read(name, folder)
    train, validation, test = ENDS
    mean, scale = values[:train].mean(0), values[:train].std(0)
    values = ((values - mean) / scale).astype(np.float32)
    parts = [
        windows(values[start:end], horizon)
        for start, end in ((0, train), (train - LOOK_BACK, validation), (validation - LOOK_BACK, test))
    ]
    return Data(parts[0], parts[2], num_classes=horizon, validation=parts[1])


def windows(values: np.ndarray, horizon: int) -> Batch:
    """Every stretch of past and future, from [hours, channels]."""
    cut = np.lib.stride_tricks.sliding_window_view(values, LOOK_BACK + horizon, axis=0).swapaxes(1, 2)
    return {"past": cut[:, :LOOK_BACK], "future": cut[:, LOOK_BACK:]}


def _read(name: str, folder: Path | None) -> np.ndarray:
    file = f"ETT{name[3:]}.csv"
    if folder is None:
        raise SettingsError(
            f"--data {name} is read from a file: give the folder that holds {file} as --data-dir"
        )
    try:
        values = np.loadtxt(folder / file, delimiter=",", skiprows=1, usecols=range(1, 8))
    except FileNotFoundError:
        raise SettingsError(f"--data-dir {folder} holds no {file}: give the folder that does") from None
    except (OSError, ValueError) as error:
        raise SettingsError(f"{folder / file} cannot be read ({error}): fetch the file again") from error
    if len(values) < ENDS[-1]:
        raise SettingsError(f"{folder / file} has {len(values)} rows, not {ENDS[-1]}: fetch the file again")
    return values
