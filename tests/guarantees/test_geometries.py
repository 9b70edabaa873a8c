"""What is promised of layers that are moved by their fans, and of p-norm balls."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optax_sam import ascents, geometries
from optax_sam.arithmetic.newton_schulz import orthogonalized
from tests.guarantees.climbing import SCALES, TREE, climb, flat, scaled
from tests.problem import assert_trees_close


def root(shape):
    return np.sqrt(shape[-1] / max(np.prod(shape[:-1]), 1))


# The layers' fans.

SHAPES = {
    "dense": (6, 4),
    "wide": (3, 8),
    "convolution": (3, 3, 2, 5),
    "bias": (7,),
    "number": (),
    "none": (0, 3),
}


def layers(dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), len(SHAPES))
    return {
        name: jax.random.normal(key, shape, dtype)
        for key, (name, shape) in zip(keys, SHAPES.items(), strict=True)
    }


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("geometry", ["fan_scaled", "spectral"])
def test_every_layer_moves_by_the_root_of_its_fans(geometry, scale):
    tree = scaled(scale, layers())
    found, length = climb(ascents.to_radius(0.1, getattr(geometries, geometry)()), tree)
    np.testing.assert_allclose(length, np.linalg.norm(flat(found)), rtol=1e-5)
    for name, shape in SHAPES.items():
        e = np.asarray(found[name], np.float64)
        if name in ("bias", "number", "none") or geometry == "fan_scaled":
            wanted = np.sqrt(shape[-1] if shape else 1) if len(shape) < 2 else root(shape)
            np.testing.assert_allclose(np.linalg.norm(e), 0.1 * wanted * bool(e.size), rtol=1e-5)
            assert np.vdot(e, layers()[name]) > 0 or not e.size
        else:
            values = np.linalg.svd(e.reshape(-1, shape[-1]))[1] / (0.1 * root(shape))
            assert 0.5 < values.min() and 0.6 < values.max() < 1.25


def test_newton_schulz_finds_the_factor_whatever_the_shape():
    for shape in ((6, 4), (4, 6), (5, 5), (1, 7), (7, 1)):
        matrix = np.random.default_rng(0).normal(size=shape)
        u, _, v = np.linalg.svd(matrix, full_matrices=False)
        found = np.asarray(orthogonalized(jnp.asarray(matrix, jnp.float32)))
        np.testing.assert_allclose(
            found, np.asarray(orthogonalized(jnp.asarray(matrix.T, jnp.float32))).T, atol=1e-5
        )
        alike = np.vdot(found, u @ v) / np.linalg.norm(found) / np.linalg.norm(u @ v)
        assert alike > 0.97
        # Both are made of the same singular vectors.
        inner = u.T @ found @ v.T
        np.testing.assert_allclose(inner, np.diag(np.diag(inner)), atol=1e-4)


def test_a_complex_matrix_has_the_factor_of_its_real_form():
    rng = np.random.default_rng(1)
    for shape in ((6, 4), (4, 6)):
        matrix = rng.normal(size=shape) + 1j * rng.normal(size=shape)
        found = np.asarray(orthogonalized(jnp.asarray(matrix, jnp.complex64)))
        u, _, v = np.linalg.svd(matrix, full_matrices=False)
        inner = u.conj().T @ found @ v.conj().T
        np.testing.assert_allclose(inner, np.diag(np.diag(inner).real), atol=1e-4)
        assert 0.5 < np.diag(inner).real.min() and np.diag(inner).real.max() < 1.25


@pytest.mark.parametrize("geometry", ["fan_scaled", "spectral"])
def test_zero_layers_stay_zero_and_have_a_derivative(geometry):
    tree = layers() | {"dense": jnp.zeros(SHAPES["dense"]), "bias": jnp.zeros(SHAPES["bias"])}
    ascent = ascents.to_radius(0.1, getattr(geometries, geometry)())

    def of(tree):
        return climb(ascent, tree, jitted=False)[0]

    with jax.debug_nans(True):
        found = of(tree)
    assert not found["dense"].any() and not found["bias"].any() and found["wide"].any()
    weights = layers()
    slope = jax.grad(lambda tree: optax.tree.vdot(of(tree), weights))(tree)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(slope))
    # The size of a layer's direction says nothing: no slope along it.
    np.testing.assert_allclose(jnp.vdot(slope["wide"], tree["wide"]), 0, atol=1e-5)


@pytest.mark.parametrize("geometry", ["fan_scaled", "spectral"])
def test_layers_in_half_precision_and_under_vmap_are_those_of_each_alone(geometry):
    ascent = ascents.to_radius(0.1, getattr(geometries, geometry)())
    low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), layers())
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), low)
    found = climb(ascent, low)[0]
    assert all(x.dtype == jnp.bfloat16 for x in jax.tree.leaves(found))
    np.testing.assert_allclose(flat(found), flat(climb(ascent, wide)[0]), rtol=2e-2, atol=1e-4)
    stacked = jnp.stack([x * layers()["wide"] for x in SCALES])
    together = jax.vmap(lambda x: climb(ascent, x, jitted=False)[0])(stacked)
    np.testing.assert_allclose(together, [climb(ascent, x)[0] for x in stacked], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("geometry", ["fan_scaled", "spectral"])
def test_kernels_whose_outputs_come_first_move_as_those_whose_outputs_come_last(geometry):
    made = getattr(geometries, geometry)
    kernel, bias = jax.random.normal(jax.random.key(0), (5, 3, 2, 4)), jnp.arange(4.0)
    last, own = climb(ascents.to_radius(0.1, made()), [kernel, bias])[0]
    first, same = climb(
        ascents.to_radius(0.1, made(outputs_first=True)), [jnp.moveaxis(kernel, -1, 0), bias]
    )[0]
    np.testing.assert_allclose(jnp.moveaxis(first, 0, -1), last, rtol=1e-3, atol=1e-6)
    np.testing.assert_array_equal(own, same)
    size = np.linalg.norm(np.reshape(first, (4, -1)), 2 if geometry == "spectral" else None)
    assert 0.6 < size / (0.1 * np.sqrt(4 / 30)) < 1.2
    with pytest.raises(TypeError, match="outputs_first=1 is no Python bool"):
        made(outputs_first=1)


def test_in_layers_of_rank_one_both_forms_are_the_same_direction():
    matrix = jnp.outer(jnp.arange(1.0, 5.0), jnp.array([1.0, -2.0, 0.5]))
    one, other = (
        climb(ascents.to_radius(0.1, g), matrix)[0] for g in (geometries.fan_scaled(), geometries.spectral())
    )
    ratio = np.asarray(other / one)
    assert np.ptp(ratio) < 1e-4 and 0.6 < ratio.mean() < 1.25


def outputs_moved(width, geometry):
    """How far a perturbation of each layer alone moves the output of that layer, at init of muP."""
    keys = jax.random.split(jax.random.key(3), 4)
    params = {
        "first": jax.random.normal(keys[0], (8, width)) / np.sqrt(8),
        "hidden": jax.random.normal(keys[1], (width, width)) / np.sqrt(width),
        "bias": jnp.zeros(width),
        "last": jax.random.normal(keys[2], (width, 4)) / width,
    }
    x, target = jax.random.normal(keys[3], (1, 8)), jnp.eye(4)[:1]

    def hidden(p):
        first = jnp.tanh(x @ p["first"])
        second = jnp.tanh(first @ p["hidden"] + p["bias"][None])
        return first, second, second @ p["last"]

    gradient = jax.grad(lambda p: jnp.mean((hidden(p)[2] - target) ** 2))(params)
    e = climb(ascents.to_radius(0.01, geometry), gradient)[0]
    inputs = {"first": x, "hidden": hidden(params)[0], "last": hidden(params)[1]}
    moved = {name: np.sqrt(np.mean(np.square(inputs[name] @ e[name]))) for name in inputs}
    return moved | {"bias": np.sqrt(np.mean(np.square(e["bias"])))}


def test_all_layers_are_felt_alike_in_narrow_and_in_wide_networks():
    """What SAM's one radius does not do: in the wide network its hidden layers are hardly moved."""
    for geometry in (geometries.fan_scaled(), geometries.spectral()):
        narrow, wide = outputs_moved(32, geometry), outputs_moved(1024, geometry)
        for name in narrow:
            np.testing.assert_allclose(wide[name], narrow[name], rtol=0.4, err_msg=name)
    narrow, wide = (outputs_moved(width, geometries.euclidean()) for width in (32, 1024))
    assert wide["hidden"] < 0.3 * narrow["hidden"] and wide["bias"] < 0.3 * narrow["bias"]


# Balls of any p.


def literal(d, p, rho=0.1):
    """`rho sign(d) |d|^(q - 1) / ||d||_q^(q - 1)`, in float64."""
    d = d / np.abs(d).max()
    power = 1 / (p - 1)
    size = np.where(d == 0, 0.0, np.abs(d) ** power)
    phase = np.where(d == 0, 0.0, d / np.where(d == 0, 1, np.abs(d)))
    return rho * phase * size / np.sum(np.abs(d) ** (power + 1)) ** (power / (power + 1))


ORDERS = [1.02, 1.5, 2, 3.0, 40.0, np.inf]


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("p", ORDERS)
def test_the_steepest_perturbation_of_a_p_ball_is_on_it(p, scale):
    direction = scaled(scale)
    found, length = climb(ascents.to_radius(0.1, geometries.p_norm(p)), direction)
    np.testing.assert_allclose(flat(found), literal(flat(TREE), p), rtol=2e-4, atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(flat(found), ord=p), 0.1, rtol=1e-5)
    np.testing.assert_allclose(length, np.linalg.norm(flat(found)), rtol=1e-5)
    q = 1 + 1 / (p - 1)  # no other point of the ball rises more: Hoelder's inequality is an equality
    rise = np.vdot(flat(found), flat(TREE))
    np.testing.assert_allclose(rise, 0.1 * np.linalg.norm(flat(TREE), ord=q), rtol=1e-5)


def test_a_p_ball_is_euclidean_at_two_and_of_signs_at_infinity():
    for scale in SCALES:
        direction = scaled(scale)
        for p, other in ((2, geometries.euclidean()), (np.inf, None)):
            found = climb(ascents.to_radius(0.1, geometries.p_norm(p)), direction)[0]
            wanted = 0.1 * np.sign(flat(TREE))
            if other is not None:
                wanted = flat(climb(ascents.to_radius(0.1, other), direction)[0])
            np.testing.assert_allclose(flat(found), wanted, rtol=1e-5)


def test_entries_of_very_unequal_size_have_the_sizes_of_their_roots():
    d = jnp.array([1e30, -1e-30, 0.0, 1.0])
    for p in (3.0, 61.0, np.inf):
        found = climb(ascents.to_radius(1.0, geometries.p_norm(p)), d)[0]
        np.testing.assert_allclose(found, literal(np.asarray(d, np.float64), p, 1.0), rtol=1e-4)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("p", ORDERS)
def test_complex_entries_keep_their_phase_in_a_p_ball(p, scale):
    z = np.array([3.0 + 4.0j, -0.5j, 0, 1e-2 - 1e-2j])
    found = climb(ascents.to_radius(0.1, geometries.p_norm(p)), jnp.asarray(scale * z, jnp.complex64))[0]
    np.testing.assert_allclose(found, literal(z, p), rtol=2e-4, atol=1e-12)


@pytest.mark.parametrize("p", ORDERS)
def test_a_zero_direction_stays_zero_and_has_a_derivative_in_a_p_ball(p):
    ascent = ascents.to_radius(0.1, geometries.p_norm(p))
    for tree in (scaled(0.0), {"z": jnp.zeros(3, jnp.complex64), "none": jnp.zeros([0])}):
        found, length = climb(ascent, tree)
        assert_trees_close(found, tree, rtol=0, atol=0)
        assert length == 0

    def rise(d):
        return jnp.sum(climb(ascent, d, jitted=False)[0] * jnp.array([1.0, 2.0, 3.0]))

    for d in (jnp.zeros(3), jnp.array([0.0, 1.0, -2.0])):
        slope = jax.grad(rise)(d)
        assert np.isfinite(slope).all()
        np.testing.assert_allclose(jnp.vdot(slope, d), 0, atol=1e-6)


def test_the_order_of_a_ball_may_be_traced_and_mapped():
    d = jnp.array([3.0, -4.0, 0.1])

    def of(p):
        return climb(ascents.to_radius(0.1, geometries.p_norm(p)), d, jitted=False)[0]

    together = jax.jit(jax.vmap(of))(jnp.asarray(ORDERS, jnp.float32))
    np.testing.assert_allclose(together, [of(p) for p in ORDERS], rtol=2e-4, atol=1e-12)
    low = climb(ascents.to_radius(0.1, geometries.p_norm(3.0)), d.astype(jnp.float16))[0]
    assert low.dtype == jnp.float16
    np.testing.assert_allclose(low.astype(jnp.float32), of(3.0), rtol=2e-3)
