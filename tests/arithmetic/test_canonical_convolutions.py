"""Convolutions in canonical form: the same function, in every form that JAX traces."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from optax_sam import canonical_convolutions
from optax_sam.arithmetic.jaxprs import _has_convolution
from tests.arithmetic.convolutions import assert_all_canonical, assert_same, normal


def assert_canonical_and_equal(function, *args, rtol=1e-5, atol=1e-5):
    canonical = canonical_convolutions(function)
    assert_all_canonical(canonical, *args)
    assert_same(jax.jit(canonical)(*args), jax.jit(function)(*args), rtol=rtol, atol=atol)


SPECS = {
    1: ("NWC", "WIO", "NWC"),
    2: ("NHWC", "HWIO", "NHWC"),
    3: ("NDHWC", "DHWIO", "NDHWC"),
}


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"strides": 2},
        {"padding": "VALID"},
        {"rhs_dilation": 2},
        {"lhs_dilation": 2},
        {"groups": 2},
        {"depthwise": True},
        {"batch_groups": 2},
        {"strides": 2, "padding": [(2, 0)], "rhs_dilation": 2, "groups": 2},
    ],
    ids=str,
)
def test_gradient_of_every_kind_of_convolution(rank, settings):
    settings = dict(settings)
    groups = 4 if settings.pop("depthwise", False) else settings.pop("groups", 1)
    batch_groups = settings.pop("batch_groups", 1)
    image = normal(0, 4, *([6] * rank), 4)
    kernel = normal(1, *([3] * rank), 4 // groups, 4)
    padding = settings.get("padding", "SAME")
    if settings.get("lhs_dilation") or not isinstance(padding, str):
        padding = (padding if not isinstance(padding, str) else [(1, 1)]) * rank

    def loss(kernel, image):
        out = lax.conv_general_dilated(
            image,
            kernel,
            [settings.get("strides", 1)] * rank,
            padding,
            lhs_dilation=[settings.get("lhs_dilation", 1)] * rank,
            rhs_dilation=[settings.get("rhs_dilation", 1)] * rank,
            dimension_numbers=SPECS[rank],
            feature_group_count=groups,
            batch_group_count=batch_groups,
        )
        return jnp.sum(jnp.sin(out))

    assert_canonical_and_equal(jax.grad(loss, argnums=(0, 1)), kernel, image)


@pytest.mark.parametrize(
    "specs", list(itertools.product(["NHWC", "NCHW", "HWNC", "CWHN"], ["HWIO", "OIHW"], ["NHWC", "CNHW"]))
)
def test_any_dimension_numbers(specs):
    def shaped(spec, sizes):
        return [sizes[letter] for letter in spec]

    sizes = {"N": 2, "C": 3, "H": 5, "W": 6, "I": 3, "O": 4}
    image = normal(0, *shaped(specs[0], sizes))
    kernel = normal(1, *shaped(specs[1], sizes | {"H": 3, "W": 2}))

    def loss(image, kernel):
        out = lax.conv_general_dilated(image, kernel, (1, 1), "SAME", dimension_numbers=specs)
        return jnp.sum(jnp.sin(out))

    assert_canonical_and_equal(jax.grad(loss, argnums=(0, 1)), image, kernel)


def block(image, kernel):
    out = lax.conv_general_dilated(image, kernel, (1, 1), "SAME", dimension_numbers=("NCHW", "OIHW", "NCHW"))
    return jax.nn.relu(out)


@jax.custom_jvp
def custom(x):
    return block(x, jnp.ones([2, 2, 3, 3]))


custom.defjvp(lambda primals, tangents: (custom(*primals), 2 * tangents[0]))


@jax.custom_vjp
def customer(x):
    return block(x, jnp.ones([2, 2, 3, 3]))


customer.defvjp(lambda x: (customer(x), x), lambda x, g: (block(g, jnp.ones([2, 2, 3, 3])),))

FORMS = {
    "jit": lambda x, k: jax.jit(block)(x, k),
    "checkpoint": lambda x, k: jax.checkpoint(block)(x, k),
    "scan": lambda x, k: lax.scan(lambda c, _: (block(c, k), jnp.sum(c)), x, length=3),
    "while": lambda x, k: lax.while_loop(
        lambda c: jnp.max(c[1]) < 3, lambda c: (block(c[0], k), c[1] + 1), (x, 0)
    ),
    "fori": lambda x, k: lax.fori_loop(0, 2, lambda _, c: block(c, k), x),
    "cond": lambda x, k: lax.cond(jnp.sum(x) > 0, lambda: block(x, k), lambda: x),
    "switch": lambda x, k: lax.switch(1, [lambda: x, lambda: block(x, k), lambda: 2 * x]),
    "vmap": lambda x, k: jax.vmap(block, in_axes=(None, 0))(x, jnp.stack([k, 2 * k])),
    "custom_jvp": lambda x, k: custom(x),
    "custom_vjp": lambda x, k: customer(x),
    "grad of custom_vjp": lambda x, k: jax.grad(lambda x: jnp.sum(customer(x) * x))(x),
    "grad of checkpoint": lambda x, k: jax.grad(lambda k: jnp.sum(jax.checkpoint(block)(x, k)))(k),
    "grad of scan": lambda x, k: jax.grad(
        lambda k: jnp.sum(lax.scan(lambda c, _: (block(c, k), None), x, length=2)[0])
    )(k),
    "jit in scan in cond": lambda x, k: lax.cond(
        True, lambda: lax.scan(lambda c, _: (jax.jit(block)(c, k), None), x, length=2)[0], lambda: x
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_reaches_into(form):
    assert_canonical_and_equal(FORMS[form], normal(0, 3, 2, 5, 6), 0.3 * normal(1, 2, 2, 3, 3))


@pytest.mark.parametrize("kind", [jax.sharding.AxisType.Auto, jax.sharding.AxisType.Explicit])
def test_reaches_into_shard_map(kind):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(kind,))
    spec = jax.sharding.PartitionSpec("data")

    def mapped(image, kernel):
        return jax.shard_map(
            lambda x, k: lax.pmean(jnp.sum(block(x, k), axis=0), "data"),
            mesh=mesh,
            in_specs=(spec, jax.sharding.PartitionSpec()),
            out_specs=jax.sharding.PartitionSpec(),
        )(image, kernel)

    with jax.set_mesh(mesh):
        image = jax.device_put(normal(0, 8, 2, 5, 6), jax.sharding.NamedSharding(mesh, spec))
        kernel = jax.device_put(
            0.3 * normal(1, 2, 2, 3, 3), jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        )
        assert_canonical_and_equal(mapped, image, kernel)


def test_mixed_precision_keeps_its_result_type():
    def loss(image, kernel):
        out = lax.conv_general_dilated(
            image, kernel, (1, 1), "SAME", preferred_element_type=jnp.float32,
            dimension_numbers=("NCHW", "OIHW", "NCHW"),
        )  # fmt: skip
        return out

    assert_canonical_and_equal(
        loss, normal(0, 2, 3, 5, 5, dtype=jnp.bfloat16), normal(1, 4, 3, 3, 3, dtype=jnp.bfloat16)
    )


def test_other_equations_are_left_alone():
    def plain(x):
        return jnp.sort(jax.jit(lambda y: y @ y.T)(x), axis=0), lax.cumsum(x)

    x = normal(0, 4, 4)
    assert not _has_convolution(jax.make_jaxpr(plain)(x).jaxpr)
    for got, wanted in zip(canonical_convolutions(plain)(x), plain(x), strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_effects_keywords_and_closed_over_tracers_survive():
    seen = []

    def noisy(x, *, kernel, scale):
        jax.debug.callback(lambda s: seen.append(float(s)), jnp.sum(kernel))
        return {"out": scale * block(x, kernel), "none": None}

    image, kernel = normal(0, 3, 2, 5, 6), 0.3 * normal(1, 2, 2, 3, 3)

    @jax.jit
    def outer(kernel, s):
        return canonical_convolutions(lambda x: noisy(x, kernel=kernel, scale=s))(image)

    got = outer(kernel, 2.0)
    jax.effects_barrier()
    assert len(seen) == 1
    np.testing.assert_allclose(got["out"], 2 * block(image, kernel), rtol=1e-5, atol=1e-5)
    eager = canonical_convolutions(noisy)(image, kernel=kernel, scale=2.0)
    np.testing.assert_allclose(eager["out"], got["out"], rtol=1e-5, atol=1e-5)


def test_other_backends_get_the_function_itself(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    image, kernel = normal(0, 3, 2, 5, 6), normal(1, 2, 2, 3, 3)
    got = jax.make_jaxpr(canonical_convolutions(block))(image, kernel)
    assert str(got) == str(jax.make_jaxpr(block)(image, kernel))


def test_what_the_function_reads_may_change_between_calls():
    held = {"scale": 1.0}
    gradient = canonical_convolutions(jax.grad(lambda w: held["scale"] * w**2))
    assert gradient(1.0) == 2
    held["scale"] = 5.0
    assert gradient(1.0) == 10
