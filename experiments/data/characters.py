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
    text = stretches(numbers)
    end = round(len(text) * (1 - TEST_SHARE))
    return Data({"text": text[:end]}, {"text": text[end:]}, num_classes=len(characters))


def stretches(numbers: np.ndarray) -> np.ndarray:
    """Numbers of characters, cut: uint8 [n, 129]; what is left at the end is too short."""
    first = np.arange(0, len(numbers) - LENGTH, LENGTH)
    return numbers.astype(np.uint8)[first[:, None] + np.arange(LENGTH + 1)]


def as_numbered(sentences: list[str], folder: Path) -> np.ndarray:
    """Other text in the characters of the first one, a line for each sentence, cut in the same way.

    Characters that the first text does not have are left out.
    """
    known = np.unique(np.array([*(folder / FILE).read_text()]))
    given = np.array([*"\n".join(sentences)])
    given = given[np.isin(given, known)]
    return stretches(np.searchsorted(known, given))
