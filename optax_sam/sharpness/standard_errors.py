"""Means over samples or over parts of the data, and how sure they are."""

from collections.abc import Sequence

import numpy as np


def standard_error(values: Sequence[float], weights: Sequence[float] | None = None) -> float:
    """Of the weighted mean of independent values, or NaN with fewer than two."""
    if len(values) < 2:
        return float("nan")
    shares = np.full(len(values), 1.0) if weights is None else np.asarray(weights, float)
    shares = shares / shares.sum()
    deviations = np.asarray(values, float) - np.sum(shares * np.asarray(values, float))
    bias = 1 - np.sum(shares**2)
    return float(np.sqrt(np.sum(shares * deviations**2) / bias * np.sum(shares**2)))
