"""The base optimizers, their schedules, and the weight decay that is perturbed or not."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_sam
from experiments import data
from experiments.data.arrays import rows
from experiments.methods.optimizers import base_optimizer, schedule_of
from experiments.running import programs
from experiments.settings import Settings
from experiments.settings.defaults import resolved
from experiments.settings.of_method import MethodSettings
from tests.experiments.runs import run


def test_the_learning_rate_rises_then_falls_along_a_cosine():
    settings = Settings(epochs=5, warmup_epochs=1.5)
    rates = [float(schedule_of(settings, 0.2, 4)(step)) for step in range(21)]
    rise = [0.2 * step / 6 for step in range(6)]
    fall = [0.1 * (1 + np.cos(np.pi * step / 14)) for step in range(15)]
    np.testing.assert_allclose(rates, rise + fall, atol=1e-7)
    constant = schedule_of(dataclasses.replace(settings, schedule="constant", warmup_epochs=0.0), 0.2, 4)
    assert constant(0) == constant(19) == 0.2
    almost_all = schedule_of(Settings(epochs=1, warmup_epochs=0.99), 0.2, 4)
    np.testing.assert_allclose([almost_all(0), almost_all(3), almost_all(4)], [0, 0.2, 0], atol=1e-7)


@pytest.mark.parametrize("name", ["sgd", "adamw", "lamb"])
def test_base_optimizers_are_those_of_optax(name):
    params = {"w": jnp.arange(1.0, 5.0), "v": jnp.array([[0.5, -2.0]])}
    grads = {"w": jnp.array([3.0, -1.0, 0.0, 2.0]), "v": jnp.array([[1.0, 4.0]])}
    settings = Settings(optimizer=name, momentum=0.8, nesterov=name == "sgd", clip_norm=2.0)
    expected = {
        "sgd": optax.chain(optax.add_decayed_weights(0.01), optax.sgd(0.1, 0.8, nesterov=True)),
        "adamw": optax.adamw(0.1, b1=0.8, weight_decay=0.01),
        "lamb": optax.lamb(0.1, b1=0.8, weight_decay=0.01),
    }[name]
    expected = optax.chain(optax.clip_by_global_norm(2.0), expected)
    found = base_optimizer(settings, optax.constant_schedule(0.1), 0.01)
    ends = []
    for optimizer in (found, expected):
        state, weights = optimizer.init(params), params
        for _ in range(3):
            updates, state = optimizer.update(grads, state, weights)
            weights = optax.apply_updates(weights, updates)
        ends.append(weights)
    jax.tree.map(np.testing.assert_array_equal, *ends)


@pytest.mark.parametrize("decay_in_loss", [pytest.param(False, marks=pytest.mark.slow), True])
def test_decay_in_the_loss_is_perturbed_and_decay_after_the_method_is_not(decay_in_loss):
    """One step of SAM with plain SGD, written out."""
    settings = Settings(
        model="conv_nnx",
        train_examples=60,
        batch_size=60,
        learning_rate=0.1,
        weight_decay=0.05,
        momentum=0.0,
        decay_in_loss=decay_in_loss,
        method_settings=MethodSettings(rho=0.3),
    )
    settings = resolved(settings)
    loaded = data.load(settings)
    trainer = programs.trainer_of(settings, loaded)
    inputs = programs.make_inputs(settings, loaded, trainer.task)
    state = jax.jit(trainer.init)(inputs)

    @jax.jit
    def written_out(params):
        batch = trainer.task.prepare(inputs.examples.train, inputs.examples.constants, None)

        def loss(params):
            outputs, _ = trainer.network.apply(params, state.batch_stats, batch["image"], jax.random.key(0))
            losses = optax.softmax_cross_entropy_with_integer_labels(outputs, batch["label"])
            squares = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params))
            return losses.mean() + (0.5 * 0.05 * squares if decay_in_loss else 0.0)

        grads = jax.grad(loss)(params)
        length = 0.3 / optax.tree.norm(grads)
        there = jax.grad(loss)(jax.tree.map(lambda w, g: w + length * g, params, grads))
        decay = 0.0 if decay_in_loss else 0.05
        return jax.tree.map(lambda w, g: w - 0.1 * (g + decay * w), params, there)

    step = jax.jit(trainer.step, static_argnums=4)
    after = step(state, inputs, rows(inputs.examples.train, jnp.arange(60)), jnp.arange(60), False)
    for found, expected in zip(*map(jax.tree.leaves, (after.params, written_out(state.params))), strict=True):
        np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-6)
    assert optax_sam.info(after.opt_state)["gradients"] == 2


@pytest.mark.slow
def test_layer_wise_sam_trains_with_lamb(tmp_path):
    """A large batch; LookSAM's layer-wise perturbation before the layer-wise steps of LAMB."""
    args = ["--method", "look_layersam", "--rho", "0.1", "--optimizer", "lamb", "--batch-size", "250"]
    args += ["--warmup-epochs", "1", "--epochs", "10", "--label-noise", "0"]
    result = run(tmp_path / "x", *args)
    assert result["test_accuracy"] > 0.3 and result["gradients"] == 20 + 4  # a tenth is chance
