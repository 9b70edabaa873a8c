"""Critical, directional and batch sharpness against written-out Hessians and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optax_sam import sharpness
from tests.sharpness.problems import (
    ROWS,
    dense_gauss_newton,
    floats,
    joined,
    losses,
    losses_of_outputs,
    network,
    outputs,
    quadratic,
    random_vector_like,
    written_out,
)

MATRIX = np.array([[3.0, 1.0], [1.0, 2.0]])
START = np.array([0.5, -0.25])
ONE = jnp.ones([1])
W = jnp.asarray(START, jnp.float32)
BOWL = quadratic(jnp.asarray(MATRIX, jnp.float32))


def gradient_of(params, batch):
    return jax.grad(lambda p: losses(p, batch).mean(), allow_int=True)(params)


def test_the_critical_sharpness_of_a_quadratic_is_its_curvature_along_the_gradient():
    gradient = MATRIX @ START
    expected = gradient @ MATRIX @ gradient / (gradient @ gradient)
    found = sharpness.critical_sharpness(BOWL, W, ONE, learning_rate=0.4, tolerance=1e-4)
    assert found.value == pytest.approx(expected, rel=1e-3)
    low, high = found.interval
    assert low <= 2 / expected <= high and 1 - low / high <= 1e-4
    assert found.loss == pytest.approx(START @ MATRIX @ START / 2)


def test_it_takes_5_to_8_passes_from_a_step_within_a_factor_of_two():
    gradient = MATRIX @ START
    step = 2 * (gradient @ gradient) / (gradient @ MATRIX @ gradient)
    for factor in (0.55, 0.9, 1.8):
        found = sharpness.critical_sharpness(BOWL, W, ONE, learning_rate=factor * step)
        low, high = found.interval
        assert 5 <= found.passes <= 8 and 1 - low / high <= 1 / 16
        assert low <= step * (1 + 1e-5) and step <= high * (1 + 1e-5)


def test_a_first_step_that_changes_nothing_is_no_end():
    step = 2 / sharpness.directional_sharpness(BOWL, W, ONE, jnp.asarray(MATRIX @ START, jnp.float32)).value
    found = sharpness.critical_sharpness(BOWL, W, ONE, learning_rate=step)
    assert found.step == pytest.approx(step, rel=1 / 16)


def test_the_step_is_counted_in_learning_rates_along_any_update():
    direction = np.array([-1.0, 0.5])
    step = -2 * (MATRIX @ START) @ direction / (direction @ MATRIX @ direction)
    for learning_rate in (0.1, 1.0):
        updates = jnp.asarray(learning_rate * direction, jnp.float32)
        found = sharpness.critical_sharpness(
            BOWL, W, ONE, updates, learning_rate=learning_rate, tolerance=1e-4
        )
        assert found.step == pytest.approx(step, rel=1e-3)


@pytest.mark.slow
def test_a_network_rises_where_a_scan_of_its_losses_does():
    params, loss_fn, batches = network()
    whole = joined(batches)
    gradient = gradient_of(params, whole)

    @jax.jit
    def at(step):
        def on_leaf(w, g):
            return w - step * g if w.dtype.kind == "f" else w

        return losses(jax.tree.map(on_leaf, params, gradient), whole).mean()

    steps = np.geomspace(1e-3, 10, 200)
    risen = np.argmax(np.array([at(step) for step in steps]) > at(0.0))
    found = sharpness.critical_sharpness(loss_fn, params, batches, learning_rate=0.01, tolerance=1e-3)
    assert risen > 0 and steps[risen - 1] * 0.999 < found.step < steps[risen] * 1.001
    one = sharpness.critical_sharpness(loss_fn, params, whole, learning_rate=0.01, tolerance=1e-3)
    assert one.step == pytest.approx(found.step, rel=2e-3)


def test_it_is_infinite_uphill_and_zero_where_nothing_rises():
    uphill = sharpness.critical_sharpness(BOWL, W, ONE, jnp.asarray(MATRIX @ START, jnp.float32))
    assert uphill.value == np.inf and uphill.step == 0 and uphill.interval[0] == 0
    small = sharpness.critical_sharpness(BOWL, W, ONE, jnp.asarray(1e-9 * MATRIX @ START, jnp.float32))
    assert small.value == np.inf
    downhill = sharpness.critical_sharpness(lambda w, b: b - w, jnp.array(0.0), ONE, jnp.array(1.0))
    assert downhill.value == 0 and downhill.step == np.inf
    wall = sharpness.critical_sharpness(
        lambda w, b: b * jnp.where(w < 3, -w, jnp.nan), jnp.array(0.0), ONE, jnp.array(1.0), tolerance=1e-3
    )
    assert wall.step == pytest.approx(3, rel=1e-3)


def on_a_floor(w, batch):
    """A bowl with curvatures from 1 to 50 above 0.5: near its bottom float32 sees no fall."""
    return batch + 0.5 * jnp.sum(jnp.array([50.0, 10.0, 1.0]) * w**2)


def near_the_bottom(slope):
    gradient = slope * np.array([1.0, 0.2, 0.1])
    curvatures = np.array([50.0, 10.0, 1.0])
    return jnp.asarray(gradient / curvatures, jnp.float32), (gradient**2 @ curvatures) / (gradient @ gradient)


def test_the_interval_holds_the_critical_sharpness_where_rounding_hides_a_part_of_the_fall():
    floor = jnp.full([8], 0.5)
    for slope in (1.0, 0.1, 0.03, 0.02, 0.01):
        w, expected = near_the_bottom(slope)
        found = sharpness.critical_sharpness(on_a_floor, w, floor, learning_rate=0.1, tolerance=1e-3)
        low, high = found.interval
        assert 0 < low <= 2 / expected <= high, slope
        assert found.value == pytest.approx(expected, rel=0.1)


def test_it_is_unknown_where_rounding_hides_the_fall_and_infinite_where_a_rise_shows():
    floor = jnp.full([8], 0.5)
    for slope in (3e-3, 1e-3, 1e-4):
        w, expected = near_the_bottom(slope)
        found = sharpness.critical_sharpness(on_a_floor, w, floor, learning_rate=0.1)
        assert np.isnan(found.value) and np.isnan(found.step)
        assert found.interval[0] == 0 and 2 / found.interval[1] <= expected
        assert "rounding hides" in str(found) and "directional_sharpness" in str(found)
        relative = sharpness.relative_critical_sharpness(on_a_floor, w, floor, on_a_floor, floor)
        assert np.isnan(relative.value)
        uphill = sharpness.critical_sharpness(on_a_floor, jnp.full(3, 0.01), floor, slope * jnp.ones(3))
        assert uphill.value == np.inf
    flat = sharpness.critical_sharpness(lambda w, b: b + 0 * w, jnp.array(1.0), floor, jnp.array(1.0))
    assert np.isnan(flat.value)


def test_a_loss_that_computes_in_less_than_the_parameters_counts_its_own_rounding():
    def narrow(w, floor):
        return on_a_floor(w.astype(jnp.bfloat16).astype(jnp.float32), floor)

    floor = jnp.full([8], 0.5)
    w, expected = near_the_bottom(0.1)
    exact = sharpness.critical_sharpness(on_a_floor, w, floor, learning_rate=0.1)
    assert exact.value == pytest.approx(expected, rel=0.1)
    found = sharpness.critical_sharpness(narrow, w, floor, learning_rate=0.1)
    assert found.rounding > 1e-3 > exact.rounding
    low, high = found.interval
    assert np.isnan(found.value) and low == 0 and high >= 2 / expected


@pytest.mark.parametrize("slope", [1e-4, 3e-5])
def test_along_its_own_descent_no_loss_rises_at_once(slope):
    """Rounding hides the slope of 1 + w^3 - s w at 0, but not the cube, which rises on one side only."""
    loss = lambda w, batch: batch + w**3 - slope * w  # noqa: E731
    found = sharpness.critical_sharpness(loss, jnp.array(0.0), jnp.ones(4))
    assert np.isnan(found.value) or found.value == pytest.approx(2 * slope**0.5, rel=0.2)


def test_the_relative_one_is_that_of_the_first_loss_along_the_descent_on_the_second():
    other = np.array([[1.0, 0.0], [0.0, 6.0]])
    direction = -other @ START
    step = -2 * (MATRIX @ START) @ direction / (direction @ MATRIX @ direction)
    trained = quadratic(jnp.asarray(other, jnp.float32))
    found = sharpness.relative_critical_sharpness(BOWL, W, ONE, trained, [ONE, ONE], tolerance=1e-4)
    assert found.value == pytest.approx(2 / step, rel=1e-3)
    assert found.loss == pytest.approx(START @ MATRIX @ START / 2)


def test_directional_sharpness_is_that_of_the_written_out_hessian():
    params, loss_fn, batches = network()
    gradients, hessians = written_out()
    updates = random_vector_like(params)
    u = floats(updates)
    unit = u / np.linalg.norm(u)
    found = sharpness.directional_sharpness(loss_fn, params, batches, updates)
    assert found.value == pytest.approx(unit @ hessians.mean(0) @ unit, rel=1e-4)
    assert found.slope == pytest.approx(gradients.mean(0) @ unit, rel=1e-4)
    assert found.norm == pytest.approx(np.linalg.norm(u), rel=1e-5) and found.count == 3
    each = np.array([unit @ hessians[rows].mean(0) @ unit for rows in ROWS])
    shares = np.array([0.5, 0.2, 0.3])
    spread = np.sum(shares * (each - shares @ each) ** 2) / (1 - np.sum(shares**2)) * np.sum(shares**2)
    assert found.standard_error == pytest.approx(spread**0.5, rel=1e-3)


@pytest.mark.slow
def test_the_length_and_the_sign_of_an_update_do_not_matter_and_the_matrix_does():
    params, loss_fn, batches = network()
    updates = random_vector_like(params)
    unit = floats(updates) / np.linalg.norm(floats(updates))
    backwards = jax.tree.map(lambda x: -3 * x if x.dtype.kind == "f" else x, updates)
    one, other = (
        sharpness.directional_sharpness(loss_fn, params, batches[0], u) for u in (updates, backwards)
    )
    assert other.value == pytest.approx(one.value, rel=1e-5) and np.isnan(one.standard_error)
    newton = sharpness.GaussNewton(outputs, losses_of_outputs)
    of_newton = sharpness.directional_sharpness(newton, params, batches[0], updates)
    assert of_newton.value == pytest.approx(unit @ dense_gauss_newton(params, batches[0]) @ unit, rel=1e-4)


def test_batch_sharpness_is_the_mean_of_the_batches_own():
    params, loss_fn, batches = network()
    gradients, hessians = written_out()

    def own(rows):
        g = gradients[rows].mean(0)
        return g @ hessians[rows].mean(0) @ g / (g @ g)

    found = sharpness.batch_sharpness(loss_fn, params, batches)
    np.testing.assert_allclose(found.values, [own(rows) for rows in ROWS], rtol=1e-3)
    assert found.value == pytest.approx(np.average(found.values, weights=[5, 2, 3]))
    assert "± " in str(found) and "(n = 3)" in str(found)
    first = jax.tree.map(lambda x: x[:4], batches[0])
    cut = sharpness.batch_sharpness(loss_fn, params, first, microbatch_size=2)
    np.testing.assert_allclose(cut.values, [own(slice(0, 2)), own(slice(2, 4))], rtol=1e-3)


def test_a_batch_without_a_gradient_has_no_direction():
    def loss_fn(w, batch):
        return batch * w**2 / 2

    found = sharpness.batch_sharpness(loss_fn, jnp.array(1.0), [jnp.zeros(3), 4 * jnp.ones(1)])
    assert found.values.tolist() == [4] and found.value == 4 and found.grad_norm == 1
    with pytest.raises(ValueError, match="the gradient of every batch is zero"):
        sharpness.batch_sharpness(loss_fn, jnp.array(0.0), ONE)
