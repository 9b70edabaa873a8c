"""The tiny problem of the tests: a network of two layers, its losses, batches, and how trees are compared."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

BATCH = 16
NUM_EXAMPLES = 48


def init_params(dtype: Any = jnp.float32) -> dict[str, Any]:
    """A network of two layers, 5 to 7 to 3, with tanh between."""

    def layer(seed, inputs, outputs):
        kernel, bias = jax.random.split(jax.random.key(seed))
        return {
            "kernel": (0.6 * jax.random.normal(kernel, [inputs, outputs])).astype(dtype),
            "bias": (0.1 * jax.random.normal(bias, [outputs])).astype(dtype),
        }

    return {"layer_0": layer(1, 5, 7), "layer_1": layer(2, 7, 3)}


def losses(params: Any, batch: Any) -> jax.Array:
    """Cross entropy of the network, one per example."""
    hidden = jnp.tanh(batch["image"] @ params["layer_0"]["kernel"] + params["layer_0"]["bias"][None])
    logits = hidden @ params["layer_1"]["kernel"] + params["layer_1"]["bias"][None]
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])


def make_batch(seed: int = 0, size: int = BATCH, dtype: Any = jnp.float32) -> dict[str, jax.Array]:
    """Asymmetric random inputs with labels."""
    rng = np.random.default_rng(seed)
    image = rng.normal(size=(size, 5)) + np.linspace(0, 1, 5)
    return {
        "image": jnp.asarray(image, dtype),
        "label": jnp.asarray(rng.integers(0, 3, size), jnp.int32),
    }


def make_indices(seed: int = 0, size: int = BATCH) -> jax.Array:
    """Numbers of the batch's examples in the data set, none twice."""
    return jnp.asarray(np.random.default_rng(seed).permutation(NUM_EXAMPLES)[:size], jnp.int32)


def assert_trees_close(got: Any, wanted: Any, rtol: float = 1e-6, atol: float = 1e-7) -> None:
    """Same structure, same dtypes, close values."""
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_allclose(np.asarray(x), np.asarray(y), rtol=rtol, atol=atol)


def assert_trees_equal(got: Any, wanted: Any) -> None:
    """Same structure, same dtypes, same bits."""
    assert_trees_close(got, wanted, rtol=0, atol=0)


@functools.cache
def base_trajectory() -> Any:
    """Four steps of the base optimizer alone, those of `registry.train`."""
    base = optax.sgd(0.1, momentum=0.9)
    params = init_params()
    state = base.init(params)

    @jax.jit
    def step(params, state, batch):
        grads = jax.grad(lambda p: jnp.mean(losses(p, batch)))(params)
        updates, state = base.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for number in range(4):
        params, state = step(params, state, make_batch(number))
    return params
