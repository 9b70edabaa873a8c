"""Batches of unequal sizes, as they are once padding is cut off."""

import jax
import jax.numpy as jnp
import numpy as np

from optax_sam import sharpness

RANDOM = np.random.default_rng(0)
W = RANDOM.normal(size=4).astype(np.float32)


def padded(real):
    """Eight rows, so many of them real."""
    x, y = RANDOM.normal(size=[8, 4]), 3 * RANDOM.normal(size=8)
    return {"x": x.astype(np.float32), "y": y.astype(np.float32), "real": np.arange(8) < real}


def losses(w, batch):
    return (jnp.tanh(batch["x"] @ w) - batch["y"]) ** 2


def test_rows_without_padding_are_measured_as_one_batch_of_them():
    """Against the exact Hessian and gradients of the nine real rows."""
    batches = [jax.tree.map(lambda x, b=b: x[b["real"]], b) for b in (padded(8), padded(1))]
    whole = jax.tree.map(lambda *parts: np.concatenate(parts), *batches)
    hessian = jax.hessian(lambda w: losses(w, whole).mean())(W)
    found = sharpness.top_eigenvalues(losses, W, batches)
    np.testing.assert_allclose(found.values[0], np.linalg.eigvalsh(hessian)[-1], rtol=1e-5)
    gradients = np.asarray(jax.jacobian(losses)(W, whole), float)
    noise = sharpness.gradient_noise(losses, W, batches)
    np.testing.assert_allclose(noise.variance, gradients.var(axis=0, ddof=1).sum(), rtol=1e-4)
    np.testing.assert_allclose(noise.grad_norm, np.linalg.norm(gradients.mean(axis=0)), rtol=1e-4)
    assert noise.norms.shape == (9,)
