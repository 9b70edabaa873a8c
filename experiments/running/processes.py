"""Processes that share a work, and that end when the one that began them ends."""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
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
    others = [begin(work) for _ in range(count - 1)]
    mine = work(True)
    try:
        return [mine, *(other.recv() for other in others)]
    except EOFError as error:
        raise SettingsError(
            f"--processes {count}: one of them was killed, perhaps for its memory: give fewer. The same "
            "command continues"
        ) from error


def begin(work: Callable[[bool], T]) -> Connection:
    """Begins a process; what is returned will receive its result."""
    spawn = multiprocessing.get_context("spawn")
    receiver, sender = spawn.Pipe(duplex=False)
    spawn.Process(target=follow, args=(work, sender, sys.orig_argv)).start()
    sender.close()  # its other end is the process's, and is closed if that is killed
    return receiver


def follow(work: Callable[[bool], T], sender: Connection, command: list[str]) -> None:
    """What the other processes do; they end with the one that began them, however that ends."""
    sys.orig_argv = command  # which is recorded with each run
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the first says how to go on
    threading.Thread(target=end_with_parent, daemon=True).start()
    sender.send(work(False))


def end_with_parent() -> None:
    """Waits for the process that began this one."""
    parent = multiprocessing.parent_process()
    assert parent
    parent.join()
    os._exit(1)
