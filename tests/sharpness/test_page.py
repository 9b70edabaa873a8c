"""The page about a network: its numbers are those of the single measurements, and it is drawn."""

import dataclasses

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import pytest

matplotlib.use("agg")

from matplotlib import pyplot as plt  # noqa: E402 (after the choice of a backend)

from optax_sam import sharpness  # noqa: E402
from optax_sam.sharpness import plots, reuse  # noqa: E402
from tests.sharpness.problems import network, written_out  # noqa: E402


@pytest.mark.slow
def test_a_page_has_the_numbers_of_the_single_measurements(capsys, tmp_path):
    params, loss_fn, batches = network()
    before = plt.get_fignums()
    found = sharpness.report(
        loss_fn, params, batches, learning_rate=0.1, radii=[0.05, 0.1], picture=tmp_path / "page.png"
    )
    exact = np.linalg.eigvalsh(written_out()[1].mean(0))
    ends = exact[[-1, -2, 1, 0]]
    np.testing.assert_allclose(found.eigenvalues.values, ends, atol=1e-3 * np.abs(exact).max())
    assert abs(found.trace.value - exact.sum()) <= 4 * found.trace.standard_error + 1e-3 * abs(exact.sum())
    assert found.batch.value == pytest.approx(sharpness.batch_sharpness(loss_fn, params, batches).value)
    assert found.rises[0].value == pytest.approx(
        sharpness.surrogate_gap(loss_fn, params, batches, 0.05).value, rel=1e-5
    )
    assert found.layers.names == ("first", "second") and found.size == 24
    text = capsys.readouterr().out
    for words in (
        "2 / learning rate",
        "20",
        "batch sharpness",
        "rise at 0.05",
        "largest eigenvalues",
        "layer",
    ):
        assert words in text
    assert str(found) in text and (tmp_path / "page.png").stat().st_size > 10_000
    assert plt.get_fignums() == before
    without = dataclasses.replace(found, learning_rate=None)
    assert "learning rate" not in str(without)
    hidden = dataclasses.replace(found.critical, value=np.nan, step=np.nan, interval=(0.0, 0.1))
    without = dataclasses.replace(without, critical=hidden)
    assert without.rows()["critical sharpness"] == "hidden by rounding (20 to inf)"
    assert found.eigenvalues.converged and "converged" not in str(found)
    halted = dataclasses.replace(found.eigenvalues, converged=False, products=60)
    assert "not converged after 60 products" in str(dataclasses.replace(found, eigenvalues=halted))
    figure = plots.report({"one": found, "two": without})
    assert len(figure.axes) == 4 and len(figure.axes[3].containers) == 4  # bars and their errors
    other = dataclasses.replace(found.layers, names=("a", "b"))
    with pytest.raises(ValueError, match=r"layers \('a', 'b'\) beside"):
        plots.by_layer({"one": found.layers, "two": other})
    plt.close("all")


@pytest.mark.slow
def test_what_a_page_measures_again_is_compiled_once():
    params, loss_fn, batches = network()
    newton = sharpness.GaussNewton(lambda w, x: x @ w, lambda y, x: jnp.cosh(y))
    batch = jax.random.normal(jax.random.key(0), (4, 3))
    before = len(reuse._COMPILED)
    found = sharpness.page.measured(newton, jnp.ones(3), [batch, batch])
    first = len(reuse._COMPILED) - before
    assert found.eigenvalues.values[-1] > 0 and found.layers.names == ("params",)
    sharpness.page.measured(newton, jnp.ones(3), [batch, batch], seed=1)
    assert len(reuse._COMPILED) - before == first <= 6


@pytest.mark.parametrize(
    ("values", "ends"),
    [
        ((5.0, 5, 3, 2, 1, *[0.5] * 30), (5, 5, 0.5, 0.5)),
        ((7.0, 7, 6, 5, 4, 3, 2, 1, -1, -1), (7, 7, -1, -1)),
    ],
)
def test_a_page_has_both_copies_of_an_eigenvalue(values, ends):
    spectrum = jnp.asarray(values)
    losses = lambda w, s: s * (jnp.sum(spectrum * w**2) / 2)
    found = sharpness.page.measured(losses, jnp.ones(len(values)), jnp.ones(2), radii=[0.1])
    np.testing.assert_allclose(found.eigenvalues.values, ends, rtol=1e-4)
