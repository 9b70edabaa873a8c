"""The networks have the parameters of the published ones, and train in either precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import data
from experiments.models import MODELS, module
from experiments.running import programs
from experiments.running.inputs import make_inputs
from experiments.settings import Settings
from experiments.settings.defaults import resolved
from tests.registry import over

PUBLISHED = {
    ("resnet18", 10, 32): 11_173_962,
    ("resnet18", 1000, 224): 11_689_512,
    ("resnet50", 1000, 224): 25_557_032,
    ("wrn16_8", 10, 32): 10_961_370,
    ("wrn28_10", 10, 32): 36_479_194,
    ("pyramidnet110", 10, 32): 28_485_477,
    ("mobilenet", 1000, 224): 4_231_976,
    ("vit_ti", 1000, 224): 5_717_416,
    ("vit_s", 1000, 224): 22_050_664,
}


SMALL = {"conv", "strided", "resnet8", "simcc", "text", "mlp", "conv1d", "samformer", "decoder"}
ELSEWHERE = {"minilm"}  # counted in test_minilm.py
WIDTHS = {f"mlp{width}" for width in (32, 64, 128, 512, 1024, 2048)}
LARGE = ("pyramidnet110", "vit_s")  # to trace


def test_every_network_is_counted():
    assert {name for name, _, _ in PUBLISHED} | SMALL | WIDTHS | ELSEWHERE == set(MODELS)


@pytest.mark.parametrize(
    ("name", "classes", "side"),
    [pytest.param(*key, marks=[pytest.mark.slow] * (key[0] in LARGE)) for key in PUBLISHED],
)
def test_the_parameters_are_as_many_as_published(name, classes, side, as_optax_promotes):
    model = module(name, classes, side, jnp.bfloat16)
    images = jnp.zeros((2, side, side, 3))
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))
    assert sum(x.size for x in jax.tree.leaves(variables["params"])) == PUBLISHED[name, classes, side]
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    logits = jax.eval_shape(lambda variables: model.apply(variables, images, train=False), variables)
    assert logits.shape == (2, classes) and logits.dtype == jnp.bfloat16


@pytest.mark.parametrize("name", over(["conv", "mobilenet", "vit_ti"], ["conv"]))
def test_a_step_in_low_precision_keeps_the_state_as_it_was(name, as_optax_promotes):
    settings = resolved(Settings(method="sam", model=name, dtype="bfloat16", train_examples=60))
    loaded = data.load(settings)
    trainer = programs.trainer_of(settings, loaded)
    inputs = make_inputs(settings, loaded, trainer.task)
    state = jax.eval_shape(trainer.init, inputs)
    after = jax.eval_shape(lambda s, i: trainer.steps(s, i, np.int32(1), whole_batch=False), state, inputs)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert [x.dtype for x in jax.tree.leaves(after)] == [x.dtype for x in jax.tree.leaves(state)]
    assert bool(state.batch_stats) == (name != "vit_ti")


@pytest.mark.slow
def test_the_nnx_network_trains_as_the_linen_one_does():
    """The same weights, in two libraries: a few steps of SAM end at the same weights and statistics."""
    ends = {}
    for name in ("conv", "conv_nnx"):
        settings = resolved(Settings(model=name, train_examples=60, batch_size=20, learning_rate=0.1))
        loaded = data.load(settings)
        compiled = programs.compile_programs(settings, loaded)
        inputs = compiled.inputs(settings, loaded)
        state = compiled.init(inputs)
        if name == "conv":
            layers = {f"conv{n}": {"kernel": state.params[f"Conv_{n - 1}"]["kernel"]} for n in (1, 2, 3)}
            layers |= {f"norm{n}": dict(state.params[f"BatchNorm_{n - 1}"]) for n in (1, 2, 3)}
            weights = jax.tree.map(np.asarray, layers | {"dense": dict(state.params["Dense_0"])})
        else:
            assert jax.tree.structure(state.params) == jax.tree.structure(weights)
            state = jax.device_put(state._replace(params=weights), inputs.numbers["seed"].sharding)
        ends[name] = compiled.steps(state, inputs, np.int32(4))
    one, other = ends.values()
    np.testing.assert_allclose(float(one.loss_sum), float(other.loss_sum), rtol=1e-5)
    np.testing.assert_allclose(one.params["Conv_1"]["kernel"], other.params["conv2"]["kernel"], atol=1e-5)
    var = other.batch_stats["norm3"]["var"]
    np.testing.assert_allclose(one.batch_stats["BatchNorm_2"]["var"], var, rtol=1e-4)
