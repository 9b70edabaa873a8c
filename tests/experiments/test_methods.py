"""Methods by their names on the command line."""

import jax
import jax.flatten_util
import jax.numpy as jnp
import pytest

from experiments import data, methods
from experiments.running import programs
from experiments.running.inputs import make_inputs
from experiments.settings import Settings
from experiments.settings.defaults import resolved
from tests.registry import over


@pytest.mark.parametrize("name", over(methods.METHODS))
def test_every_method_fits_into_the_training_loop(name):
    """Its step traces, and gives back a state of the same shapes; nothing is compiled."""
    settings = resolved(Settings(method=name, train_examples=60, batch_size=20))
    loaded = data.load(settings)
    trainer = programs.trainer_of(settings, loaded)
    inputs = make_inputs(settings, loaded, trainer.task)
    state = jax.eval_shape(trainer.init, inputs)
    whole = name in methods.WHOLE_FIRST_EPOCH
    batch = jax.tree.map(lambda array: array[:20], inputs.examples.train)
    indices = jax.ShapeDtypeStruct((20,), jnp.int32)
    after = jax.eval_shape(lambda *args: trainer.step(*args, whole), state, inputs, batch, indices)
    assert after == state
