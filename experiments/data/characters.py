"""A plain text, character by character."""

from pathlib import Path

import numpy as np

from experiments.data.arrays import Data
from experiments.settings import SettingsError

FILE = "tinyshakespeare.txt"
LENGTH = 128
TEST_SHARE = 0.1


def tinyshakespeare(folder: Path | None) -> Data:
    """Stretches of 129 characters, each overlapping the next by one; the last tenth of them is the test part.

    Returns:
      `text` uint8 [n, 129]: numbers of characters, in the order of their codes.

    Raises:
      SettingsError: the file is not there.
    """
    if folder is None:
        raise SettingsError(
            f"--data tinyshakespeare is read from a file: give the folder of {FILE} as --data-dir"
        )
    try:
        text = (folder / FILE).read_text()
    except OSError as error:
        raise SettingsError(
            f"--data-dir {folder} has no readable {FILE} ({error.strerror}): give the folder that does"
        ) from error
    characters, numbers = np.unique(np.array([*text]), return_inverse=True)
    if len(characters) > 256 or len(text) <= 20 * LENGTH:
        raise SettingsError(
            f"{folder / FILE} has {len(text)} characters of {len(characters)} kinds: give a longer text of "
            "at most 256 kinds"
        )
    first = np.arange(0, len(numbers) - LENGTH, LENGTH)
    stretches = numbers.astype(np.uint8)[first[:, None] + np.arange(LENGTH + 1)]
    end = round(len(stretches) * (1 - TEST_SHARE))
    return Data({"text": stretches[:end]}, {"text": stretches[end:]}, num_classes=len(characters))
