"""A network that is judged by the average of its weights, and by that of its batch statistics."""

import jax
import numpy as np
import optax
import pytest

from experiments.data import load
from experiments.running.inputs import make_inputs
from experiments.running.programs import trainer_of
from experiments.running.standing import standing_at
from experiments.running.training import judged
from experiments.settings import Settings
from experiments.settings.defaults import resolved
from experiments.settings.of_method import MethodSettings

STEPS, AVERAGED = 5, 4.0


@pytest.fixture(scope="module")
def runs():
    """The first steps of SGD and of the average over four steps, on the digits: conv net with batch norm."""

    def states(method, **own):
        numbers = {"learning_rate": 0.05, "weight_decay": 5e-4}
        setup = Settings(data="digits", method=method, method_settings=MethodSettings(**own), **numbers)
        settings = resolved(setup)
        data = load(settings)
        trainer = trainer_of(settings, data)
        inputs = make_inputs(settings, data, trainer.task)
        found = [jax.jit(trainer.init)(inputs)]
        step = jax.jit(lambda state: trainer.steps(state, inputs, 1, whole_batch=False))
        for _ in range(STEPS):
            found.append(step(found[-1]))
        return trainer, inputs, found

    return states("sgd"), states("averaged", average_steps=AVERAGED)


def test_weights_and_statistics_are_averaged_alike(runs):
    (_, _, plain), (_, _, own) = runs
    average = jax.tree.map(np.float64, (plain[0].params, plain[0].batch_stats))
    for state in plain[1:]:
        now = state.params, state.batch_stats
        average = jax.tree.map(lambda a, x: a + (np.float64(x) - a) / AVERAGED, average, now)
    found = judged(own[-1])
    assert jax.tree.leaves(found[1])  # there are some
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-5), found, average)


def test_the_network_is_measured_with_the_statistics_of_its_average(runs):
    _, (trainer, inputs, own) = runs
    found = standing_at(trainer, inputs, own[-1])
    params, statistics = judged(own[-1])
    part = found.parts[0]
    expected = trainer.network.apply(params, statistics, part[trainer.task.inputs], None)[0]
    losses = trainer.task.losses(expected, part)
    np.testing.assert_allclose(found.loss(found.params, part).mean(), losses.mean(), rtol=1e-5)
    live = trainer.network.apply(params, own[-1].batch_stats, part[trainer.task.inputs], None)[0]
    assert abs(trainer.task.losses(live, part).mean() - losses.mean()) > 0.01


def test_other_methods_are_judged_as_they_are(runs):
    (_, _, plain), _ = runs
    assert judged(plain[-1]) == (plain[-1].params, plain[-1].batch_stats)
    assert optax.tree.get(plain[-1].opt_state, "average") is None
