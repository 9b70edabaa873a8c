"""How much is drawn, and what is counted."""

import collections
from collections.abc import Callable
from typing import Any

import hypothesis

SHARDS = 8
"""The slow tests run in so many parts, each of which draws from few shapes, so that little is compiled."""

SETTINGS = hypothesis.settings(
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
    phases=[hypothesis.Phase.generate],  # a failing case prints whole, and is small
)


def fuzz(check: Callable[..., list[str]], examples: int, seed: int, **drawn: Any) -> collections.Counter:
    """Calls `check` with so many draws, and counts what it says of them."""
    seen: collections.Counter = collections.Counter()

    @hypothesis.seed(seed)
    @hypothesis.settings(SETTINGS, max_examples=examples)
    @hypothesis.given(**drawn)
    def checked(**arguments):
        seen.update(check(**arguments))

    checked()
    return seen
