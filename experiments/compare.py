"""Compares methods over seeds: `python -m experiments.compare --help`."""

import dataclasses
import functools
import math
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import Progress

from experiments.data import Data, load
from experiments.methods import DEMO, METHODS
from experiments.methods.names import title
from experiments.reports import comparison
from experiments.reports.groups import evaluated
from experiments.reports.intervals import deviation
from experiments.reports.ranking import draw_ranking
from experiments.reports.trajectories import draw_sharpness
from experiments.running import records
from experiments.running.programs import Programs, compile_programs
from experiments.running.progress import progress_bar
from experiments.running.queue import finished, set_aside_if_different
from experiments.running.run import Listener, run
from experiments.running.scores import Score, score_of
from experiments.running.sharpness import MEASURED, measured
from experiments.running.timing import relative_time, step_seconds
from experiments.settings import Settings, Setup, require, setup_of
from experiments.settings.command_line import command_line, program
from experiments.settings.defaults import resolved

GROUPS = {"demo": DEMO, "all": tuple(METHODS)}


@dataclasses.dataclass(frozen=True)
class CompareSettings(Setup):
    """Train methods over seeds in one process, and make one table and one picture.

    Each run has its own folder, such as sam-seed0, in the output folder. The next call uses finished runs
    again. A run with other settings or other data is set aside, not overwritten.
    """

    methods: tuple[str, ...] = ("demo",)
    """Methods by name, or all. demo is sgd, sam, momentum_sam, rst, grst, vsam, pugd, tsam and ausam."""
    seeds: int = 3
    """Runs per method, with seeds 0, 1, ..."""
    out: Path = Path("runs/demo")
    """Folder for summary.json, comparison.png and the folders of the runs."""
    checkpoint_every: int = 1000
    """Epochs from one checkpoint to the next. The last epoch always gets one. Short runs have no other."""
    timing_rounds: int = 30
    """Rounds of 20 steps of every method in turn, to measure the time per step."""


def main(args: list[str] | None = None) -> None:
    """The command line."""
    command_line(CompareSettings, compare, args, "the same command continues")


def compare(settings: CompareSettings) -> None:
    """Trains, measures, and writes the table and the picture."""
    start = time.perf_counter()
    runs = all_runs(settings)
    records.check_writable(settings.out)
    data = load(runs["sgd"][0])
    with progress_bar() as bar:
        programs = compiled(runs, data, bar)
        results = {name: results_of(runs[name], data, programs[name], bar) for name in names(settings)}
        first_runs = {name: group[0] for name, group in runs.items()}
        seconds = step_seconds(first_runs, data, programs, settings.timing_rounds, bar)
    ratios = {name: relative_time(each, seconds["sgd"]) for name, each in seconds.items()}
    score = score_of(vars(settings))
    methods = {name: summary(results[name], ratios[name], score) for name in results}
    extra = {
        "settings": {name: records.as_json(each[0]) for name, each in runs.items()},
        "seconds": time.perf_counter() - start,
        "train_seconds": sum(each["seconds"] for group in results.values() for each in group),
        "compile_seconds": sum(each.compile_seconds for each in programs.values()),
    }
    records.write_json(settings.out / "summary.json", {"methods": methods} | extra | records.environment())
    comparison.print_table(methods, score)
    for line in numbers_of_base({name: group[0] for name, group in runs.items() if name in methods}):
        print(line)
    heading = f"{settings.data}, {runs['sgd'][0].model}, {settings.epochs} epochs: "
    heading += comparison.over_seeds(settings.seeds)
    picture = settings.out / "comparison.png"
    if len(methods) >= comparison.MANY:
        draw_ranking(methods, score, heading, picture)
    else:
        curves = {name: curve(runs[name], score) for name in methods}
        comparison.draw(methods, curves, score, heading, picture)
    if settings.sharpness_every:
        draw_sharpness(
            {name: metrics(runs[name]) for name in methods}, heading, settings.out / "sharpness.png"
        )
    print(f"{extra['seconds']:.0f} s in all; see {settings.out}/comparison.png and summary.json")


def numbers_of_base(runs: dict[str, Settings]) -> list[str]:
    """Which methods have which learning rate and decay, where they have several."""
    found: dict[tuple[Any, ...], list[str]] = {}
    for name, each in runs.items():
        found.setdefault((each.learning_rate, each.weight_decay), []).append(title(name))
    lines = [
        f"learning rate {rate:g}, weight decay {decay:g}: {', '.join(names)}"
        for (rate, decay), names in found.items()
    ]
    return lines if len(lines) > 1 else []


def names(settings: CompareSettings) -> tuple[str, ...]:
    """The methods asked for."""
    return tuple(name for given in settings.methods for name in GROUPS.get(given, (given,)))


def all_runs(settings: CompareSettings) -> dict[str, list[Settings]]:
    """The settings of every run by method, checked; SGD is always there, as the unit of time."""
    for name in ("seeds", "epochs", "timing_rounds"):
        require(getattr(settings, name) >= 1, settings, name, "give 1 or more")
    require(bool(settings.methods), settings, "methods", "give demo, all, or some")
    return {
        name: [one_run(settings, name, seed) for seed in range(settings.seeds)]
        for name in dict.fromkeys(("sgd", *names(settings)))
    }


def one_run(settings: CompareSettings, method: str, seed: int) -> Settings:
    """The settings of one run; tuned defaults filled in."""
    return resolved(
        Settings(
            method=method,
            seed=seed,
            out=settings.out / f"{method}-seed{seed}",
            resume=True,
            **setup_of(settings),
        )
    )


def compiled(runs: dict[str, list[Settings]], data: Data, bar: Progress) -> dict[str, Programs]:
    """Compiles every method once, for all its seeds."""
    task = bar.add_task("compile all methods", total=len(runs))
    programs = {}
    for name, group in runs.items():
        programs[name] = compile_programs(group[0], data)
        bar.advance(task)
    return programs


def results_of(runs: list[Settings], data: Data, programs: Programs, bar: Progress) -> list[dict[str, Any]]:
    """Results of one method's runs; those finished before come from their folders."""
    steps, digest = runs[0].epochs * programs.steps_per_epoch, records.digest_of(data)
    task = bar.add_task(runs[0].method, total=steps * len(runs))
    results = []
    for number, settings in enumerate(runs):
        set_aside_if_different(settings, digest)
        result = finished(settings)
        if not result or "surrogate_gap" not in result:
            result = result_of(settings, data, programs, functools.partial(bar.update, task))
        results.append(result)
        score = result[score_of(vars(settings)).name]
        bar.update(task, completed=(number + 1) * steps, score=score)
    return results


def result_of(settings: Settings, data: Data, programs: Programs, listener: Listener) -> dict[str, Any]:
    """Trains one network and adds the sharpness where it ended to its result."""
    result, state = run(settings, data, programs, listener)
    last = records.read_metrics(settings.out / "metrics.jsonl")[-1]
    recorded = {name: last[name] for name in MEASURED if last.get(name) is not None}
    if not recorded:
        recorded = measured(programs.trainer, state, programs.inputs(settings, data))
    result |= recorded
    records.write_json(settings.out / "result.json", result)
    return result


def summary(results: list[dict[str, Any]], step_time_vs_sgd: float, score: Score) -> dict[str, Any]:
    """One method's row of the table: means over seeds."""

    def mean(name: str) -> float:  # a diverged run has null where a number was not finite
        return statistics.mean(math.nan if each[name] is None else each[name] for each in results)

    scores = [score.value(each[score.name]) for each in results]
    return {
        "score_mean": statistics.mean(scores),
        "score_std": float(deviation(scores)),
        "gradients_per_step": mean("gradients_per_step"),
        "step_time_vs_sgd": step_time_vs_sgd,
        "top_eigenvalue": mean("top_eigenvalue"),
        "surrogate_gap": mean("surrogate_gap"),
        "seeds": len(results),
    }


def metrics(runs: list[Settings]) -> list[list[dict[str, Any]]]:
    """The lines of each run's metrics.jsonl."""
    return [records.read_metrics(settings.out / "metrics.jsonl") for settings in runs]


def curve(runs: list[Settings], score: Score) -> comparison.Curve:
    """A method's way through training: seconds and score over its seeds."""
    looks = [evaluated(run) for run in metrics(runs)]
    seconds = np.array([[line["seconds"] for line in look] for look in looks])
    scores = score.unit * np.array([[score.value(line[score.name]) for line in look] for look in looks])
    return comparison.Curve(seconds.mean(0), scores.mean(0), deviation(scores))


if __name__ == "__main__":
    program(main)
