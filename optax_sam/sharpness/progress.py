"""A bar for measurements that take long."""

import contextlib
from collections.abc import Iterator
from typing import Any, Protocol


class Steps(Protocol):
    """What a measurement tells its progress to."""

    def advance(self, count: int = 1) -> None:
        """So many passes over a batch more are done."""


class _Silent:
    def advance(self, count: int = 1) -> None:
        del count


class _Shown:
    def __init__(self, bar: Any, task: Any):
        self.bar, self.task = bar, task

    def advance(self, count: int = 1) -> None:
        self.bar.advance(self.task, count)


@contextlib.contextmanager
def shown(progress: bool, name: str, total: int | None) -> Iterator[Steps]:
    """A bar on the standard error stream while the block runs, or nothing.

    Args:
      progress: whether there is a bar.
      name: before the bar.
      total: passes over a batch, at most. None where that is not known.

    Raises:
      ImportError: a bar is asked for, and rich is not installed.
    """
    if not progress:
        yield _Silent()
        return
    try:
        from rich.console import Console
        from rich.progress import Progress
    except ImportError as error:
        raise ImportError(
            "progress=True draws its bar with rich: pip install rich, or leave it out."
        ) from error
    with Progress(console=Console(stderr=True), transient=True) as bar:
        yield _Shown(bar, bar.add_task(name, total=total))
