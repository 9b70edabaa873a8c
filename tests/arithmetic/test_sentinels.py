"""Which leaves of a batch may say something by NaN and infinities."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from optax_sam.arithmetic.sentinels import Meant, meant

CASES = {
    "added": (lambda w, x: w + 2.0 * x, Meant.ANYTHING),
    "added, compiled": (lambda w, x: jax.jit(jnp.add)(w, x), Meant.ANYTHING),
    "added in a branch": (lambda w, x: lax.cond(w[0] > 0, lambda: w - x, lambda: w), Meant.ANYTHING),
    "added in a loop": (
        lambda w, x: lax.scan(lambda c, _: (jnp.tanh(c + x), None), w, length=2)[0],
        Meant.ANYTHING,
    ),
    "added, then multiplied": (lambda w, x: (w + x) * (w - 1.0), Meant.NOTHING),
    "added, then asked for": (lambda w, x: jnp.nan_to_num(3.0 * (w + x)) * x, Meant.ANYTHING),
    "multiplied by what has no derivative": (lambda w, x: jnp.exp(lax.stop_gradient(w) * x), Meant.ANYTHING),
    "multiplied by a comparison": (lambda w, x: w + jnp.exp((w > 0).astype(x.dtype) * x), Meant.ANYTHING),
    "added, then rounded and compared": (
        lambda w, x: jnp.where(jnp.floor(w + x) < 3.0, w * x, 0.0),
        Meant.ANYTHING,
    ),
    "a power": (lambda w, x: w * x**-1.5, Meant.ANYTHING),
    "convolved": (lambda w, x: jnp.convolve(x, w), Meant.NOTHING),
    "normalized": (lambda w, x: w @ (x / jnp.sqrt(jnp.sum(x * x))), Meant.INFINITIES),
    "features of a network": (lambda w, x: jax.nn.leaky_relu(jnp.tanh(x * w) + w), Meant.NOTHING),
    "chosen": (lambda w, x: jnp.where(w > 0, w, x), Meant.ANYTHING),
    "multiplied": (lambda w, x: w * (1 + x), Meant.NOTHING),
    "added and multiplied": (lambda w, x: (w + x) * jnp.square(x), Meant.NOTHING),
    "multiplied by what is finite": (lambda w, x: w * jnp.exp(x) + w * jax.nn.softmax(x), Meant.INFINITIES),
    "a divisor": (lambda w, x: w / jnp.square(x), Meant.INFINITIES),
    "divided": (lambda w, x: x / w, Meant.NOTHING),
    "sorted by": (lambda w, x: jnp.cumsum(w[jnp.argsort(x)]) + w[lax.top_k(x, 3)[1]], Meant.ANYTHING),
    "multiplied in a branch": (lambda w, x: lax.cond(w[0] > 0, lambda: w * x, lambda: w), Meant.NOTHING),
    "multiplied in a loop": (
        lambda w, x: lax.scan(lambda c, _: (c @ x * jnp.ones(3), None), w, length=2)[0],
        Meant.NOTHING,
    ),
    "multiplied by what a loop has carried": (
        lambda w, x: lax.scan(lambda c, _: ((c[1], c[0] * c[1]), None), (w, x), length=2)[0][1],
        Meant.NOTHING,
    ),
    "in a loop of unknown length": (
        lambda w, x: lax.while_loop(lambda c: c[0] < 1, lambda c: c + x, w),
        Meant.ANYTHING,
    ),
    "asked for": (lambda w, x: jnp.where(jnp.isnan(x), 0.0, w * x), Meant.ANYTHING),
    "compared": (lambda w, x: jnp.where(x[:, None] >= x[None], w, 0.0).sum(1), Meant.ANYTHING),
    "asked for in what is made of it": (
        lambda w, x: jnp.where(jnp.isnan(jnp.linalg.norm(x)), 0.0, w * x),
        Meant.ANYTHING,
    ),
    "its largest entry is asked for NaN": (
        lambda w, x: jnp.where(jnp.isnan(jnp.max(x)), 0.0, w * x),
        Meant.ANYTHING,
    ),
    "a sum is tested": (lambda w, x: jnp.where(jnp.isfinite(x.sum()), w * x, 0.0), Meant.ANYTHING),
    "infinities": (lambda w, x: jnp.where(jnp.isinf(x), 0.0, w * x), Meant.ANYTHING),
    "shifted, scaled and compared": (
        lambda w, x: jnp.where(jnp.abs(2 * x - 1) / 3 > 1e9, 0.0, w * x),
        Meant.ANYTHING,
    ),
    "sorted by in other units": (lambda w, x: w[jnp.argsort(-x / 10)], Meant.ANYTHING),
    "its spread is compared with zero": (
        lambda w, x: w * x / jnp.where(x.std() == 0, 1.0, x.std()),
        Meant.ANYTHING,
    ),
    "the larger one of two": (lambda w, x: w * jnp.maximum(jnp.sum(x), 1.0), Meant.INFINITIES),
    "a function of its largest entry that is tested": (lambda w, x: w * jax.nn.logsumexp(x), Meant.ANYTHING),
}


@pytest.mark.parametrize("name", CASES)
def test_what_of_an_array_may_be_a_sign(name):
    function, wanted = CASES[name]
    jaxpr = jax.make_jaxpr(function)(jnp.ones(3), jnp.ones(3)).jaxpr
    assert meant(jaxpr, [True, False], [False, True]) == [Meant.NOTHING, wanted]
