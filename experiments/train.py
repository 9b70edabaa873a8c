"""Trains one network with one method: `python -m experiments.train --help`.

A first word `recipe:NAME` starts from a published experiment (`python -m experiments.recipes`).
"""

import functools
import sys

from experiments import methods
from experiments.data import load
from experiments.running.compile_only import compile_only
from experiments.running.devices import first_process, join_processes
from experiments.running.programs import compile_programs
from experiments.running.progress import progress_bar
from experiments.running.records import check_digest, check_folder, digest_of, known_digest
from experiments.running.run import run
from experiments.running.scores import score_of
from experiments.settings import Settings
from experiments.settings.command_line import (
    command_line,
    defaults_in,
    errors_in_one_line,
    method_in,
    program,
    with_help_on,
)
from experiments.settings.defaults import resolved

HOW_TO_GO_ON = "--resume continues the run"


def main(args: list[str] | None = None) -> None:
    """The command line."""
    words = sys.argv[1:] if args is None else args
    with errors_in_one_line(HOW_TO_GO_ON):
        default, words = defaults_in(words)
    if {"-h", "--help"} & set(words):
        default = with_help_on(methods.accepted(method_in(words, default.method)), default)
    command_line(type(default), train, words, HOW_TO_GO_ON, default)


def train(settings: Settings) -> None:
    """Checks, reads, compiles, trains, and says what came out."""
    if settings.compile_only is not None:
        compile_only(settings)
        return
    if settings.distributed:
        join_processes()
    settings = resolved(settings)
    if first_process():
        check_folder(settings)
    data = load(settings)
    if known_digest(settings.out):
        check_digest(settings, digest_of(data))  # before the time that compilation takes
    programs = compile_programs(settings, data)
    with progress_bar(first_process()) as bar:
        task = bar.add_task(settings.method, total=settings.epochs * programs.steps_per_epoch)
        show = functools.partial(bar.update, task)
        result, _ = run(settings, data, programs, show)
    if first_process():
        score = score_of(vars(settings))
        print(
            f"{score.label} {score.text(result[score.name])} after {result['steps']} steps of "
            f"{result['gradients_per_step']:.2f} gradients: {result['seconds']:.1f} s, and "
            f"{result['compile_seconds']:.1f} s to compile; see {settings.out}/result.json"
        )


if __name__ == "__main__":
    program(main)
