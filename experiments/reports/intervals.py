"""95 % intervals of means over seeds, and of shares."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

LEVEL = 0.95


def deviation(values: Any) -> Any:
    """The standard deviation over the first axis; 0 of a single row, NaN where a run has diverged."""
    with np.errstate(invalid="ignore"):
        return np.std(values, axis=0, ddof=min(1, len(values) - 1))


def margin(values: Any) -> Any:
    """Half the width of Student's interval of the mean over the first axis; None of a single row."""
    count = len(values)
    return None if count < 2 else critical(count) * deviation(values) / count**0.5


def share(parts: Sequence[float], wholes: Sequence[float]) -> tuple[float, float, float] | None:
    """The ratio of two means over the same seeds, and its interval: value, low, high.

    The interval is Fieller's for pairs: the ratios r for which the mean of `parts - r wholes` does not
    differ from 0 by Student's t. None where the mean of the wholes itself is not above 0 by that test,
    or there is but one seed: every ratio could then be. None too where a run has diverged.
    """
    count = len(wholes)
    if count < 2 or not np.isfinite([parts, wholes]).all():
        return None
    part, whole = np.mean(parts), np.mean(wholes)
    spread = critical(count) ** 2 * np.cov(parts, wholes) / count
    lead, middle, last = whole**2 - spread[1, 1], part * whole - spread[0, 1], part**2 - spread[0, 0]
    if lead <= 0 or whole <= 0:
        return None
    root = max(middle**2 - lead * last, 0.0) ** 0.5
    return float(part / whole), float((middle - root) / lead), float((middle + root) / lead)


def critical(count: int) -> float:
    """Student's t for a mean of so many values."""
    return float(stats.t.ppf(0.5 + LEVEL / 2, count - 1))
