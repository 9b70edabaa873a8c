"""Vectors of integers, outputs in half precision, buffers that are filled anew, small and large units."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optax_sam import sharpness


def squares(w, scale):
    return scale @ w**2


BATCH = jnp.array([[1.0, 3.0]])


@pytest.mark.parametrize("kind", [np.int32, np.int8, bool])
def test_a_vector_of_integers_is_one_of_floats(kind):
    given, wanted = np.array([1, 0], kind), jnp.array([1.0, 0.0])
    landscapes = [
        sharpness.landscape(squares, jnp.zeros(2), BATCH, [d], num_points=5).losses for d in (given, wanted)
    ]
    np.testing.assert_array_equal(*landscapes)
    np.testing.assert_allclose(landscapes[0], [1, 0.25, 0, 0.25, 1])
    for loss_fn in (squares, sharpness.FiniteDifferences(squares)):
        found = sharpness.hessian_vector_product(loss_fn, jnp.ones(2), BATCH, given)
        np.testing.assert_allclose(found, [2, 0], atol=1e-2)


def test_a_number_of_python_among_the_updates_counts():
    params = {"a": jnp.array(1.0), "b": jnp.array(1.0)}
    losses = lambda p, s: s * p["a"] ** 2 + 3 * s * p["b"] ** 2
    along = sharpness.directional_sharpness(losses, params, jnp.ones(1), {"a": 1.0, "b": 3})
    np.testing.assert_allclose(along.value, (2 + 54) / 10, rtol=1e-5)
    critical = sharpness.critical_sharpness(losses, params, jnp.ones(1), {"a": -1.0, "b": -3})
    np.testing.assert_allclose(critical.value, 2 * 28 / 20, rtol=2e-2)


def test_a_complex_vector_is_refused():
    for measure in (sharpness.hessian_vector_product, sharpness.directional_sharpness):
        with pytest.raises(ValueError, match="is complex, unlike params: pass its real and imaginary part"):
            measure(squares, jnp.ones(2), BATCH, jnp.array([1 + 1j, 0]))


@pytest.mark.parametrize(
    "logits",
    [
        np.float16(10 * np.random.default_rng(0).normal(size=(2, 1000))),
        np.float16([[300, -300]]),
        np.float16([[1e-4, -1e-4]]),
        np.float32([[1e20, -1e20]]),
        np.float32([[1e-23, -1e-23]]),
        np.float32([[3e38, 3e38, -3e38]]),
    ],
)
def test_normalized_logits_have_length_one_in_every_unit(logits):
    found = sharpness.normalized_logits(jnp.asarray(logits))
    assert found.dtype == logits.dtype
    np.testing.assert_allclose(np.linalg.norm(np.float64(found), axis=-1), 1, rtol=2e-3)
    equal = sharpness.normalized_logits(jnp.full([2, 3], 0.1, logits.dtype))
    np.testing.assert_array_equal(equal, 0)


def fishers(dtype, slope, draws):
    """Two Fisher matrices of one parameter; every example's gradient is `slope`."""
    line = lambda w, x: (slope * x * w).astype(dtype)
    drawn = sharpness.Fisher(line, lambda y, x: y, lambda key, y, x: x, num_draws=draws)
    return {"drawn": drawn, "own": sharpness.EmpiricalFisher(line)}


@pytest.mark.parametrize(
    ("dtype", "slope", "size", "draws"),
    [(jnp.bfloat16, -1, 1, 320), (jnp.float16, 1, 65_536, 1), (jnp.float16, 1e-4, 8192, 1)],
    ids=["many draws", "many examples", "small gradients"],
)
@pytest.mark.parametrize("kind", ["drawn", "own"])
def test_a_fisher_matrix_of_outputs_in_half_precision(kind, dtype, slope, size, draws):
    fisher = fishers(dtype, slope, draws)[kind]
    found = sharpness.hessian_vector_product(fisher, jnp.ones(()), jnp.ones(size), jnp.ones(()))
    np.testing.assert_allclose(found, slope**2, rtol=2e-2)


def test_a_loader_may_fill_one_buffer_again_and_again():
    size, width = 64, 2000
    data = np.random.default_rng(0).normal(size=(6, size, width)).astype(np.float32)

    class Loader:
        buffer = np.zeros((size, width), np.float32)

        def __iter__(self):
            for rows in data:
                self.buffer[:] = rows
                yield self.buffer

    losses = lambda w, x: jnp.sum((x * w[None]) ** 2, axis=1)
    found = sharpness.hessian_vector_product(losses, jnp.ones(width), Loader(), jnp.ones(width))
    np.testing.assert_allclose(found, 2 * (data**2).mean((0, 1)), rtol=1e-4)


@pytest.mark.parametrize("unit", [1e-22, 1e22])
def test_gradients_that_are_alike_in_any_unit(unit):
    noise = sharpness.gradient_noise(lambda w, x: x @ w, jnp.ones(1), unit * jnp.array([[1.0], [1.01]]))
    np.testing.assert_allclose(noise.noise_scale, 4.95e-5, rtol=1e-2)


@pytest.mark.parametrize("unit", [1e-21, 1e21])
def test_errors_of_a_diagonal_in_any_unit(unit):
    losses = lambda w, s: s * ((w[0] + w[1]) ** 2)

    def errors(unit):
        return sharpness.diagonal(losses, jnp.zeros(2), jnp.full(1, unit), num_products=9).standard_errors

    np.testing.assert_allclose(errors(unit) / unit, errors(1.0), rtol=1e-4)
    assert (errors(1.0) > 0).all()


@pytest.mark.parametrize("unit", [1e-21, 1e20])
def test_a_random_direction_is_as_long_as_the_weights_in_any_unit(unit):
    direction = sharpness.random_direction(jnp.full((3, 2), unit))
    lengths = np.linalg.norm(np.float64(direction), axis=0)
    np.testing.assert_allclose(lengths, unit * 3**0.5, rtol=1e-4)


def test_a_landscape_of_a_part_has_statistics_at_all_parameters():
    params = {"a": jnp.array(1.0), "b": jnp.array(2.0)}
    losses = lambda p, x, mean: (p["a"] * x - mean) ** 2
    mean = lambda p, x: p["b"] * jnp.mean(x)
    part = sharpness.of_part(losses, params, {"a": True, "b": False})
    found = sharpness.landscape(
        *part, jnp.ones(2), [part[1] | {"a": jnp.array(1.0)}], num_points=3, statistics=mean
    )
    np.testing.assert_allclose(found.losses, [4, 1, 0])


def test_a_curvature_passes_no_statistics_on():
    loss_fn = sharpness.FiniteDifferences(squares)
    with pytest.raises(ValueError, match="loss_fn is a FiniteDifferences, which passes no statistics on"):
        sharpness.landscape(
            loss_fn, jnp.ones(2), BATCH, [jnp.ones(2)], statistics=lambda params, batch: jnp.ones(())
        )


@pytest.mark.parametrize("width", [0.0, -1.0])
def test_a_density_has_a_positive_width(width):
    found = sharpness.spectral_density(squares, jnp.ones(2), BATCH, num_steps=2)
    with pytest.raises(ValueError, match="width="):
        found.density(width=width)


@pytest.mark.parametrize("seed", [2**32, -(2**31) - 1])
def test_a_seed_that_jax_would_cut_is_refused(seed):
    with pytest.raises(ValueError, match="has more than 32 bits"):
        sharpness.trace(squares, jnp.ones(2), BATCH, seed=seed)
    with jax.enable_x64(True):  # where it does not
        found = sharpness.trace(squares, jnp.ones(2), BATCH.astype(float), seed=seed)
    np.testing.assert_allclose(found.value, 8)


@pytest.mark.parametrize(
    ("values", "which"),
    [((1000.0, *[1.0] * 30, *[0.2] * 30, -0.5), "smallest"), ((-1000.0, *[-1.0] * 30, 0.5), "largest")],
)
@pytest.mark.parametrize("seed", range(3))
def test_the_small_end_of_a_spectrum_is_not_taken_for_found_before_it_is(values, which, seed):
    """A thousandth of the largest eigenvalue is more than the smallest one."""
    spectrum = jnp.asarray(values)
    losses = lambda w, s: s * (jnp.sum(spectrum * w**2) / 2)
    found = sharpness.top_eigenvalues(losses, jnp.zeros(len(values)), jnp.ones(1), which=which, seed=seed)
    assert found.converged
    np.testing.assert_allclose(found.values, values[-1], rtol=1e-3)
    both = sharpness.top_eigenvalues(losses, jnp.zeros(len(values)), jnp.ones(1), which="both", seed=seed)
    np.testing.assert_allclose(sorted(both.values), sorted((values[0], values[-1])), rtol=1e-3)
