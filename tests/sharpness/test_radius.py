"""The test of the radius, against losses whose rises are known."""

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pytest

from optax_sam import sharpness
from optax_sam.sharpness import plots
from tests.problem import init_params, losses, make_batch

HESSIAN = np.diag([4.0, 1.0, 0.5])
W = np.array([1.0, -2.0, 0.5])


def quadratic(w, scale):
    """Half of `w^T H w`, times what each example says."""
    return scale * (w @ jnp.asarray(HESSIAN, jnp.float32) @ w / 2)


def measured(**given):
    batches = [jnp.array([1.0, 1.0]), jnp.array([3.0])]  # weighed by their sizes, 2 and 1
    return sharpness.radius_test(quadratic, jnp.asarray(W, jnp.float32), batches, **given)


def test_rises_of_a_quadratic_are_those_of_its_formula():
    found = measured(learning_rate=0.1)
    gradient = HESSIAN @ W
    length, unit = np.linalg.norm(gradient), gradient / np.linalg.norm(gradient)
    mean = (2 * 1 + 1 * 3) / 3
    np.testing.assert_allclose(found.loss, mean * (W @ HESSIAN @ W / 2), rtol=1e-5)
    np.testing.assert_allclose(found.gradient_norm, mean * length, rtol=1e-5)
    np.testing.assert_allclose(found.predicted, found.radii * mean * length, rtol=1e-5)
    rises = mean * (found.radii * length + found.radii**2 * (unit @ HESSIAN @ unit) / 2)
    np.testing.assert_allclose(found.rises, rises, rtol=1e-3)
    assert found.eigenvalue == pytest.approx(4 * mean, rel=1e-4)
    rho, eta, g = found.radii, 0.1, mean * length
    np.testing.assert_allclose(found.edges, g / (2 * rho) * (np.sqrt(1 + 8 * rho / (eta * g)) - 1), rtol=1e-6)
    at = mean * (found.recommended * length + found.recommended**2 * (unit @ HESSIAN @ unit) / 2)
    assert at / found.loss == pytest.approx(0.75, rel=0.02)
    bend = found.parts_at * (unit @ HESSIAN @ unit) / 2 / length
    assert bend == pytest.approx(0.5, rel=0.05)


def test_what_was_not_asked_for_is_not_a_number():
    found = measured(eigenvalue=False)
    assert np.isnan(found.eigenvalue) and np.all(np.isnan(found.edges))
    one = sharpness.radius_test(quadratic, jnp.asarray(W, jnp.float32), jnp.ones(2), eigenvalue=False)
    assert np.all(np.isnan(one.standard_errors)) and not np.any(np.isnan(found.standard_errors))


def test_it_prints_its_table_and_its_reason():
    text = str(measured())
    assert text.count("\n") == len(sharpness.RADII) + 1
    assert "Begin with rho = " in text and "rises there by 75%" in text
    small = measured(radii=[1e-3, 1e-2])
    assert np.isnan(small.recommended) and "less than 75% at all of them. Try larger radii." in str(small)
    assert "more than 75% at all of them. Try smaller radii." in str(measured(radii=[10.0, 20.0]))


def test_a_loss_that_is_not_finite_at_large_radii_ends_the_range():
    def bounded(w, scale):
        return scale * jnp.where(jnp.abs(w) < 2, w**2, jnp.nan)

    found = sharpness.radius_test(
        bounded, jnp.float32(1.0), [jnp.ones(2), 2 * jnp.ones(3)], radii=[0.01, 0.1, 1.5], eigenvalue=False
    )
    assert np.isinf(found.rises[2]) and found.recommended == pytest.approx(0.1)


def test_a_loss_that_jumps_to_infinity_is_not_said_to_rise_by_three_quarters():
    def walled(w, scale):
        return scale * jnp.where(w < 1.2, 1 + 0.1 * w, jnp.inf)

    found = sharpness.radius_test(
        walled, jnp.float32(1.0), jnp.ones(1), radii=[0.1, 0.15, 0.3], eigenvalue=False
    )
    assert found.recommended == pytest.approx(0.15)
    np.testing.assert_allclose(found.rises[:2] / found.predicted[:2], 1, rtol=1e-3)
    assert found.parts_at == pytest.approx(0.3)  # at 0.15 they agree
    assert "75%" not in found.reason and "rises there by 0.014 of itself" in found.reason


def test_a_rise_of_half_before_infinity_is_told_as_it_is():
    found = sharpness.radius_test(
        lambda w, x: x * jnp.exp(w),
        jnp.float32(0.0),
        jnp.ones(2),
        radii=[0.1, 0.4055, 100.0],
        eigenvalue=False,
    )
    assert found.recommended == pytest.approx(0.4055)
    assert "75%" not in found.reason and "rises there by 0.5 of itself" in found.reason


def test_where_rise_and_prediction_are_apart_all_along_they_part_at_the_first_radius():
    found = sharpness.radius_test(
        lambda w, scale: scale * w**2, jnp.float32(0.1), jnp.ones(1), radii=[1.0, 2.0], eigenvalue=False
    )
    np.testing.assert_allclose(found.rises / found.predicted, [6, 11], rtol=1e-4)
    assert found.parts_at == 1.0 and np.isnan(found.recommended)


@pytest.mark.parametrize("wrong", [[], [0.0, 1.0], [1.0, 0.5], [[1.0]], [1.0, float("nan")]])
def test_wrong_radii_are_refused(wrong):
    with pytest.raises(ValueError, match=r"radii=.*ascending order: give some"):
        measured(radii=wrong)


def test_wrong_places_are_refused():
    with pytest.raises(sharpness.NotFiniteError, match="gradient at params is zero"):
        sharpness.radius_test(quadratic, jnp.zeros(3), jnp.ones(2))
    with pytest.raises(ValueError, match="learning_rate=-1"):
        measured(learning_rate=-1)


def test_a_network_has_a_radius_and_a_picture():
    batches = [make_batch(seed) for seed in range(3)]
    found = sharpness.radius_test(losses, init_params(), batches, learning_rate=0.1)
    assert np.all(np.isfinite(found.rises[:10])) and found.eigenvalue > 0
    axes = plots.radius_test(found)
    assert axes.get_xscale() == "log" and len(axes.lines) == 2 + np.isfinite(found.recommended)
    plt.close(axes.figure)
