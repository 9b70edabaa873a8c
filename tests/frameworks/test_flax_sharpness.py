"""Models of Flax NNX whose losses write into variables, measured."""

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import optax_sam.flax
from optax_sam import sharpness
from optax_sam.sharpness import reuse


class Net(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(3, 4, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.drop = nnx.Dropout(0.3, rngs=rngs)
        self.last = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        return self.last(self.drop(jnp.tanh(self.norm(self.first(x)))))


def loss_fn(model, batch):
    return optax.softmax_cross_entropy_with_integer_labels(model(batch["x"]), batch["label"])


BATCH = {"x": jax.random.normal(jax.random.key(0), (8, 3)), "label": jnp.arange(8) % 2}


@pytest.mark.slow
def test_a_loss_that_writes_statistics_and_counts_is_one_fixed_function():
    model = Net(nnx.Rngs(0))
    before = jax.tree.map(jnp.copy, nnx.as_pure(nnx.state(model, nnx.Not(nnx.RngKey))))
    losses, params = optax_sam.flax.nnx_losses(loss_fn, model)
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    exact = np.linalg.eigvalsh(jax.hessian(lambda v: losses(unravel(v), BATCH).mean())(flat))[-1]
    found = sharpness.top_eigenvalues(losses, params, [BATCH], tolerance=1e-5)
    assert found.values[0] == pytest.approx(exact, rel=1e-3)
    count = len(reuse._COMPILED)
    again = sharpness.top_eigenvalues(*optax_sam.flax.nnx_losses(loss_fn, model), [BATCH], tolerance=1e-5)
    assert again.values[0] == found.values[0] and len(reuse._COMPILED) == count  # compiled once
    after = nnx.as_pure(nnx.state(model, nnx.Not(nnx.RngKey)))
    jax.tree.map(np.testing.assert_array_equal, before, after)
    layers = sharpness.by_layer(losses, params, BATCH, num_products=2, max_products=0)
    assert layers.names == ("first", "last", "norm")


def test_the_loss_is_that_of_the_model_and_wrt_says_what_is_a_parameter():
    model = Net(nnx.Rngs(1))
    model.eval()
    losses, params = optax_sam.flax.nnx_losses(loss_fn, model, wrt=nnx.PathContains("last"))
    np.testing.assert_allclose(losses(params, BATCH), loss_fn(model, BATCH), rtol=1e-6)
    assert sum(x.size for x in jax.tree.leaves(params)) == 4 * 2 + 2
    with pytest.raises(ValueError, match="chooses no variable of the model"):
        optax_sam.flax.nnx_losses(loss_fn, model, wrt=nnx.PathContains("nowhere"))
