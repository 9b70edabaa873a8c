"""Metrics as TensorBoard shows them, beside metrics.jsonl and made from the same lines.

The file is opened for each epoch and closed again, so that an interruption tears at most its last record
and a failure of the disk is an error where it happens.
"""

import struct
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tensorboardX.proto import event_pb2
from tensorboardX.record_writer import masked_crc32c
from tensorboardX.summary import scalar

Event: Any = event_pb2.Event  # pyrefly: ignore[missing-attribute] (its code is made at run time)


def begin_events(folder: Path, lines: Sequence[dict[str, Any]]) -> None:
    """Writes an event file of these epochs, in place of what stands in the folder."""
    folder.mkdir(exist_ok=True)
    for old in folder.glob("events.out.tfevents.*"):
        old.unlink()
    first = Event(wall_time=time.time(), file_version="brain.Event:2")
    file = folder / f"events.out.tfevents.{time.time():.0f}.run"
    file.write_bytes(_record(first) + b"".join(_record(each) for line in lines for each in _events(line)))


def add_events(folder: Path, line: dict[str, Any]) -> None:
    """Adds the numbers of an epoch, at the step that ends it."""
    (file,) = folder.glob("events.out.tfevents.*")
    with file.open("ab") as stream:
        stream.write(b"".join(map(_record, _events(line))))


def _events(line: dict[str, Any]) -> list[Any]:
    numbers = {name: value for name, value in line.items() if isinstance(value, int | float)}
    step, now = numbers.pop("step"), time.time()
    return [Event(wall_time=now, step=step, summary=scalar(*number)) for number in numbers.items()]


def _record(event: Any) -> bytes:
    """Length, checksum, content, checksum: TensorFlow's record format."""
    content = event.SerializeToString()
    length = struct.pack("<Q", len(content))
    return b"".join(
        (length, struct.pack("<I", masked_crc32c(length)), content, struct.pack("<I", masked_crc32c(content)))
    )
