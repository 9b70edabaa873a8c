"""The sharpness that is recorded of a run."""

import dataclasses

import jax
import jax.flatten_util
import jax.numpy as jnp
import optax
import pytest
from flax import linen as nn

from experiments import data
from experiments.models.network import Linen
from experiments.running import programs
from experiments.running.inputs import make_inputs
from experiments.running.sharpness import top_eigenvalues
from experiments.settings import Settings
from experiments.settings.defaults import resolved


@pytest.mark.slow
def test_the_top_eigenvalue_equals_the_dense_hessian():
    class Tiny(nn.Module):
        @nn.compact
        def __call__(self, images, train):
            x = nn.Conv(2, (3, 3), strides=4)(images)
            x = nn.BatchNorm(use_running_average=not train)(x)
            return nn.Dense(3)(jnp.tanh(x).reshape(len(images), -1))

    settings = resolved(Settings(method="sgd", train_examples=60, batch_size=20))
    loaded = data.load(settings)
    label = loaded.train["label"] % 3
    loaded = loaded._replace(train=loaded.train | {"label": label})
    trainer = dataclasses.replace(programs.trainer_of(settings, loaded), network=Linen(Tiny()))
    examples = make_inputs(settings, loaded, trainer.task).examples
    images = trainer.task.prepare(loaded.train, examples.constants, None)["image"]
    variables = Tiny().init(jax.random.key(1), images, train=False)
    params, unravel = jax.flatten_util.ravel_pytree(variables["params"])

    def loss(flat):
        logits = Tiny().apply(variables | {"params": unravel(flat)}, images, train=False)
        return optax.losses.softmax_cross_entropy_with_integer_labels(logits, label).mean()

    expected = jnp.linalg.eigvalsh(jax.hessian(loss)(params))[-1]
    found = top_eigenvalues(trainer, variables["params"], variables["batch_stats"], examples)
    assert found.values[0] == pytest.approx(float(expected), rel=1e-4)
