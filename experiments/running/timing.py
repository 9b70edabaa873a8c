"""Times of the steps of several methods, taken in turns."""

import time
from collections.abc import Mapping

import jax
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from rich.progress import Progress

from experiments.data import Data
from experiments.running.inputs import with_numbers
from experiments.running.programs import Programs
from experiments.settings import Settings

# Steps of one method before it is the next one's turn.
STEPS_PER_ROUND = 20

# Rounds on each side with which one is compared.
NEIGHBOURS = 2


def step_seconds(
    runs: Mapping[str, Settings],
    data: Data,
    programs: Mapping[str, Programs],
    rounds: int,
    bar: Progress,
) -> dict[str, np.ndarray]:
    """Seconds per step of every method in every round [rounds], in which the methods take turns.

    The rounds are spread over a whole training, since the cost of some methods changes on the way; a round
    keeps the order of examples across epochs, which takes the same time. Times of one round belong together.
    """
    first = next(iter(runs))
    once = programs[first].inputs(runs[first], data)  # a large data set would not fit many times
    inputs = {name: with_numbers(once, settings) for name, settings in runs.items()}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    states = {}
    task = bar.add_task("time the steps", total=rounds * STEPS_PER_ROUND)
    for number in range(rounds):
        for name, settings in runs.items():
            training = settings.epochs * programs[name].steps_per_epoch
            untimed = max(0, training // rounds - STEPS_PER_ROUND)
            if number * (untimed + STEPS_PER_ROUND) % training < untimed + STEPS_PER_ROUND:
                states[name] = programs[name].init(inputs[name])
            if untimed:
                states[name] = programs[name].steps(states[name], inputs[name], np.int32(untimed))
            jax.block_until_ready(states[name])
            start = time.perf_counter()
            states[name] = jax.block_until_ready(
                programs[name].steps(states[name], inputs[name], np.int32(STEPS_PER_ROUND))
            )
            seconds[name].append((time.perf_counter() - start) / STEPS_PER_ROUND)
        bar.advance(task, STEPS_PER_ROUND)
    return {name: np.array(each) for name, each in seconds.items()}


def relative_time(seconds: np.ndarray, base: np.ndarray) -> float:
    """How many times as long as the base's a training takes.

    A median over all rounds would miss the last ones of a method that costs more at the end. Each round is
    the median of itself and its neighbours, so that a single one that was disturbed does not count.
    """
    return float(np.mean(_undisturbed(seconds)) / np.mean(_undisturbed(base)))


def _undisturbed(seconds: np.ndarray) -> np.ndarray:
    padded = np.pad(seconds, NEIGHBOURS, mode="edge")
    return np.median(sliding_window_view(padded, 2 * NEIGHBOURS + 1), axis=-1)
