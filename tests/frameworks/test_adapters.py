"""SAM over an adapter's leaves alone, above frozen weights in float32 and in int8: NNX and Equinox."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import optax_sam
import optax_sam.flax
from tests.problem import make_batch

RHO, RATE, RANK = 0.3, 0.1, 2


@pytest.fixture(autouse=True)
def promotion_as_the_libraries_need_it():
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


def quantized(kernel):
    """Rows of 8 bits, and what one step of each is."""
    scale = jnp.max(jnp.abs(kernel), axis=0, keepdims=True) / 127
    return jnp.round(kernel / scale).astype(jnp.int8), scale


class Frozen(nnx.Module):
    """A quantized layer; its arrays are no parameters."""

    def __init__(self, inputs, outputs, rngs):
        kernel, scale = quantized(jax.random.normal(rngs.params(), (inputs, outputs)))
        self.kernel, self.scale = nnx.Variable(kernel), nnx.Variable(scale)

    def __call__(self, x):
        return x @ (self.kernel[...] * self.scale[...])


class Net(nnx.Module):
    def __init__(self, base, rngs):
        self.first = nnx.LoRA(5, RANK, 3, base_module=base, rngs=rngs)
        self.first.lora_b[...] = 0.5 * jax.random.normal(rngs.params(), (RANK, 3))

    def __call__(self, x):
        return self.first(x)


class Adapted(eqx.Module):
    """A small LoRA by hand: a frozen layer, and two matrices beside it."""

    kernel: jax.Array
    scale: jax.Array
    a: jax.Array
    b: jax.Array

    def __init__(self, kernel, key, is_quantized):
        one, other = jax.random.split(key)
        self.kernel, self.scale = quantized(kernel) if is_quantized else (kernel, jnp.ones((1, 3)))
        self.a, self.b = jax.random.normal(one, (5, RANK)), jax.random.normal(other, (RANK, 3))

    def __call__(self, x):
        return x @ (self.kernel * self.scale) + (x @ self.a) @ self.b


quantized_or_not = pytest.mark.parametrize(
    "is_quantized", [pytest.param(False, marks=pytest.mark.slow), True], ids=["float32", "int8"]
)


def losses(model, batch):
    return optax.softmax_cross_entropy_with_integer_labels(model(batch["image"]), batch["label"])


def sam_in_numpy(kernel, a, b, steps):
    """Two gradients by `a` and `b` in float64, the radius over both alone, and plain descent."""
    kernel, a, b = (np.asarray(x, np.float64) for x in (kernel, a, b))

    def gradient(a, b, batch):
        x, label = np.asarray(batch["image"], np.float64), np.asarray(batch["label"])
        logits = x @ (kernel + a @ b)
        delta = np.exp(logits - logits.max(1, keepdims=True))
        delta /= delta.sum(1, keepdims=True)
        delta[np.arange(len(label)), label] -= 1
        whole = x.T @ delta / len(label)
        return whole @ b.T, a.T @ whole

    for number in range(steps):
        ga, gb = gradient(a, b, make_batch(number))
        norm = np.sqrt(np.sum(ga**2) + np.sum(gb**2))
        da, db = gradient(a + RHO * ga / norm, b + RHO * gb / norm, make_batch(number))
        a, b = a - RATE * da, b - RATE * db
    return a, b


def assert_close(found, wanted):
    for x, y in zip(found, wanted, strict=True):
        np.testing.assert_allclose(x, y, rtol=2e-5, atol=2e-6)


@quantized_or_not
def test_nnx_moves_the_adapter_alone(is_quantized):
    rngs = nnx.Rngs(0)
    base = Frozen(5, 3, rngs) if is_quantized else nnx.Linear(5, 3, use_bias=False, rngs=rngs)
    model = Net(base, rngs)
    kernel = np.asarray(base(jnp.eye(5)))
    first = np.asarray(model.first.lora_a[...]), np.asarray(model.first.lora_b[...])
    rest = jax.tree.map(np.array, nnx.as_pure(nnx.state(model, nnx.Not(nnx.LoRAParam))))

    tx = optax.chain(sam := optax_sam.sam(RHO), optax.sgd(RATE))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.LoRAParam)

    @nnx.jit
    def step(model, optimizer, batch):
        _, grads, oracle = optax_sam.flax.nnx_value_and_grad(sam, losses)(model, batch, optimizer=optimizer)
        optimizer.update(model, grads, oracle=oracle)

    for number in range(3):
        step(model, optimizer, make_batch(number))
    assert_close((model.first.lora_a[...], model.first.lora_b[...]), sam_in_numpy(kernel, *first, 3))
    after = nnx.as_pure(nnx.state(model, nnx.Not(nnx.LoRAParam)))
    jax.tree.map(np.testing.assert_array_equal, after, rest)


@quantized_or_not
def test_equinox_moves_the_adapter_alone(is_quantized):
    model = Adapted(jax.random.normal(jax.random.key(0), (5, 3)), jax.random.key(1), is_quantized)
    is_adapter = eqx.tree_at(lambda m: (m.a, m.b), jax.tree.map(lambda _: False, model), (True, True))
    adapter, frozen = eqx.partition(model, is_adapter)
    wanted = sam_in_numpy(model.kernel * model.scale, model.a, model.b, 3)
    tx = optax.chain(optax_sam.sam(RHO), optax.sgd(RATE))

    def of_adapter(adapter, batch, frozen):
        return losses(eqx.combine(adapter, frozen), batch)

    step, state = eqx.filter_jit(optax_sam.step(tx, of_adapter)), tx.init(adapter)
    for number in range(3):
        adapter, state, _ = step(adapter, state, make_batch(number), frozen)
    assert_close((adapter.a, adapter.b), wanted)
    assert optax_sam.info(state)["perturbation_norm"] == pytest.approx(RHO, rel=1e-5)
    assert (frozen.kernel.dtype == jnp.int8) == is_quantized
