"""The files of a run: settings, one line per epoch, result; written whole or not at all."""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import shlex
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from filelock import lock_descriptor

from experiments.data.arrays import Data
from experiments.running.devices import first_process, together, whole
from experiments.running.events import add_events, begin_events
from experiments.settings import DiskError, InUseError, Settings, SettingsError, flag

# Settings that may change from a run to its resumption: they do not decide any number.
MAY_CHANGE = ("out", "resume", "data_dir", "checkpoint_every", "workers", "fsdp", "distributed", "profile")

# Where config.json keeps the digest of the data, which their names do not decide.
DIGEST = "data_sha256"


class RunFolder:
    """The folder of one run: config.json, metrics.jsonl, events and result.json; one process writes."""

    def __init__(self, settings: Settings):
        """Opens the folder of a run, a new one or, with `resume`, one begun before.

        Raises:
          SettingsError: the folder holds another run, or cannot be written.
        """
        self.path, self.settings = settings.out, settings
        if first_process():
            check_folder(settings)
            if not (self.path / "config.json").exists():
                with disk_errors(self.path):
                    self.path.mkdir(parents=True, exist_ok=True)
                _create(self.path / "config.json", {"settings": as_json(settings)} | environment())
        together("the folder is there")

    def keep_digest(self, digest: str) -> None:
        """Writes the digest of the data into config.json, if it has none yet.

        Raises:
          SettingsError: the run began with other data.
        """
        if first_process():
            check_digest(self.settings, digest)
            config = read_json(self.path / "config.json")
            if config.get(DIGEST) is None:
                write_json(self.path / "config.json", config | {DIGEST: digest})

    def write_metrics(self, lines: list[dict[str, Any]]) -> None:
        """Writes metrics.jsonl and the events anew; what else stood there is gone."""
        if not first_process():
            return
        with disk_errors(self.path):
            _replace(self.path / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
            begin_events(self.path / "events", lines)

    def append_metrics(self, line: dict[str, Any]) -> None:
        """Adds one line, on the disk before this returns."""
        if not first_process():
            return
        with disk_errors(self.path):
            with (self.path / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")
                file.flush()
                os.fsync(file.fileno())
            add_events(self.path / "events", line)

    def write_result(self, result: dict[str, Any]) -> None:
        """Writes result.json, the sign that the run is finished."""
        if first_process():
            write_json(self.path / "result.json", result)


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keeps other runs out of a run's folder; the lock ends with the process, however it ends.

    Raises:
      InUseError: another run is at work in the folder.
    """
    if not first_process():
        yield
        return
    with disk_errors(folder):
        (folder / "lock").touch()
        file = (folder / "lock").open()
    with file:
        try:
            free = lock_descriptor(file.fileno(), blocking=False)
        except OSError:
            free = True  # some network disks have no locks
        if not free:
            raise InUseError(
                f"--out {folder} is in use by another process: wait for it, or give another --out"
            )
        yield


def check_folder(settings: Settings) -> None:
    """Refuses a folder that holds another run, or one that is not to be resumed."""
    check_writable(settings.out)
    if (settings.out / "config.json").exists() and not settings.resume:
        raise SettingsError(
            f"--out {settings.out} already holds a run: give --resume to continue it, or another --out"
        )
    if (settings.out / "checkpoints").exists() and not (settings.out / "config.json").exists():
        raise SettingsError(
            f"--out {settings.out} holds checkpoints without the config.json of their run: restore that "
            "file, or give another --out"
        )
    for name, (now, before) in differences(settings).items():
        raise SettingsError(
            f"{flag(name)} {now} differs from {before}, with which the run in --out "
            f"{settings.out} began: give that value, or another --out"
        )


def check_writable(folder: Path) -> None:
    """Refuses a folder that cannot be written, before any work is done for it."""
    out = folder.absolute()
    nearest = next(path for path in (out, *out.parents) if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise SettingsError(
            f"--out {folder} cannot be written, since {nearest} is read-only or no folder: make it "
            "writable, or give another folder"
        )


def differences(settings: Settings) -> dict[str, tuple[Any, Any]]:
    """Settings that decide numbers and differ from those of the run in the folder: now, before."""
    file = settings.out / "config.json"
    if not file.exists():
        return {}
    before, now = read_json(file).get("settings", {}), as_json(settings)
    names = [name for name in now if name not in MAY_CHANGE and before.get(name) != now[name]]
    return {name: (now[name], before.get(name)) for name in names}


def digest_of(data: Data) -> str:
    """Digest of what a run trains on and is measured by: examples and labels; of a stream, a sample."""
    return sha256({"train": data.train, "test": data.test})


def known_digest(folder: Path) -> str | None:
    """Digest of the data that the run in a folder began with; None if it is not known, or there is no run."""
    file = folder / "config.json"
    return read_json(file).get(DIGEST) if file.exists() else None


def has_other_data(folder: Path, digest: str) -> bool:
    """Whether the run in a folder is known to have begun with other data."""
    return known_digest(folder) not in (None, digest)


def check_digest(settings: Settings, digest: str) -> None:
    """Refuses data that are not those of the run in the folder."""
    if has_other_data(settings.out, digest):
        raise SettingsError(
            f"{data_in(settings)} has other examples or labels than those with which the run in --out "
            f"{settings.out} began: restore them, or give another --out"
        )


def data_in(settings: Settings) -> str:
    """How the command line names the data."""
    labels = "" if settings.labels is None else f" --labels {settings.labels}"
    return f"--data {settings.data}{labels}"


def as_json(settings: Settings) -> dict[str, Any]:
    """All settings in one dictionary, as they come back from a JSON file."""
    fields = dataclasses.asdict(settings)
    method_settings = fields.pop("method_settings")
    return json.loads(json.dumps(fields | method_settings, default=str))


def environment() -> dict[str, Any]:
    """What else decides a run's numbers and times: versions, machine, source revision, command."""
    packages = ("jax", "jaxlib", "optax", "flax", "numpy")
    versions = {name: importlib.metadata.version(name) for name in packages}
    device = jax.devices()[0]
    return {
        "versions": versions | {"python": platform.python_version()},
        "device": f"{device.platform}: {device.device_kind}",
        "machine": {"system": platform.platform(), "cores": os.cpu_count()},
        "source_revision": source_revision(),
        "command": shlex.join(["python", *sys.orig_argv[1:]]),
    }


def source_revision() -> str:
    """The git revision of this source, with `+changes` where files differ from it."""
    git = ["git", "-C", str(Path(__file__).parent)]
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        revision = subprocess.check_output([*git, "rev-parse", "HEAD"], stderr=-3, text=True)
        changes = subprocess.check_output([*git, "status", "--porcelain", "-uno"], text=True)
        return revision.strip() + ("+changes" if changes else "")
    return "unknown"


def sha256(tree: Any) -> str:
    """Digest of a tree of arrays: names, shapes, types and every bit."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree.leaves_with_path(tree):
        array = whole(leaf) if isinstance(leaf, jax.Array) else np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.shape} {array.dtype}".encode())
        in_order = np.ascontiguousarray(array).reshape(-1)
        digest.update(in_order.view(np.uint8).data)  # tobytes would copy a whole data set
    return digest.hexdigest()


def finite(value: Any) -> Any:
    """Numbers that JSON cannot hold (a diverged loss) become null, in dictionaries and lists too."""
    if isinstance(value, dict):
        return {name: finite(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(file: Path) -> dict[str, Any]:
    """Reads a file that this module has written."""
    try:
        return dict(json.loads(file.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise SettingsError(f"{file} cannot be read ({error}): restore it, or give another --out") from error


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """The whole lines of a metrics.jsonl; none, if there is no such file."""
    texts = file.read_text(errors="replace").splitlines() if file.exists() else []
    return [line for line in map(_parsed, texts) if line]


def write_json(file: Path, content: dict[str, Any]) -> None:
    """Writes a file whole or not at all."""
    with disk_errors(file.parent):
        _replace(file, json.dumps(finite(content), indent=2) + "\n")


@contextlib.contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turns a full disk, a read-only folder and the like into one line for the user."""
    try:
        yield
    except OSError as error:
        raise DiskError(f"--out {folder} cannot be written ({error.strerror or error})") from error


def _create(file: Path, content: dict[str, Any]) -> None:
    """Writes a new file, unless another process has just done it: the run is that one's."""
    mine = file.with_name(f"{file.name}.{uuid.uuid4().hex}")
    with disk_errors(file.parent):
        write_json(mine, content)
        try:
            os.link(mine, file)
        except FileExistsError:
            pass
        except OSError:
            os.replace(mine, file)  # a disk without links
        mine.unlink(missing_ok=True)


def _replace(file: Path, text: str) -> None:
    new = file.with_name(file.name + ".new")
    with new.open("w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(new, file)


def _parsed(line: str) -> dict[str, Any] | None:
    with contextlib.suppress(ValueError, TypeError):
        return dict(json.loads(line))
    return None
