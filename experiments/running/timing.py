"""Times of the steps of several methods, taken in turns."""

import time
from collections.abc import Mapping

import jax
import numpy as np
from rich.progress import Progress

from experiments.data import Data
from experiments.running.inputs import with_numbers
from experiments.running.programs import Programs
from experiments.settings import Settings

# Steps of one method before it is the next one's turn.
STEPS_PER_ROUND = 20


def step_seconds(
    runs: Mapping[str, Settings],
    data: Data,
    programs: Mapping[str, Programs],
    rounds: int,
    bar: Progress,
) -> dict[str, np.ndarray]:
    """Seconds per step of every method in every round [rounds], in which the methods take turns.

    Every method goes through a whole training, since the cost of some changes on the way; a round keeps the
    order of examples across epochs, which takes the same time. Times of one round belong together.
    """
    first = next(iter(runs))
    once = programs[first].inputs(runs[first], data)  # a large data set would not fit many times
    inputs = {name: with_numbers(once, settings) for name, settings in runs.items()}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    states = {}
    task = bar.add_task("time the steps", total=rounds * STEPS_PER_ROUND)
    for number in range(rounds):
        for name, settings in runs.items():
            done = number * STEPS_PER_ROUND
            if done % (settings.epochs * programs[name].steps_per_epoch) < STEPS_PER_ROUND:
                states[name] = jax.block_until_ready(programs[name].init(inputs[name]))
            start = time.perf_counter()
            states[name] = jax.block_until_ready(
                programs[name].steps(states[name], inputs[name], np.int32(STEPS_PER_ROUND))
            )
            seconds[name].append((time.perf_counter() - start) / STEPS_PER_ROUND)
        bar.advance(task, STEPS_PER_ROUND)
    return {name: np.array(each) for name, each in seconds.items()}
