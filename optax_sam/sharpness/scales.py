"""Ranges and levels of what is drawn."""

from typing import Any

import numpy as np
from matplotlib import ticker

LARGE_RANGE = 30.0
"""From this ratio of the largest to the smallest value on, an axis is logarithmic."""


def extremes(values: np.ndarray) -> tuple[float, float]:
    """The smallest and the largest finite value. Above 0 they are at most a factor of a million apart."""
    finite = values[np.isfinite(values)]
    if not finite.size:  # a diverged run
        return 0.0, 0.0
    low, high = float(finite.min()), float(finite.max())
    return (max(low, 1e-6 * high) if low >= 0 else low), high


def is_large(low: float, high: float) -> bool:
    """Whether a range wants a logarithmic axis."""
    return low > 0 and high / low > LARGE_RANGE


def levels(low: float, high: float) -> np.ndarray:
    """About ten levels around the losses: 1, 2, 5, 10, ... where the range is large."""
    if not is_large(low, high):
        return np.asarray(ticker.MaxNLocator(10).tick_values(low, high))
    exponents = np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)) + 1)
    steps = [1, 2, 5] if len(exponents) <= 5 else [1]
    found = np.outer(10.0**exponents, steps).ravel()
    first, last = np.searchsorted(found, low, side="right") - 1, np.searchsorted(found, high)
    return found[first : last + 1]


def make_logarithmic(axes: Any) -> None:
    """A logarithmic y axis with plain numbers."""
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    axes.yaxis.set_minor_formatter(ticker.NullFormatter())
