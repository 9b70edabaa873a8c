"""From the command line to a program's settings, and from its errors to one line."""

import contextlib
import dataclasses
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any

import tyro

from experiments.recipes import recipe
from experiments.settings import DiskError, Settings, SettingsError
from experiments.settings.of_method import MethodSettings


def command_line(
    kind: type,
    run: Callable[[Any], Any],
    args: Sequence[str] | None,
    how_to_go_on: str,
    default: Any = None,
) -> None:
    """Reads a dataclass from the command line and runs with it.

    Exits with code 2 and one line after a mistake of the user or a failure of the disk. Ctrl-C, and
    SIGTERM with which clusters end a job, end the process at once, with code 130 or 143 and a line
    that says how to go on.

    Args:
      kind: the dataclass.
      run: what is called with it.
      args: of the command line; None is the process's own.
      how_to_go_on: after an interruption.
      default: what is not given; None is the dataclass's own defaults.
    """
    prog = f"python -m {_module_of(run)}"
    with errors_in_one_line(how_to_go_on), _ending_at_once(f"interrupted: {how_to_go_on}\n"):
        run(tyro.cli(kind, prog=prog, args=args, default=default, config=(tyro.conf.FlagCreatePairsOff,)))


def _module_of(run: Callable[..., Any]) -> str:
    """The name by which Python runs a program's module."""
    spec = sys.modules["__main__"].__spec__ if run.__module__ == "__main__" else None
    return (spec.name if spec else run.__module__).removesuffix(".__main__")


def program(main: Callable[[], None]) -> None:
    """Runs a program's `main`. After a failure of the disk the process ends at once.

    A checkpoint that is being written has threads of its own, which may wait for that disk for minutes.
    """
    try:
        main()
    except SystemExit as end:
        if isinstance(end.__cause__, DiskError):
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(2)
        raise


@contextlib.contextmanager
def errors_in_one_line(how_to_go_on: str) -> Iterator[None]:
    """Exits with code 2 and one line after a mistake of the user or a failure of the disk."""
    try:
        yield
    except DiskError as error:
        print(f"error: {error}: make room there or make it writable, then {how_to_go_on}", file=sys.stderr)
        raise SystemExit(2) from error
    except SettingsError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def defaults_in(args: Sequence[str]) -> tuple[Settings, Sequence[str]]:
    """What is not given on a command line, and the words that are left of it.

    A first word `recipe:NAME` gives the recipe's settings. With another method than the recipe's, the
    settings of that method are not the recipe's any more.
    """
    if not args or not args[0].startswith("recipe:"):
        return Settings(), args
    settings, args = recipe(args[0].removeprefix("recipe:")).settings, args[1:]
    method = method_in(args, settings.method)
    if method != settings.method:
        settings = dataclasses.replace(settings, method=method, method_settings=MethodSettings())
    return settings, args


def with_help_on(accepted: Sequence[str], settings: Settings) -> Settings:
    """These settings, but their help leaves out those of methods that are not at hand; they still parse."""
    suppressed: Any = Annotated[Any, tyro.conf.Suppress]
    hidden: list[Any] = [
        (field.name, suppressed, dataclasses.field(default=None))
        for field in dataclasses.fields(MethodSettings)
        if field.name not in accepted
    ]
    part = dataclasses.make_dataclass("MethodSettings", hidden, bases=(MethodSettings,), frozen=True)
    field: Any = ("method_settings", tyro.conf.OmitArgPrefixes[part], dataclasses.field(default=part()))
    made = dataclasses.make_dataclass("Settings", [field], bases=(Settings,), frozen=True)
    made.__doc__ = Settings.__doc__
    return made(**vars(settings) | {"method_settings": part(**vars(settings.method_settings))})


def method_in(args: Sequence[str], default: str) -> str:
    """The method that a command line names; the default without one."""
    for number, word in enumerate(args):
        name, equals, value = word.partition("=")
        if name == "--method":
            return value if equals else "".join(args[number + 1 : number + 2])
    return default


@contextlib.contextmanager
def _ending_at_once(line: str) -> Iterator[None]:
    # The files are good at every moment. An exception would be lost in a callback of JAX's every so
    # often, and would leave threads to the end of the interpreter that print, or crash it.
    def end(number: int, _: Any) -> None:
        terminal = "\n\x1b[?25h" if os.isatty(2) else ""  # below the progress bar, the cursor visible again
        with contextlib.suppress(OSError):
            os.write(2, (terminal + line).encode())
        os._exit(128 + number)

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:  # as a shell sets it for jobs in the background
            signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
