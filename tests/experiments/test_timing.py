"""Times of steps: rounds over a whole training, and their mean."""

import types

import numpy as np
import pytest

from experiments.running import timing
from experiments.running.progress import progress_bar


@pytest.mark.parametrize("steps, expected", [(600, ([180, 20] * 3, 1)), (40, ([20] * 3, 2))])
def test_rounds_are_spread_over_the_training_and_begin_again_after_it(monkeypatch, steps, expected):
    taken, begun = [], []

    def take(state, inputs, count):
        taken.append(int(count))
        return state + count

    programs = types.SimpleNamespace(
        steps_per_epoch=steps // 10,
        inputs=lambda settings, data: None,
        init=lambda inputs: begun.append(0) or np.int32(0),
        steps=take,
    )
    monkeypatch.setattr(timing, "with_numbers", lambda once, settings: None)
    with progress_bar() as bar:
        runs = {"late": types.SimpleNamespace(epochs=10)}
        found = timing.step_seconds(runs, None, {"late": programs}, 3, bar)
    assert (taken, len(begun)) == expected and found["late"].shape == (3,)


def test_few_steps_that_cost_more_are_in_the_time_of_a_training():
    late = np.where(np.arange(30) < 24, 1.0, 2.0)
    assert timing.relative_time(late, np.ones(30)) == pytest.approx(1.2)


def test_a_round_that_was_disturbed_does_not_count():
    seconds = np.ones(30)
    seconds[[4, 5, 17]] = 50
    assert timing.relative_time(seconds, np.ones(30)) == 1
    assert timing.relative_time(np.ones(1), np.full(1, 2.0)) == 0.5
