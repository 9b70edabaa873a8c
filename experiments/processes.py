"""Processes that share a work, and that end when the one that began them ends."""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from experiments.settings import SettingsError

T = TypeVar("T")


def in_processes(work: Callable[[bool], T], count: int) -> list[T]:
    """Does the same work in this and in other processes, which find out from the disk what is left.

    Args:
      work: called with whether it may show what it does: this process may.
      count: processes, this one among them.

    Returns:
      What each has returned.

    Raises:
      SettingsError: one was killed.
    """
    if count == 1:
        return [work(True)]
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(count - 1, spawn, follow, (sys.orig_argv,)) as pool:
        others = [pool.submit(work, False) for _ in range(count - 1)]
        mine = work(True)
        try:
            return [mine, *(each.result() for each in others)]
        except BrokenProcessPool as error:
            raise SettingsError(
                f"--processes {count}: one of them was killed, perhaps for its memory: the same command "
                "goes on; give fewer processes"
            ) from error


def follow(command: list[str]) -> None:
    """Makes this process end with the one that began it, however that ends."""
    sys.orig_argv = command  # which is recorded with each run
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches both; the first says how to go on
    threading.Thread(target=end_with_parent, daemon=True).start()


def end_with_parent() -> None:
    """Waits for the process that began this one."""
    parent = multiprocessing.parent_process()
    assert parent
    parent.join()
    os._exit(1)
