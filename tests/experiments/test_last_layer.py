"""The penalty on the last layer, against its gradient written by hand."""

import jax
import numpy as np
import pytest

from experiments.data import load
from experiments.methods.last_layer import PENALTY, with_penalty
from experiments.models import samformer
from experiments.models.network import Linen
from experiments.models.small import Perceptron
from experiments.running.inputs import make_inputs
from experiments.running.programs import trainer_of
from experiments.settings import Settings, SettingsError
from experiments.settings.defaults import resolved
from experiments.settings.of_method import MethodSettings


def stepped(method, **own):
    """The parameters before and after one step of plain descent, and the examples that it saw."""
    setup = Settings(
        data="mnist1d",
        batch_size=100,
        method=method,
        method_settings=MethodSettings(**own),
        learning_rate=0.1,
        momentum=0.0,
        weight_decay=0.0,
        schedule="constant",
    )
    settings = resolved(setup)
    data = load(settings)
    trainer = trainer_of(settings, data)
    inputs = make_inputs(settings, data, trainer.task)
    state = jax.jit(trainer.init)(inputs)
    examples = jax.tree.map(lambda x: x[:100], inputs.examples.train)
    step = jax.jit(lambda s: trainer.step(s, inputs, examples, np.arange(100), False))
    batch = trainer.task.prepare(examples, inputs.examples.constants, jax.random.key(0))
    return jax.tree.map(np.float64, (state.params, step(state).params)), np.float64(
        batch[trainer.task.inputs]
    )


@pytest.mark.parametrize("penalty", [0.0, 0.03, None])
def test_it_adds_the_gradient_of_the_squares_of_the_last_layer_and_of_its_inputs(penalty):
    own = {} if penalty is None else {"penalty": penalty}
    (params, after), x = stepped("last_layer_l2", **own)
    (_, plain), _ = stepped("sgd")
    penalty = PENALTY if penalty is None else penalty
    first, second, last = (params[f"Dense_{number}"] for number in range(3))
    u = x.reshape(len(x), -1) @ first["kernel"] + first["bias"]
    h = np.maximum(u, 0)
    v = h @ second["kernel"] + second["bias"]
    z = np.maximum(v, 0)
    dv = penalty / len(x) * z * (v > 0)
    du = dv @ second["kernel"].T * (u > 0)
    wanted = {
        "Dense_0": {"kernel": x.reshape(len(x), -1).T @ du, "bias": du.sum(0)},
        "Dense_1": {"kernel": h.T @ dv, "bias": dv.sum(0)},
        "Dense_2": {"kernel": penalty * last["kernel"], "bias": 0 * last["bias"]},
    }
    moved = jax.tree.map(lambda one, other: (one - other) / 0.1, plain, after)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-6), moved, wanted)


def test_a_network_without_a_last_dense_layer_of_one_example_is_refused():
    network = Linen(samformer.SAMformer(24))
    inputs = np.zeros([2, 48, 7], np.float32)
    params, stats = network.init(jax.random.key(0), inputs)
    with pytest.raises(SettingsError, match="--method last_layer_l2 needs a network"):
        with_penalty(network.apply, 0.1)(params, stats, inputs, jax.random.key(1))


def test_other_methods_have_no_penalty():
    network = Linen(Perceptron(3))
    inputs = np.zeros([2, 4], np.float32)
    params, stats = network.init(jax.random.key(0), inputs)
    assert with_penalty(network.apply, None)(params, stats, inputs, jax.random.key(1))[1] is None
