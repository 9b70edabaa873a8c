"""Many runs after each other: which make way, which are finished, which comes next."""

import contextlib
import dataclasses
import functools
import re
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.progress import Progress

from experiments.data import Data, load
from experiments.running import records
from experiments.running.programs import Programs, compile_programs, structure
from experiments.running.progress import progress_bar
from experiments.running.run import run
from experiments.running.side_by_side import compile_side_by_side, run_side_by_side
from experiments.settings import InUseError, Settings, SettingsError


def set_aside_if_different(settings: Settings, digest: str | None = None) -> None:
    """Renames the folder of a run with other settings or, where the digest of the data is given, other data.

    Raises:
      InUseError: a process is at work in it.
    """
    other_data = digest is not None and records.has_other_data(settings.out, digest)
    if other_data or records.differences(settings):
        with records.alone_in(settings.out):
            pass
        aside = f"{settings.out.name}-until-{time.strftime('%Y%m%d-%H%M%S')}"
        settings.out.rename(settings.out.with_name(aside))


def is_set_aside(folder: Path) -> bool:
    """Whether the folder of a run has been renamed so."""
    return bool(re.search(r"-until-\d{8}-\d{6}$", folder.name))


def finished(settings: Settings) -> dict[str, Any] | None:
    """The result of a run that is finished, its metrics.jsonl whole; else None."""
    file = settings.out / "result.json"
    result = records.read_json(file) if file.exists() else None
    whole = len(records.read_metrics(settings.out / "metrics.jsonl")) == settings.epochs
    return result if whole else None


@dataclasses.dataclass
class Shared:
    """Data and programs of the last run, for those after it that can share them.

    Attributes:
      count: runs that one program trains.
      structure: what the programs are for.
      data: what they train on.
      programs: compiled.
    """

    count: int = 1
    structure: Settings | None = None
    data: Data | None = None
    programs: Programs | None = None

    def fit(self, settings: Settings) -> tuple[Data, Programs]:
        """Those of a run: at hand, or read and compiled."""
        if structure(settings) != self.structure:
            self.structure = self.data = self.programs = None  # first, for the memory
            self.data = load(settings)
            self.programs = (
                compile_programs(settings, self.data)
                if self.count == 1
                else compile_side_by_side(settings, self.data, self.count)
            )
            self.structure = structure(settings)
        assert self.data and self.programs
        return self.data, self.programs


def trained(ready: Mapping[str, Settings], side_by_side: int = 1, shown: bool = True) -> dict[str, str]:
    """Trains all runs that are not finished and that no other process is at work in.

    Args:
      ready: resolved settings, by name.
      side_by_side: so many that differ in their numbers alone are trained in one program.
      shown: whether there is a progress bar.

    Returns:
      By name, why some have failed.
    """
    left, failed, shared = dict(ready), {}, Shared(count=side_by_side)
    with progress_bar(shown) as bar:
        task = bar.add_task("runs", total=len(ready))
        while left:
            first = next_run(left, shared.structure)
            alike = [first, *(name for name in left if structure(left[name]) == structure(left[first]))]
            names = list(dict.fromkeys(alike))[:side_by_side]
            chosen = {name: left.pop(name) for name in names}
            try:
                if side_by_side == 1:
                    train_one(first, chosen[first], shared, bar)
                else:
                    failed |= train_side_by_side(chosen, shared, bar)
            except InUseError:
                pass
            except Exception as error:  # the others go on
                failed |= dict.fromkeys(names, reason(error))
            bar.update(task, completed=len(ready) - len(left))
    return failed


def next_run(left: Mapping[str, Settings], at_hand: Settings | None) -> str:
    """A run whose program is at hand, else one of the program with the most runs that nobody has begun."""
    begun = {name: (settings.out / "config.json").exists() for name, settings in left.items()}
    programs = {name: structure(settings) for name, settings in left.items()}
    new = Counter(program for name, program in programs.items() if not begun[name])
    return min(left, key=lambda name: (programs[name] != at_hand, -new[programs[name]], begun[name]))


def train_one(name: str, settings: Settings, shared: Shared, bar: Progress) -> None:
    """Trains one run, if it is not finished.

    Raises:
      InUseError: another process is at work in its folder.
    """
    if finished(settings):
        return
    records.RunFolder(settings)  # for others to see, before the time that compilation takes
    with records.alone_in(settings.out):
        pass
    data, programs = shared.fit(settings)
    if finished(settings):  # by another process, in that time
        return
    task = bar.add_task(name, total=settings.epochs * programs.steps_per_epoch)
    try:
        run(settings, data, programs, functools.partial(bar.update, task))
    finally:
        bar.remove_task(task)


def train_side_by_side(runs: Mapping[str, Settings], shared: Shared, bar: Progress) -> dict[str, str]:
    """Trains those that are neither finished nor in the hands of another process, in one program.

    Returns:
      By name, why some are refused: they began with other data.
    """
    with contextlib.ExitStack() as held:
        folders: dict[str, records.RunFolder] = {}
        for name, settings in runs.items():
            if not finished(settings):
                folder = records.RunFolder(settings)
                with contextlib.suppress(InUseError):
                    held.enter_context(records.alone_in(settings.out))
                    folders[name] = folder
        if not folders:
            return {}
        first = next(iter(runs.values()))
        data, programs = shared.fit(first)
        refused = refused_for(records.digest_of(data), folders)
        mine = [name for name in folders if name not in refused]
        if not mine:
            return refused
        names = mine + [mine[-1]] * (shared.count - len(mine))  # the program is for so many
        task = bar.add_task(
            f"{first.method}, {len(mine)} runs", total=first.epochs * programs.steps_per_epoch
        )
        try:
            listener = functools.partial(bar.update, task)
            done = run_side_by_side([runs[name] for name in names], data, programs, listener)
        finally:
            bar.remove_task(task)
        for name, (result, lines, _) in zip(mine, done, strict=False):
            folders[name].write_metrics(lines)
            folders[name].write_result(result)
    return refused


def refused_for(digest: str, folders: Mapping[str, records.RunFolder]) -> dict[str, str]:
    """Those that began with other data, and what there is to say of it; the others keep the digest."""
    refused = {}
    for name, folder in folders.items():
        try:
            folder.keep_digest(digest)
        except SettingsError as error:
            refused[name] = str(error)
    return refused


def reason(error: Exception) -> str:
    """Why a run has failed, in one line."""
    if isinstance(error, SettingsError):
        return str(error)
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first}"[:200]
