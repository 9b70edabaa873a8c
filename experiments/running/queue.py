"""Many runs after each other: which make way, which are finished, which comes next."""

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
from experiments.settings import InUseError, Settings, SettingsError


def set_aside_if_different(settings: Settings) -> None:
    """Renames the folder of a run with other settings.

    Raises:
      InUseError: a process is at work in it.
    """
    if records.differences(settings):
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
    """Data and programs of the last run, for those after it that can share them."""

    structure: Settings | None = None
    data: Data | None = None
    programs: Programs | None = None

    def fit(self, settings: Settings) -> tuple[Data, Programs]:
        """Those of a run: at hand, or read and compiled."""
        if structure(settings) != self.structure:
            self.structure = self.data = self.programs = None  # first, for the memory
            self.data = load(settings)
            self.programs = compile_programs(settings, self.data)
            self.structure = structure(settings)
        assert self.data and self.programs
        return self.data, self.programs


def trained(ready: Mapping[str, Settings], shown: bool = True) -> dict[str, str]:
    """Trains all runs that are not finished and that no other process is at work in.

    Returns:
      By name, why some have failed.
    """
    left, failed, shared = dict(ready), {}, Shared()
    with progress_bar(shown) as bar:
        task = bar.add_task("runs", total=len(ready))
        while left:
            name = next_run(left, shared.structure)
            try:
                train_one(name, left.pop(name), shared, bar)
            except InUseError:
                pass
            except Exception as error:  # the others go on
                failed[name] = reason(error)
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


def reason(error: Exception) -> str:
    """Why a run has failed, in one line."""
    if isinstance(error, SettingsError):
        return str(error)
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first}"[:200]
