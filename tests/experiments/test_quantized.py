"""Learned step sizes against the equations of Esser et al. (2020), and networks trained with them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

import optax_sam
from experiments.models.quantized import Quantized, first_step_size, levels_of, quantize
from experiments.models.resnet import ResNet
from experiments.models.small import SmallConvNet
from experiments.models.text import TextTransformer

KEY = jax.random.key(0)
LABELS = jnp.arange(16) % 4
IMAGES = jax.random.normal(KEY, (16, 8, 8, 1)) + jnp.eye(4).repeat(16, 1).reshape(4, 8, 8, 1)[LABELS]
CONV = SmallConvNet(4, width=4)

# The equations


def literal(v, s, below, above):
    """Equations 1 to 3 and 5 of the paper: values, and derivatives with respect to v and s."""
    inside = (-below < v / s) & (v / s < above)
    values = np.round(np.clip(v / s, -below, above)) * s
    by_step = np.where(inside, -v / s + np.round(v / s), np.where(v / s <= -below, -below, above))
    return values, inside.astype(v.dtype), by_step


@pytest.mark.parametrize("signed", [0.0, 1.0])
@pytest.mark.parametrize("bits", [2, 3, 8])
def test_values_and_gradients_are_the_papers(bits, signed):
    random = np.random.default_rng(bits)
    below, above = levels_of(bits, signed)
    assert below + above == 2**bits - 1 and below == signed * 2 ** (bits - 1)
    s, weights = 0.25, random.normal(size=300)  # a power of two, so that the borders are hit
    v = np.concatenate([random.normal(size=296) * above * s / 2, s * np.array([-below, above, 0, 0.5])])
    with jax.enable_x64(True):
        loss = lambda v, s: weights @ quantize(v, s, (below, above), count=75)
        found = quantize(jnp.asarray(v), jnp.asarray(s), (below, above), count=75)
        by_v, by_step = jax.grad(loss, (0, 1))(jnp.asarray(v), jnp.asarray(s))
    values, expected_by_v, expected_by_step = literal(v, s, below, above)
    np.testing.assert_allclose(found, values, atol=1e-15)
    np.testing.assert_allclose(by_v, weights * expected_by_v, atol=1e-15)
    np.testing.assert_allclose(by_step, weights @ expected_by_step / np.sqrt(75 * above), rtol=1e-12)


def test_a_step_size_below_0_finds_back():
    v, levels = jnp.array([-1.0, 0.5, 2.0]), levels_of(2, 1.0)
    loss = lambda s: jnp.sum((quantize(v, s, levels, 3) - v) ** 2)
    assert jnp.isfinite(quantize(v, jnp.float32(-0.1), levels, 3)).all()
    assert jax.grad(loss)(jnp.float32(-0.1)) < 0


def test_first_step_sizes():
    v = jnp.array([-1.0, 3.0])
    np.testing.assert_allclose(first_step_size(v, levels_of(4, 1.0)), 4 / np.sqrt(7), rtol=1e-6)
    np.testing.assert_allclose(first_step_size(v, levels_of(4, 0.0)), 4 / np.sqrt(15), rtol=1e-6)
    assert first_step_size(jnp.zeros(3), levels_of(4, 0.0)) == 1


# Networks


def losses(network, stats, key=KEY):
    def losses(params, batch):
        outputs, changed = network.apply(params, stats, batch["inputs"], key)
        return optax.softmax_cross_entropy_with_integer_labels(outputs, batch["label"]), changed

    return losses


def kernels_seen(network, params, stats, inputs):
    """The weights with which the layers compute."""
    seen = {}

    def look(call, args, kwargs, context):
        if isinstance(context.module, (nn.Conv, nn.Dense)) and context.method_name == "__call__":
            seen[context.module.name] = context.module.variables["params"]["kernel"]
        return call(*args, **kwargs)

    with nn.intercept_methods(look):
        network.apply(params, stats, inputs, None)
    return seen


def test_layers_have_their_bits_and_signs():
    network = Quantized(CONV, bits=2)
    params, stats = jax.jit(network.init)(KEY, IMAGES)
    layers = {bits: sorted(group) for bits, group in params["lsq"].items()}
    assert layers == {"2": ["Conv_1", "Conv_2"], "8": ["Conv_0", "Dense_0"]}
    assert stats["signed"] == {"Conv_0": 1, "Conv_1": 0, "Conv_2": 0, "Dense_0": 0}
    seen = jax.jit(lambda *args: kernels_seen(network, *args))(params, stats, IMAGES)
    assert jax.tree.leaves_with_path(params)[-1][0][0].key == "network"  # where vSAM looks
    levels = {layer: len(np.unique(kernel)) for layer, kernel in seen.items()}
    assert all(3 <= levels[layer] <= 4 for layer in layers["2"])
    assert all(4 < levels[layer] <= 256 for layer in layers["8"])


def test_eight_bits_are_near_the_float_network():
    """The paper's first step sizes leave room for outliers; half as long ones are nearer yet."""
    network = Quantized(CONV, bits=8)
    params, stats = jax.jit(network.init)(KEY, IMAGES)
    variables = {"params": params["network"], "batch_stats": stats["network"]}
    expected, _ = jax.jit(lambda v: CONV.apply(v, IMAGES, train=True, mutable=["batch_stats"]))(variables)
    apply, errors = jax.jit(lambda params: network.apply(params, stats, IMAGES, KEY)[0]), []
    for factor in (1, 1 / 2, 1 / 4):
        found = apply(params | {"lsq": optax.tree.scale(factor, params["lsq"])})
        errors.append(float(jnp.linalg.norm(found - expected) / jnp.linalg.norm(expected)))
    assert 0.15 > errors[0] > 1.5 * errors[1] > 2 * errors[2]


@pytest.mark.parametrize("bits", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_training_with_sam_and_few_bits(bits):
    network, batch = Quantized(CONV, bits), {"inputs": IMAGES, "label": LABELS}
    sam = optax_sam.sam(rho=0.05)
    optimizer = optax.chain(sam, optax.sgd(0.1, momentum=0.9))

    @jax.jit
    def train(params, stats):
        def step(carry, _):
            params, stats, state = carry
            (loss, stats), grads, oracle = sam.value_and_grad(losses(network, stats), has_aux=True)(
                params, batch, state=state
            )
            updates, state = optimizer.update(grads, state, params, oracle=oracle)
            return (optax.apply_updates(params, updates), stats, state), (loss, grads["lsq"])

        return jax.lax.scan(step, (params, stats, optimizer.init(params)), length=30)

    params, stats = jax.jit(network.init)(KEY, IMAGES)
    (trained, after, _), (loss, by_steps) = train(params, stats)
    assert loss[-5:].mean() < 0.5 * loss[:5].mean()
    assert all(jnp.isfinite(leaf).all() and leaf.any() for leaf in jax.tree.leaves(by_steps))
    moved = jax.tree.map(lambda a, b: abs(a / b - 1), trained["lsq"], params["lsq"])
    assert all(0 < leaf for leaf in jax.tree.leaves(moved)) and max(jax.tree.leaves(moved)) > 0.01
    assert after["signed"] == stats["signed"]


@pytest.mark.parametrize(
    ("module", "inputs"),
    [(ResNet(4, (1, 1), width=4), IMAGES), (TextTransformer(4, width=8, vocabulary=9), LABELS.reshape(4, 4))],
    ids=["resnet", "text"],
)
def test_other_networks_and_gradients_of_single_examples(module, inputs):
    network = Quantized(module, bits=4)
    params, stats = jax.eval_shape(network.init, KEY, inputs)
    batch = {"inputs": inputs, "label": LABELS[: len(inputs)]}

    def single(params, stats, row):
        rows = jax.tree.map(lambda x: x[None], row)
        return jax.grad(lambda p: losses(network, stats, KEY)(p, rows)[0].sum())(params)

    grads = jax.eval_shape(jax.vmap(single, (None, None, 0)), params, stats, batch)
    assert jax.tree.structure(grads) == jax.tree.structure(params)
    layers = [layer for group in params["lsq"].values() for layer in group]
    kernels = [path for path, _ in jax.tree.leaves_with_path(params["network"]) if "kernel" in str(path)]
    assert len(layers) == len(kernels)
