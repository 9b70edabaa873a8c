"""Norms of single examples' gradients without those gradients: equal to those of `vmap`, for any loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from optax_sam import per_example
from optax_sam.arithmetic.ghost_norms import _plan
from optax_sam.arithmetic.jaxprs import inlined
from tests.arithmetic.implicit import LAYERS, SIZE, blurred, plain
from tests.registry import over

EXAMPLES = 5


def by_vmap(loss_fn, params, batch):
    """The definition."""

    def norm(example):
        def loss(params):
            return jnp.mean(loss_fn(params, jax.tree.map(lambda x: x[None], example)))

        grads = jax.grad(loss, allow_int=True)(params)
        floats = [g for g in jax.tree.leaves(grads) if jnp.issubdtype(g.dtype, jnp.inexact)]
        return jnp.sqrt(sum(jnp.sum(jnp.square(jnp.abs(g).astype(jnp.float32))) for g in floats))

    return jax.vmap(norm)(batch)


def check(loss_fn, params, batch, rtol=2e-5):
    got = jax.jit(lambda p, b: per_example.gradient_norms(loss_fn, p, b))(params, batch)
    wanted = jax.jit(lambda p, b: by_vmap(loss_fn, p, b))(params, batch)
    assert got.shape == (EXAMPLES,) and np.ptp(wanted) > 0
    np.testing.assert_allclose(got, wanted, rtol=rtol)


def plan_of(loss_fn, params, batch):
    """`(parameters with rows, parameters by equation)`."""
    leaves, treedef = jax.tree.flatten(params)
    example = jax.tree.map(lambda x: x[:1], batch)
    closed = jax.make_jaxpr(lambda p, e: jnp.mean(loss_fn(jax.tree.unflatten(treedef, p), e)))(
        leaves, example
    )
    plan = _plan(inlined(closed), len(leaves))
    return len(plan.by_rows), len(plan.leaves)


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


X = {"x": normal(0, EXAMPLES, 6), "y": normal(1, EXAMPLES)}
TOKENS = {"x": jax.random.randint(jax.random.key(2), [EXAMPLES, 7], 0, 11)}
IMAGES = {"x": normal(3, EXAMPLES, 9, 8, 4)}


def mean_square(outputs):
    return jnp.mean(jnp.square(outputs), axis=tuple(range(1, outputs.ndim)))


def module_loss(module):
    """The loss of a Flax module, and its parameters."""

    def loss_fn(params, batch):
        outputs, _ = module.apply({"params": params}, batch["x"], mutable=["batch_stats"])
        return mean_square(outputs)

    def params_for(batch):
        return module.init(jax.random.key(4), batch["x"])["params"]

    return loss_fn, params_for


class Mlp(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(7)(x))
        return nn.Dense(3)(nn.LayerNorm()(x))


class ConvNet(nn.Module):
    """Strides, dilations, groups, depthwise, 1x1, batch norm, a shortcut."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(8, (3, 3), use_bias=False)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=False)(x))
        y = nn.Conv(8, (3, 3), strides=2, feature_group_count=2)(x)
        z = nn.Conv(8, (1, 1), strides=2, padding="SAME")(x)
        x = nn.tanh(y + z)
        x = nn.Conv(8, (3, 3), feature_group_count=8)(x)
        x = nn.Conv(5, (2, 3), kernel_dilation=(2, 1), padding="VALID")(x)
        x = nn.ConvTranspose(4, (2, 2), strides=(2, 2))(x)
        return nn.Dense(3)(x.mean((1, 2)))


class Transformer(nn.Module):
    """One embedding for inputs and outputs."""

    @nn.compact
    def __call__(self, tokens):
        embed = nn.Embed(11, 8)
        x = embed(tokens) + self.param("positions", nn.initializers.normal(), (7, 8))
        for _ in range(2):
            x = x + nn.MultiHeadDotProductAttention(num_heads=2)(nn.LayerNorm()(x))
            x = x + nn.Dense(8)(nn.gelu(nn.Dense(16)(nn.RMSNorm()(x))))
        return embed.attend(x)


class Recurrent(nn.Module):
    """A loop over time: its weights are read by a `scan`."""

    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(11, 5)(tokens)
        return nn.Dense(3)(nn.RNN(nn.LSTMCell(6))(x))


class Layers(nn.Module):
    """A loop over layers: each turn reads its own slice of the weights."""

    @nn.compact
    def __call__(self, x):
        kernels = self.param("kernels", nn.initializers.lecun_normal(), (3, 6, 6))
        biases = self.param("biases", nn.initializers.normal(), (3, 6))

        def layer(x, weights):
            kernel, bias = weights
            return jnp.tanh(x @ kernel + bias[None]), None

        return lax.scan(layer, x, (kernels, biases))[0]


@pytest.mark.parametrize(
    ("module", "batch"),
    [
        (Mlp(), X),
        (ConvNet(), IMAGES),
        pytest.param(Transformer(), TOKENS, marks=pytest.mark.slow),
        pytest.param(Recurrent(), TOKENS, marks=pytest.mark.slow),
        (Layers(), X),
    ],
    ids=["mlp", "convolutions", "transformer", "recurrent", "layers"],
)
def test_networks_have_the_norms_of_vmap(module, batch, as_optax_promotes):
    loss_fn, params_for = module_loss(module)
    check(loss_fn, params_for(batch), batch)


W = normal(5, 6, 6)
LOSSES = {
    "used twice": lambda w, b: mean_square(jnp.tanh(b["x"] @ w) @ w),
    "used twice, once transposed": lambda w, b: mean_square(jnp.tanh(b["x"] @ w) @ w.T),
    "three axes, turned": lambda w, b: mean_square(
        jnp.einsum("nhd,ehd->ne", jnp.einsum("ne,ehd->nhd", b["x"], w.reshape(6, 3, 2)), w.reshape(6, 3, 2))
    ),
    "three axes, in another order": lambda w, b: mean_square(
        jnp.einsum(
            "ndh,edh->ne",
            jnp.einsum("ne,ehd->nhd", b["x"], v := w.reshape(6, 3, 2)).transpose(0, 2, 1),
            v.transpose(0, 2, 1),
        )
    ),
    "a decay inside the loss": lambda w, b: mean_square(b["x"] @ w) + jnp.sum(jnp.square(w)),
    "normalized": lambda w, b: mean_square(b["x"] @ (w / jnp.linalg.norm(w))),
    "scaled": lambda w, b: mean_square(b["x"] @ (3.0 * w)),
    "reshaped": lambda w, b: mean_square(b["x"].reshape(-1, 3, 2) @ w.reshape(2, 18)),
    "two views": lambda w, b: mean_square(
        b["x"] @ w + b["x"].reshape(-1, 2, 3) @ w.reshape(3, 12) @ normal(6, 12, 6) @ jnp.ones([6, 6])
    ),
    "left of the product": lambda w, b: mean_square((w @ b["x"].T).T),
    "with batches of matrices": lambda w, b: mean_square(
        jnp.einsum("nhd,hde->nhe", b["x"].reshape(-1, 3, 2), w.reshape(3, 2, 6))
    ),
    "elementwise": lambda w, b: mean_square(jnp.sin(b["x"] * w[0] + w[1]) / (2 + jnp.square(w[2]))),
    "a loop in which it is squared": lambda w, b: mean_square(
        lax.fori_loop(0, 3, lambda i, x: jnp.tanh(x @ w), b["x"])
    ),
    "a conditional": lambda w, b: jnp.stack(
        [
            lax.cond(y > 0, lambda x: jnp.sum(x @ w), lambda x: jnp.sum(w * x), x)
            for x, y in zip(b["x"], b["y"], strict=True)
        ]
    ),
    "checkpointed": lambda w, b: mean_square(jax.checkpoint(lambda w, x: jnp.tanh(x @ w))(w, b["x"])),
    "indexed": lambda w, b: mean_square(w[jnp.abs(10 * b["x"][:, :2]).astype(int) % 6]),
    "a column chosen": lambda w, b: mean_square(
        w[:, jnp.abs(10 * b["x"][:, :2]).astype(int) % 6].transpose(1, 0, 2)
    ),
    "indexed beyond its end": lambda w, b: mean_square(
        jnp.take(w, jnp.abs(10 * b["x"][:, :3]).astype(int), axis=0, mode="clip")
        + w.at[jnp.abs(9 * b["x"][:, :3]).astype(int)].get(mode="fill", fill_value=0.5)
    ),
    "of a part of it": lambda w, b: mean_square(b["x"][:, :3] @ w[:3]),
    "a derivative of its own": lambda w, b: mean_square(halved(b["x"] @ w, w)),
    "a callback inside": lambda w, b: watched(mean_square(b["x"] @ w)),
    "two parts in one equation": lambda w, b: mean_square(
        lax.clamp(-jnp.exp(w[:1]), b["x"], jnp.exp(w[1:2]))
    ),
    "one part twice in an equation": lambda w, b: mean_square(
        b["x"] * lax.select_n(b["x"] > 0, v := w[:1] * jnp.ones_like(b["x"]), v)
    ),
    "itself twice in an equation": lambda w, b: jnp.stack(
        [jnp.sum(jnp.sin(lax.select_n(y > 0, w, w) * y)) for y in b["y"]]
    ),
    "a triangular solve": lambda w, b: mean_square(
        jax.scipy.linalg.solve_triangular(w @ w.T + 9 * jnp.eye(6), b["x"].T, lower=True).T
    ),
    "a rule for two parts": lambda w, b: mean_square(crossed(b["x"] @ w, w[0], w[1] * w[0])),
    "behind stop_gradient": lambda w, b: mean_square(b["x"] @ lax.stop_gradient(w) @ w),
    "the mean alone": lambda w, b: jnp.mean(jnp.square(b["x"] @ w)),
}


def watched(x):
    jax.debug.callback(lambda x: None, x)
    return x


@jax.custom_vjp
def halved(x, w):
    return x + jnp.sum(w)


halved.defvjp(lambda x, w: (halved(x, w), w), lambda w, g: (g / 2, jnp.full_like(w, jnp.sum(g) / 3)))


@jax.custom_vjp
def crossed(x, v, w):
    return x * v + w


def crossed_backward(kept, g):
    x, v = kept
    return g * v, jnp.sum(g * x, axis=0) + 1.0, jnp.sum(g, axis=0) * v


crossed.defvjp(lambda x, v, w: (crossed(x, v, w), (x, v)), crossed_backward)


@pytest.mark.parametrize("name", LOSSES)
def test_losses_of_one_parameter_have_the_norms_of_vmap(name, as_optax_promotes):
    check(LOSSES[name], W, X)


FAST = ["custom_linear_solve", "a solve with weights of its own", "custom_vjp with a constant table"]


@pytest.mark.parametrize("inner", over([plain, blurred], [plain]), ids=["alone", "with a convolution"])
@pytest.mark.parametrize("name", over(LAYERS, FAST))
def test_equations_that_hold_jaxprs_or_rules_have_the_norms_of_vmap(name, inner):
    """What reads several parameters, or one in several places, is differentiated as a whole."""
    layer = LAYERS[name]

    def of_one(params, x):
        found = layer(params["d"] + params["shift"], inner(x) + params["shift"], inner)
        return jnp.sum(jnp.sin(found @ params["w"]))

    params = {"d": 0.5 * normal(10, SIZE), "w": normal(11, SIZE, 3), "shift": 0.2 * normal(12, SIZE)}
    check(lambda params, b: jax.vmap(lambda x: of_one(params, x))(b["x"]), params, {"x": X["x"][:, :SIZE]})


def test_a_solve_that_reads_its_parameter_twice():
    """`s(d, x) = x / d`: the derivative with respect to `d` is `-x / d^2`."""

    def solve(d, x):
        return lax.custom_linear_solve(lambda v: d * v, x, lambda _, b: b / d, symmetric=True)

    x = jnp.array([1.0, 2.0])
    for loss_fn in (lambda d, x: jax.vmap(lambda x: solve(d, x))(x), lambda d, x: solve(d, x)):
        norms = per_example.gradient_norms(loss_fn, jnp.asarray(2.0), x)
        np.testing.assert_allclose(norms, [0.25, 0.5], rtol=1e-6)


def test_matrices_convolutions_and_tables_are_never_written_out_per_example(as_optax_promotes):
    loss_fn, params_for = module_loss(Transformer())
    params = params_for(TOKENS)
    multiplied = [
        path
        for path, _ in jax.tree.leaves_with_path(params)
        if "kernel" in str(path) or "embedding" in str(path)
    ]
    rows, _ = plan_of(loss_fn, params, TOKENS)
    assert rows == len(multiplied) == 13
    loss_fn, params_for = module_loss(ConvNet())
    params = params_for(IMAGES)
    rows, _ = plan_of(loss_fn, params, IMAGES)
    assert rows == sum(x.ndim > 1 for x in jax.tree.leaves(params)) - 1  # the transposed convolution


def test_memory_is_that_of_activations_not_of_gradients():
    w, batch = normal(7, 256, 256), {"x": normal(8, 64, 256)}

    def loss_fn(w, b):
        return mean_square(jnp.tanh(b["x"] @ w))

    def temp(norms):
        return jax.jit(norms).lower(w, batch).compile().memory_analysis().temp_size_in_bytes

    ghost, written = (
        temp(lambda w, b: per_example.gradient_norms(loss_fn, w, b)),
        temp(lambda w, b: by_vmap(loss_fn, w, b)),
    )
    assert ghost < 2 * 4 * 256 * 256 < 64 * 4 * 256 * 256 < 1.1 * written


def test_integer_empty_and_half_precision_parameters(as_optax_promotes):
    params = {
        "w": W.astype(jnp.bfloat16),
        "n": jnp.arange(3),
        "e": jnp.zeros([0, 4]),
        "b": jnp.ones(6, jnp.float16),
        "none": None,
    }

    def loss_fn(params, batch):
        x = batch["x"] @ params["w"].astype(jnp.float32) + params["b"].astype(jnp.float32)
        return mean_square(x * params["n"][1]) + jnp.sum(params["e"])

    check(loss_fn, params, X, rtol=1e-2)


def test_complex_parameters(as_optax_promotes):
    w = W + 1j * normal(9, 6, 6)
    check(lambda w, b: mean_square(jnp.abs(b["x"] @ w)), w, X)


def test_a_loss_that_ignores_the_parameters_has_no_gradient():
    norms = per_example.gradient_norms(lambda w, b: mean_square(b["x"]), W, X)
    np.testing.assert_array_equal(norms, 0)


def test_a_loss_that_ignores_the_example_has_one_gradient_for_all():
    norms = per_example.gradient_norms(lambda w, b: jnp.sum(jnp.square(w)) * jnp.ones(len(b["x"])), W, X)
    np.testing.assert_allclose(norms, 2 * np.linalg.norm(W), rtol=1e-5)


def test_convolutions_of_a_split_batch_trace_on_explicit_axes():
    def loss(kernel, image):
        numbers = ("NHWC", "HWIO", "NHWC")
        found = jax.lax.conv_general_dilated(image, kernel, (1, 1), "SAME", dimension_numbers=numbers)
        return jnp.sum(found**2, axis=(1, 2, 3))

    keys = jax.random.split(jax.random.key(0))
    kernel, image = jax.random.normal(keys[0], (3, 3, 2, 4)), jax.random.normal(keys[1], (8, 4, 4, 2))
    norms = jax.jit(lambda kernel, image: per_example.gradient_norms(loss, kernel, image))
    expected = norms(kernel, image)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,))
    with jax.set_mesh(mesh):
        split = jax.device_put(image, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data")))
        np.testing.assert_allclose(norms(kernel, split), expected, rtol=1e-5)
