"""Examples that count more in a gradient: by numbers of any dtype, beside weights of any other."""

import jax.numpy as jnp
import numpy as np
import pytest

import optax_sam
from optax_sam import ascents, selections


@pytest.mark.parametrize("slices", [1, 2])
@pytest.mark.parametrize("dtype", ["int32", "bool", "bfloat16", "float32"])
def test_weights_are_not_cut_to_the_dtype_of_the_emphasis(dtype, slices):
    emphasis = jnp.asarray([0, 1, 1, 3], dtype)
    method = optax_sam.sharpness_aware(
        ascents.to_radius(0.0), selection=selections.emphasized(lambda batch: emphasis)
    )
    method = optax_sam.accumulated(method, slices)
    x, weights = np.array([1.0, 10.0, 3.0, 5.0]), np.array([0.5, 0.7, 1.0, 0.25])
    w = jnp.array(1.0)
    state = method.init(w)
    _, grads, oracle = method.value_and_grad(lambda w, x: w * x)(
        w, jnp.asarray(x), state=state, weights=jnp.asarray(weights)
    )
    descent, _ = method.update(grads, state, w, oracle=oracle)
    chances = np.asarray(emphasis, np.float64) * weights
    np.testing.assert_allclose(descent, (chances * x).sum() / chances.sum(), rtol=1e-6)
