"""Searches each method's settings on validation data: `python -m experiments.tune --help`.

Validation data are parts of the training examples, wrong labels included (cross-validation). The test part is
never looked at. Every method has the same number of grid points.
"""

import dataclasses
import itertools
import math
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
from filelock import FileLock
from rich.console import Console
from rich.table import Table

from experiments import methods
from experiments.data import Data, fold, load, with_defaults
from experiments.data.arrays import num_rows, on_validation
from experiments.reports.intervals import deviation
from experiments.running import records
from experiments.running.programs import Programs, compile_programs, structure
from experiments.running.progress import progress_bar
from experiments.running.run import evaluated, train_epoch
from experiments.running.scores import Score, score_of
from experiments.running.training import judged
from experiments.settings import Settings, SettingsError, Setup, flag, require, setup_of
from experiments.settings.command_line import command_line, program
from experiments.settings.defaults import resolved
from experiments.tuned import DEFAULTS, file_of

Point = dict[str, Any]


def grid(**values: Sequence[float]) -> list[Point]:
    """All combinations of the values of some settings."""
    return [dict(zip(values, point, strict=True)) for point in itertools.product(*values.values())]


def doubling(first: float, count: int, factor: float = 2.0) -> list[float]:
    """A geometric sequence, rounded to two digits: 0.1, 0.2, 0.4, ..."""
    return [float(f"{first * factor**number:.2g}") for number in range(count)]


RADII = doubling(0.1, 12, 2**0.5)

# Twelve points for each; where the radius is searched alone, it grows by half octaves. A run of 600
# steps is short for vSAM's windows of 50 steps: here a window is an epoch.
GRIDS = {
    "sgd": grid(learning_rate=doubling(0.002, 4), weight_decay=doubling(0.008, 3, 4.0)),
    "sam": grid(rho=RADII),
    "rst": grid(rho=doubling(0.4, 12, 2**0.5)),
    "grst": grid(rho=RADII),
    "vsam": grid(rho=doubling(0.8, 12, 2**0.5), window=[10]),
    "pugd": grid(radius=doubling(4.0, 4), learning_rate=doubling(0.025, 3)),
    "tsam": grid(rho=RADII),
    "ausam": grid(rho=RADII),
}

# In the other geometries a radius is another thing: in units of the weights (asam, graphsam,
# look_layersam), of the outputs of a layer (fan_scaled_sam, spectral_sam), of the few scales and biases of
# batch norm (sam_on), of the noise (the random perturbations), or of the gradient, whose norm falls by orders
# of magnitude (usam, extrapolation).
# Methods that perturb few steps, or mix in the plain gradient, stand larger radii.
GRIDS |= {
    "asam": grid(rho=doubling(0.5, 12, 2**0.5)),
    "looksam": grid(rho=doubling(0.02, 12, 2**0.5)),
    "look_layersam": grid(rho=doubling(0.003, 12, 2**0.5)),
    "aesam": grid(rho=doubling(0.2, 12, 2**0.5)),
    "aelooksam": grid(rho=doubling(0.05, 12, 2**0.5)),
    "late_sam": grid(rho=doubling(0.4, 12, 2**0.5)),
    "esam": grid(rho=doubling(0.05, 12, 2**0.5)),
    "ksam": grid(rho=doubling(0.05, 12, 2**0.5)),
    "reweighted_sam": grid(rho=RADII),
    "friendly_sam": grid(rho=RADII),
    "vasso": grid(rho=RADII),
    "fisher_sam": grid(rho=RADII),
    "sam_on": grid(rho=doubling(0.4, 12, 2**0.5)),
    "sparse_sam": grid(rho=RADII),
    "sparse_sam_dynamic": grid(rho=RADII),
    "fisher_mask_sam": grid(rho=RADII),
    "multistep_sam": grid(rho=RADII),
    "usam": grid(rho=doubling(0.05, 12, 1.6)),
    "gsam": grid(rho=doubling(0.05, 12, 2**0.5)),
    "gradient_norm_penalty": grid(rho=RADII),
    "wsam": grid(rho=doubling(0.01, 12, 2**0.5)),
    "decoupled_wsam": grid(rho=doubling(0.05, 12, 2**0.5)),
    "bilateral_sam": grid(rho=doubling(0.1, 4), lower_rho=[0.02, 0.1, 0.4]),
    "momentum_sam": grid(rho=doubling(0.4, 12, 2**0.5)),
    "single_step_sam": grid(rho=RADII),
    "persistent_sam": grid(rho=doubling(0.4, 4), ascent_rate=[0.1, 0.3, 1.0]),
    "extrapolation": grid(step_size=doubling(0.05, 12)),
    "graphsam": grid(rho=RADII),
    "lesam": grid(budget=doubling(0.05, 4), max_rho=[0.2, 0.8, 3.2]),
    "fan_scaled_sam": grid(rho=doubling(0.005, 12, 2**0.5)),
    "spectral_sam": grid(rho=doubling(0.002, 12, 2**0.5)),
    "sam_sps": grid(rho=doubling(0.1, 4), max_step=[0.1, 0.3, 1.0]),
    "fgsam": grid(rho=doubling(0.2, 12, 2**0.5)),
    "fgsam_plus": grid(rho=RADII),
    "random_perturbation": grid(noise_scale=doubling(0.002, 12, 1.6)),
    "adaptive_random_perturbation": grid(noise_scale=doubling(0.002, 12, 1.6)),
    "random_sam": grid(rho=RADII),
    "adasam": grid(rho=doubling(0.2, 4), learning_rate=[0.001, 0.003, 0.01]),
    "bsam": grid(rho=[0.01, 0.03, 0.1, 0.3], learning_rate=[0.1, 0.3, 1.0]),
    "drawn_vsam": grid(rho=doubling(0.2, 12, 2**0.5), window=[10]),
    "friendly_looksam": grid(rho=RADII),
    "adaptive_rst": grid(rho=doubling(0.5, 12, 2**0.5)),
    "sharded_gsam": grid(rho=doubling(0.05, 12, 2**0.5)),
}


# On other data than the digits one wide grid is every method's whose radius is a length in the space of all
# weights. In the other geometries the digits' grids begin two octaves lower.
WIDE = doubling(0.02, 12, 1.5)
GRIDS |= {name: grid(rho=RADII) for name in methods.METHODS if name not in GRIDS}

OTHER_GEOMETRIES = ("asam", "graphsam", "look_layersam", "sam_on", "usam", "fan_scaled_sam", "spectral_sam")


# Adam and LAMB know learning rates of another order; they alone decide how far a normalized gradient leads.
ADAPTIVE = {
    "sgd": grid(learning_rate=[0.0005, 0.001, 0.002, 0.004], weight_decay=[0.01, 0.1, 1.0]),
    "pugd": grid(radius=doubling(1.0, 4), learning_rate=[0.0005, 0.001, 0.002]),
}


def points_of(method: str, setup: Setup, count: int = 12) -> list[Point]:
    """The grid of a method: the digits' own, or for other data a wider one; `count` points evenly spread.

    Eight by eight pixels are an easy task with wrong labels, on which large radii and strong decay do well.
    SGD's own grid lies around a learning rate that is given, which the other methods keep.
    """
    points = _all_points(method, setup)
    spread = np.linspace(0, len(points) - 1, min(count, len(points))).round().astype(int)
    return [points[number] for number in spread]


def _all_points(method: str, setup: Setup) -> list[Point]:
    if setup.optimizer != "sgd" and method in ADAPTIVE:
        return ADAPTIVE[method]
    if setup.data == "digits":
        return GRIDS[method]
    if method == "sgd":
        rate, decay = (setup.learning_rate or 0.024) / 4, setup.weight_decay or 0.002
        return grid(learning_rate=doubling(rate, 4), weight_decay=doubling(decay, 3, 4.0))
    if set(GRIDS[method][0]) <= {"rho", "window"} and method not in OTHER_GEOMETRIES:
        return [point | {"rho": rho} for point, rho in zip(GRIDS[method], WIDE, strict=True)]
    lower = {"rho": 0.25, "radius": 0.25, "step_size": 0.25, "noise_scale": 0.25}
    return [
        {
            name: float(f"{value * lower.get(name, 1):.2g}") if name in lower else value
            for name, value in point.items()
        }
        for point in GRIDS[method]
    ]


@dataclasses.dataclass(frozen=True)
class TuneSettings(Setup):
    """Search each method's settings on validation examples, and write the best as defaults.

    These are the data set's own validation part (etth1, etth2), else folds of the training examples.
    The table goes to a file in experiments/tuned, named after the task. Other methods in it stay. Several
    processes may search at once, each its own methods.
    """

    methods: tuple[str, ...] = tuple(GRIDS)
    """Methods to search."""
    points: int = 12
    """Points of each method's grid, evenly spread."""
    folds: int = 5
    """Parts into which the training examples are cut, where the data set has no validation part."""
    parts: int | None = None
    """How many of these parts are the validation data once. None takes each."""
    seeds: int = 1
    """Runs per part and grid point."""


def main(args: list[str] | None = None) -> None:
    """The command line."""
    command_line(TuneSettings, tune, args, "methods with a table are done, --methods continues")


def tune(settings: TuneSettings) -> None:
    """Searches, writes, and prints the tables."""
    unknown = [name for name in settings.methods if name not in GRIDS]
    if unknown:
        raise SettingsError(f"--methods {unknown[0]} has no grid: give {', '.join(GRIDS)}")
    for name, least in (("folds", 2), ("seeds", 1), ("epochs", 1)):
        require(getattr(settings, name) >= least, settings, name, f"give {least} or more")
    require(1 <= settings.points <= 12, settings, "points", "give a number from 1 to 12")
    fine = settings.parts is None or 1 <= settings.parts <= settings.folds
    require(fine, settings, "parts", "give 1 or more, and at most --folds")
    chosen = settings.evaluate_on == "test"
    require(chosen, settings, "evaluate_on", "leave it out, since a search never looks at the test part")
    file = file_of(settings)
    data = load(resolved(Settings(method="sgd", **setup_of(settings))))
    check_parts(data, settings)
    for method in settings.methods:
        methods.check_used(Settings(method=method, **setup_of(settings)))
        check_searched(method, settings)
        for point in points_of(method, settings, settings.points):
            methods.check(with_point(settings, method, point, seed=0))
    for method in settings.methods:
        entry = search(method, data, settings)
        print_grid(method, entry, score_of(vars(settings)))
        with FileLock(f"{file}.lock"):  # one process at a time
            content = records.read_json(file) if file.exists() else {"methods": {}}
            content["methods"][method] = entry | records.environment()
            records.write_json(file, content)


def check_searched(method: str, settings: TuneSettings) -> None:
    """Refuses a number that the grid of a method searches for itself."""
    around = method == "sgd" and settings.optimizer == "sgd" and settings.data != "digits"
    for name in ("learning_rate", "weight_decay"):
        value = getattr(settings, name)
        if value is None or name not in points_of(method, settings)[0]:
            continue
        if not around:
            raise SettingsError(f"{flag(name)} {value} is searched by the grid of {method}: leave it out")
        require(value > 0, settings, name, "give a number above 0, around which the grid lies")


def check_parts(data: Data, settings: TuneSettings) -> None:
    """Refuses data that cannot be cut into parts: a stream's test part would be the validation data."""
    if data.streams:
        raise SettingsError(
            f"--data {settings.data} is streamed, and has no parts: give --stream False, or a smaller set"
        )
    if data.validation and settings.parts is not None:
        raise SettingsError(
            f"--parts {settings.parts} has nothing to count, since --data {settings.data} has a validation "
            "part of its own: leave it out"
        )
    parts = (trial_data(data, number, settings) for number in range(num_parts(data, settings)))
    sizes = [(num_rows(part.train), num_rows(part.test)) for part in parts]
    if min(held_out for _, held_out in sizes) == 0:
        raise SettingsError(
            f"--folds {settings.folds} leaves a part without examples, since examples that show the same "
            "thing stay together: give fewer folds"
        )
    left = min(trained_on for trained_on, _ in sizes)
    if left < settings.batch_size:
        raise SettingsError(
            f"--folds {settings.folds} leaves {left} training examples, fewer than --batch-size "
            f"{settings.batch_size}: give more folds, or a smaller batch"
        )


def num_parts(data: Data, settings: TuneSettings) -> int:
    """How many held-out parts a point is judged by."""
    return 1 if data.validation else settings.parts or settings.folds


def trial_data(data: Data, number: int, settings: TuneSettings) -> Data:
    """What a trial trains on, and is judged by: the data set's own validation part, or a fold.

    Neighbouring examples of a series share most of their numbers, so that its folds would be known.
    """
    return on_validation(data) if data.validation else fold(data, number, settings.folds)


def search(method: str, data: Data, settings: TuneSettings) -> dict[str, Any]:
    """The score at each point of a method's grid on the held-out parts, and the best point."""
    score = score_of(vars(settings))
    trials = list(itertools.product(range(num_parts(data, settings)), range(settings.seeds)))
    points = points_of(method, settings, settings.points)
    programs: dict[Any, Programs] = {}
    rows = []
    with progress_bar() as bar:
        task = bar.add_task(method, total=len(points) * len(trials))
        for point in points:
            scores = []
            for number, seed in trials:
                part = trial_data(data, number, settings)
                trial = with_point(settings, method, point, seed * settings.folds + number)
                compiled = (structure(trial), num_rows(part.train))
                if compiled not in programs:
                    programs[compiled] = compile_programs(trial, part)
                scores.append(trained_score(trial, part, programs[compiled]))
                bar.advance(task)
            mean = statistics.mean(scores)
            spread = float(deviation(scores))
            rows.append(point | {"score_mean": mean, "score_std": spread})
    best = max(range(len(rows)), key=lambda number: score.sign * rows[number]["score_mean"])
    given = given_numbers(settings)
    return {"best": given | points[best], "grid": rows, "trials_per_point": len(trials)}


def with_point(settings: TuneSettings, method: str, point: Point, seed: int) -> Settings:
    """The settings of one trial: a grid point, and else the library's and the task's defaults."""
    base = with_defaults(Settings(method=method, seed=seed, **setup_of(settings)))
    usual = DEFAULTS[settings.optimizer]
    numbers: Point = (
        usual | given_numbers(settings) | {name: value for name, value in point.items() if name in usual}
    )
    method_settings = {name: value for name, value in point.items() if name not in usual}
    return dataclasses.replace(
        base, **numbers, method_settings=dataclasses.replace(base.method_settings, **method_settings)
    )


def given_numbers(settings: TuneSettings) -> Point:
    """Learning rate and weight decay, where they are given for all methods."""
    names = DEFAULTS[settings.optimizer]
    return {name: getattr(settings, name) for name in names if getattr(settings, name) is not None}


def trained_score(settings: Settings, data: Data, programs: Programs) -> float:
    """Trains one network; its accuracy or loss on the held-out part, the worst one where it has diverged."""
    inputs = programs.inputs(settings, data)
    state = programs.init(inputs)
    for epoch in range(1, settings.epochs + 1):
        state, _ = train_epoch(programs, state, inputs, epoch, lambda **_: None)
    score = score_of(vars(settings))
    found = evaluated(settings, *map(float, programs.evaluate(*judged(state), inputs.examples)))[score.name]
    return score.value(found if math.isfinite(found) else None)


def print_grid(method: str, entry: dict[str, Any], score: Score) -> None:
    """Prints a method's grid, the best point marked."""
    names = [name for name in entry["grid"][0] if not name.startswith("score_")]
    table = Table(title=method, caption=f"{entry['trials_per_point']} trainings per point")
    for heading in (*names, score._replace(part="validation").label, ""):
        table.add_column(heading, justify="right")
    for point in entry["grid"]:
        best = all(point[name] == entry["best"][name] for name in names)
        table.add_row(
            *(str(point[name]) for name in names),
            score.text(point["score_mean"], point["score_std"] if entry["trials_per_point"] > 1 else None),
            "best" if best else "",
        )
    Console().print(table)


if __name__ == "__main__":
    program(main)
