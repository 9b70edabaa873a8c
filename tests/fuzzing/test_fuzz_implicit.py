"""Random losses of layers whose equations hold jaxprs or rules: the gradients and norms are those of JAX."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from jax import lax

from optax_sam import canonical_convolutions, per_example
from tests.arithmetic.convolutions import assert_same
from tests.arithmetic.implicit import LAYERS, SIZE, blurred, plain
from tests.fuzzing.settings import SHARDS, fuzz

AROUND: dict[str, Callable[[Any], Any]] = {
    "nothing": lambda layer: layer,
    "jit": jax.jit,
    "checkpoint": jax.checkpoint,
    "scan": lambda layer: lambda d, x: lax.scan(lambda x, _: (layer(d, x), None), x, length=2)[0],
    "cond": lambda layer: lambda d, x: lax.cond(x[0] > 0, layer, lambda d, x: d * x, d, x),
    "vmap": lambda layer: (
        lambda d, x: jnp.sum(jax.vmap(layer, (None, 0))(d, jnp.stack([x, 0.5 * x])), axis=0)
    ),
}


@dataclasses.dataclass(frozen=True)
class Layer:
    """One layer, what is convolved, and what stands around it."""

    name: str
    inside: bool
    beside: bool
    around: str

    def __call__(self, d: jax.Array, x: jax.Array) -> jax.Array:
        inner = blurred if self.inside else plain
        layer = AROUND[self.around](lambda d, x: LAYERS[self.name](d, x, inner))
        return layer(d, blurred(x) if self.beside else x)


layers = st.builds(
    Layer,
    name=st.sampled_from(list(LAYERS)),
    inside=st.booleans(),
    beside=st.booleans(),
    around=st.sampled_from(list(AROUND)),
).filter(
    lambda layer: layer.name != "custom_vjp with a constant number" or layer.around in ("nothing", "vmap")
)
# Inside a jaxpr, JAX itself gives a rule the numbers of NumPy.


def check(drawn: list[Layer], seed_of_values: int) -> list[str]:
    """A loss of layers one after the other: its gradient after and before the rewriting, and its norms."""
    draw = np.random.default_rng(seed_of_values).normal
    params = [jnp.asarray(0.5 * draw(size=SIZE), jnp.float32) for _ in drawn]
    batch = jnp.asarray(draw(size=(3, SIZE)), jnp.float32)

    def of_one(params, x):
        for layer, d in zip(drawn, params, strict=True):
            x = jnp.tanh(layer(d, x))
        return jnp.vdot(x, x)

    def loss_fn(params, batch):
        return jax.vmap(lambda x: of_one(params, x))(batch)

    def gradient(params):
        return jax.grad(lambda params: jnp.mean(loss_fn(params, batch)))(params)

    def before(params):
        held = canonical_convolutions(lambda params: loss_fn(params, batch))
        return jax.grad(lambda params: jnp.mean(held(params)))(params)

    @jax.jit
    def all_of_them(params):
        singles = jax.vmap(lambda x: jax.grad(of_one)(params, x))(batch)
        norms = jnp.sqrt(sum(jnp.sum(jnp.square(g), axis=1) for g in singles))
        wanted = gradient(params)
        found = per_example.gradient_norms(loss_fn, params, batch)
        return [(canonical_convolutions(gradient)(params), wanted), (before(params), wanted), (found, norms)]

    for got, wanted in all_of_them(params):
        try:
            assert_same(got, wanted, rtol=1e-3, atol=1e-5)
        except AssertionError as error:
            raise AssertionError(f"{drawn}") from error
    return [layer.name for layer in drawn]


def test_random_layers_have_the_gradients_and_norms_of_jax():
    seen = fuzz(check, 3, seed=0, drawn=st.lists(layers, min_size=2, max_size=2), seed_of_values=st.just(0))
    assert sum(seen.values()) == 6


@pytest.mark.slow
@pytest.mark.parametrize("shard", range(SHARDS))
def test_hundreds_of_random_layers_have_the_gradients_and_norms_of_jax(shard):
    drawn = st.lists(layers, min_size=1, max_size=3)
    seen = fuzz(check, 25, seed=1 + shard, drawn=drawn, seed_of_values=st.integers(0, 9))
    assert sum(seen.values()) >= 25
