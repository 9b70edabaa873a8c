"""Trains every combination of some settings' values: `python -m experiments.grid --help`."""

import dataclasses
import functools
import itertools
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tyro

from experiments import methods
from experiments.running import records
from experiments.running.processes import in_processes
from experiments.running.queue import finished, set_aside_if_different, trained
from experiments.settings import Settings, SettingsError, Setup, flag, require, setup_of
from experiments.settings.command_line import command_line, program
from experiments.settings.defaults import resolved
from experiments.settings.of_method import MethodSettings

METHOD_SETTINGS = tuple(field.name for field in dataclasses.fields(MethodSettings))
OF_EVERY_METHOD = ("method", "seed", *(field.name for field in dataclasses.fields(Setup)))


@dataclasses.dataclass(frozen=True)
class GridSettings(Setup):
    """Train every combination of the values of some settings, each in a folder of its own.

    `--vary method=sgd,sam rho=0.05,0.1 seed=0,1,2` makes nine runs, since sgd has no rho: sgd-seed0,
    sam-rho0.05-seed0, ... Finished runs are left as they are. Interrupted runs continue. Runs with other
    settings are set aside. Unfinished runs that began with other data (a file was replaced) fail with a
    message. You may start the same command several times at once, also on machines that share the disk. Each
    then takes runs that no other one is working on.
    """

    vary: tuple[str, ...] = dataclasses.field(kw_only=True)
    """NAME=VALUE,VALUE,... of any settings of experiments.train. Several words: "augment=crop flip,crop"."""
    out: Path = Path("runs/grid")
    """Folder for the folders of the runs."""
    processes: int = 1
    """Processes that share the runs."""
    side_by_side: int = 1
    """How many runs of one method to train in one program: seeds, rates, decays and radii of a small
    network."""


def main(args: list[str] | None = None) -> None:
    """The command line."""
    command_line(GridSettings, grid, args, "the same command continues")


def grid(settings: GridSettings) -> None:
    """Trains what is not finished, and says what failed; exits with code 1 if anything did."""
    for name in ("processes", "side_by_side"):
        require(getattr(settings, name) >= 1, settings, name, "give 1 or more")
    if settings.processes > 1:  # on a GPU, the first would take all memory
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    asked = all_runs(settings)
    records.check_writable(settings.out)
    ready, failed = prepared(asked)
    work = functools.partial(trained, ready, settings.side_by_side)
    for failures in in_processes(work, settings.processes):
        failed |= failures
    done = sum(bool(finished(each)) for name, each in ready.items() if name not in failed)
    others = len(asked) - done - len(failed)
    print(
        f"{done} of {len(asked)} runs are finished"
        + (f", {others} in the hands of another process" if others else "")
        + f"; python -m experiments.summarize {settings.out} --out {settings.out} compares them"
    )
    for name, reason in failed.items():
        print(f"failed: {name}: {reason}", file=sys.stderr)
    if failed:
        sys.exit(1)


def all_runs(settings: GridSettings) -> dict[str, Settings]:
    """The settings of every run, by the name of its folder; not checked."""
    values = values_of(settings.vary)
    found = {}
    for point in itertools.product(*values.values()):
        given = dict(zip(values, point, strict=True))
        method, seed = given.pop("method", Settings.method), given.pop("seed", Settings.seed)
        taken = methods.accepted(method)
        given = {name: value for name, value in given.items() if name not in METHOD_SETTINGS or name in taken}
        name = "-".join([part("method", method), *itertools.starmap(part, given.items()), f"seed{seed}"])
        own = {key: given.pop(key) for key in tuple(given) if key in METHOD_SETTINGS}
        found[name] = Settings(
            method=method,
            seed=seed,
            method_settings=MethodSettings(**own),
            out=settings.out / name,
            resume=True,
            **setup_of(settings) | given,
        )
    return found


def values_of(vary: tuple[str, ...]) -> dict[str, list[Any]]:
    """The values of each setting, parsed as on the command line of experiments.train."""
    values = {}
    for assignment in vary:
        name, equals, texts = assignment.partition("=")
        name = name.removeprefix("--").replace("-", "_")
        if not equals:
            raise SettingsError(f"--vary {assignment} has no values: give {assignment}=VALUE,VALUE,...")
        if name not in (*OF_EVERY_METHOD, *METHOD_SETTINGS):
            raise SettingsError(f"--vary {assignment} is no setting: see python -m experiments.train --help")
        if name in values:
            raise SettingsError(f"--vary {assignment} is the second for {name}: give all values in one")
        values[name] = [parsed(name, text) for text in texts.split(",")]
    chosen = values.get("method", [Settings.method])
    known = {*OF_EVERY_METHOD, *itertools.chain(*map(methods.accepted, chosen))}
    for name in values:
        if name not in known:
            raise SettingsError(f"--vary {name} is no setting of {', '.join(chosen)}: leave it out")
    return values


def parsed(name: str, text: str) -> Any:
    """A value of a setting of experiments.train; of several words, if the setting takes them."""
    words = [flag(name), *text.split()]
    prog, config = "python -m experiments.train", (tyro.conf.FlagConversionOff,)
    settings = tyro.cli(Settings, prog=prog, args=words, config=config)
    return getattr(settings.method_settings if name in METHOD_SETTINGS else settings, name)


def part(name: str, value: Any) -> str:
    """What a value adds to the name of a folder; words stand for themselves."""
    words = [str(each) for each in value] if isinstance(value, tuple) else [str(value)]
    text = "+".join(words).replace("/", "_")
    plain = isinstance(value, str) or (value and isinstance(value, tuple) and isinstance(value[0], str))
    return text if plain else name + text


def prepared(asked: Mapping[str, Settings]) -> tuple[dict[str, Settings], dict[str, str]]:
    """The runs with all defaults, folders of other runs out of the way; and why some are refused."""
    ready, refused = {}, {}
    for name, settings in asked.items():
        try:
            ready[name] = resolved(settings)
            set_aside_if_different(ready[name])
        except SettingsError as error:
            ready.pop(name, None)
            refused[name] = str(error)
    return ready, refused


if __name__ == "__main__":
    program(main)
