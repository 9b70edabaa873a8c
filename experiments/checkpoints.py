"""Checkpoints of a run, kept by Orbax; an unreadable one falls back to the one before."""

import logging
import shutil
import sys
from pathlib import Path
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp

from experiments.records import sha256
from experiments.settings import SettingsError

State = TypeVar("State")

KEPT = 2


class Checkpoints:
    """The last two checkpoints of a run, named after the epochs that they end.

    Orbax writes into a temporary folder and renames it at the end: what is interrupted leaves no
    half checkpoint. A digest of the whole state stands beside it, since a bit that changed on the
    disk would otherwise go unnoticed.
    """

    def __init__(self, run: Path):
        """Opens `checkpoints` in a run's folder."""
        # Orbax logs each damaged file before it raises; the user gets one line instead.
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        self.path = (run / "checkpoints").absolute()
        options = ocp.CheckpointManagerOptions(max_to_keep=KEPT, enable_async_checkpointing=False)
        self.manager = ocp.CheckpointManager(self.path, options=options)

    def save(self, epoch: int, state: State) -> None:
        """Writes the state at the end of an epoch."""
        arguments = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            digest=ocp.args.JsonSave({"sha256": sha256(state)}),
        )
        try:
            self.manager.save(epoch, args=arguments)
        except Exception as error:  # the disk's errors come in the types of several libraries
            raise SettingsError(
                f"--out {self.path.parent}: the checkpoint of epoch {epoch} cannot be written "
                f"({_first_line(error)}): make room there, then go on with --resume"
            ) from error

    def restore(self, fresh: State) -> tuple[int, State]:
        """Reads the last good checkpoint.

        Args:
          fresh: the first state of the run, for structure, shapes and devices.

        Returns:
          The epochs done and the state after them; 0 and `fresh` without any checkpoint.

        Raises:
          SettingsError: there are checkpoints, and none can be read.
        """
        bad: dict[int, str] = {}
        for epoch in sorted(self.manager.all_steps(), reverse=True):
            try:
                state = self._read(epoch, fresh)
            except Exception as error:  # damage shows in the types of several libraries
                bad[epoch] = _first_line(error)
                continue
            self._drop(bad, epoch)
            return epoch, state
        if bad:
            raise SettingsError(
                f"--out {self.path.parent}: no checkpoint can be read "
                f"({'; '.join(f'epoch {epoch}: {reason}' for epoch, reason in bad.items())}): "
                "restore the folder from a copy, or begin again with another --out"
            )
        return 0, fresh

    def _read(self, epoch: int, fresh: State) -> State:
        arguments = ocp.args.Composite(
            state=ocp.args.StandardRestore(jax.eval_shape(lambda: fresh)),
            digest=ocp.args.JsonRestore(),
        )
        read: Any = self.manager.restore(epoch, args=arguments)
        if read.digest["sha256"] != sha256(read.state):
            raise ValueError("the digest does not fit the state")
        return read.state

    def _drop(self, bad: dict[int, str], good: int) -> None:
        # Their epochs will be trained and saved once more.
        for epoch, reason in bad.items():
            print(
                f"checkpoint of epoch {epoch} is damaged ({reason}): back to epoch {good}",
                file=sys.stderr,
            )
            shutil.rmtree(self.path / str(epoch))
        self.manager.reload()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
