"""Checkpoints of a run, kept by Orbax; an unreadable one falls back to the one before."""

import functools
import json
import logging
import os
import re
import shutil
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import orbax.checkpoint as ocp

from experiments.running.devices import first_process, together
from experiments.running.records import disk_errors, sha256
from experiments.settings import DiskError, SettingsError

T = TypeVar("T")

KEPT = 2


class Checkpoint(NamedTuple):
    """Where a run stands at the end of an epoch.

    Attributes:
      epoch: epochs done.
      state: the state after them.
      lines: their lines in metrics.jsonl, which can be written again from here.
    """

    epoch: int
    state: Any
    lines: list[dict[str, Any]]


class Checkpoints:
    """The last two checkpoints of a run, named after the epochs that they end.

    Orbax writes while the training goes on, into a temporary folder, and renames it at the end: what is
    interrupted leaves no half checkpoint. A digest of the whole content stands beside it, since a bit
    that changed on the disk would otherwise go unnoticed. A checkpoint can be read on any number of
    devices.
    """

    def __init__(self, run: Path):
        """Opens `checkpoints` in a run's folder."""
        _quiet()
        self.path = (run / "checkpoints").absolute()
        options = ocp.CheckpointManagerOptions(max_to_keep=KEPT, enable_async_checkpointing=True)
        self.being_written = 0
        with disk_errors(run):
            self.manager = ocp.CheckpointManager(self.path, options=options)

    def save(self, checkpoint: Checkpoint) -> None:
        """Begins to write a checkpoint, after the one before is written."""
        self.finish()
        arguments = ocp.args.Composite(
            state=ocp.args.StandardSave(checkpoint.state),
            record=ocp.args.JsonSave({"sha256": _digest(checkpoint), "lines": checkpoint.lines}),
        )
        # By force, since Orbax passes over what it finds untimely without a word.
        self.being_written = checkpoint.epoch
        self._check(lambda: self.manager.save(checkpoint.epoch, args=arguments, force=True))

    def finish(self) -> None:
        """Waits until the last checkpoint is written.

        Raises:
          DiskError: it could not be.
        """
        self._check(self.manager.wait_until_finished)

    def _check(self, call: Callable[[], Any]) -> None:
        _, reason = _attempt(call)
        if reason:
            raise DiskError(
                f"--out {self.path.parent}: the checkpoint of epoch {self.being_written} cannot be written "
                f"({reason})"
            )

    def restore(self, fresh: Any) -> Checkpoint:
        """Reads the last good checkpoint.

        Args:
          fresh: the first state of the run, for structure, shapes and devices.

        Returns:
          The checkpoint; epoch 0 and `fresh` if there has not been any.

        Raises:
          SettingsError: there are checkpoints, and none can be read.
        """
        bad: dict[int, str] = {}
        for epoch in sorted(self.manager.all_steps(), reverse=True):
            checkpoint, reason = _attempt(functools.partial(self._read, epoch, fresh))
            if checkpoint:
                self._drop(bad, epoch)
                return checkpoint
            bad[epoch] = reason
        if bad:
            raise SettingsError(
                f"--out {self.path.parent}: no checkpoint can be read "
                f"({'; '.join(f'epoch {epoch}: {reason}' for epoch, reason in bad.items())}): "
                "restore the folder from a copy, or begin again with another --out"
            )
        return Checkpoint(0, fresh, [])

    def _read(self, epoch: int, fresh: Any) -> Checkpoint:
        arguments = ocp.args.Composite(
            state=ocp.args.StandardRestore(jax.tree.map(ocp.utils.to_shape_dtype_struct, fresh)),
            record=ocp.args.JsonRestore(),
        )
        read: Any = self.manager.restore(epoch, args=arguments)
        checkpoint = Checkpoint(epoch, read.state, read.record["lines"])
        if read.record["sha256"] != _digest(checkpoint):
            raise ValueError("the digest does not fit")
        return checkpoint

    def _drop(self, bad: dict[int, str], good: int) -> None:
        # Their epochs will be trained and saved once more.
        for epoch, reason in bad.items():
            if first_process():
                print(
                    f"checkpoint of epoch {epoch} is damaged ({reason}): back to epoch {good}",
                    file=sys.stderr,
                )
                with disk_errors(self.path.parent):
                    shutil.rmtree(self.path / str(epoch))
        together("damaged checkpoints are removed")
        self.manager.reload()


def _digest(checkpoint: Checkpoint) -> str:
    return sha256((checkpoint.epoch, checkpoint.state, json.dumps(checkpoint.lines)))


def _attempt(call: Callable[[], T]) -> tuple[T | None, str]:
    """Calls Orbax: the result and, after a failure, the reason in few words."""
    try:
        return call(), ""
    except Exception as error:  # the disk's errors come in the types of several libraries
        return None, _reason(error)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    code = re.search(r"os_error_code='(\d+)'", str(error))  # of TensorStore, after long paths
    if code:
        return os.strerror(int(code[1]))
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:150]


def _quiet() -> None:
    """Keeps Orbax's event loops and threads from telling of each failure once more, in many lines."""
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    if getattr(sys.unraisablehook, "func", None) is not _unraisable:
        sys.unraisablehook = functools.partial(_unraisable, sys.unraisablehook)


def _unraisable(others: Callable[[Any], Any], unraisable: Any) -> None:
    files = [frame.filename for frame in traceback.extract_tb(unraisable.exc_traceback)]
    if not any("asyncio" in file or "orbax" in file for file in files):
        others(unraisable)
