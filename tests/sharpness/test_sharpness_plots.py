"""What the pictures show: labels, lines and levels, with infinite losses too."""

import runpy
import sys

import matplotlib
import numpy as np
import pytest

matplotlib.use("agg")

from matplotlib import pyplot as plt  # noqa: E402 (after the choice of a backend)

import optax_sam.flax  # noqa: E402
from optax_sam.sharpness import Landscape, SpectralDensity, plots  # noqa: E402

AXIS = np.linspace(-1, 1, 9)
LINE = Landscape((AXIS,), 0.1 + AXIS**2, 0.1)
EPOCHS = np.arange(1, 6)


def plane(scale=1.0, infinite=False):
    losses = 0.01 + scale * (AXIS[:, None] ** 2 + 2 * AXIS[None, :] ** 2)
    if infinite:
        losses = np.where(losses > 0.01 + scale, np.inf, losses)
    return Landscape((AXIS, AXIS), losses, 0.01)


@pytest.fixture(autouse=True)
def drawn_and_closed():
    """What is drawn can be rendered."""
    settings = dict(matplotlib.rcParams)
    yield
    for number in plt.get_fignums():
        plt.figure(number).canvas.draw()
        plt.close(number)
    assert dict(matplotlib.rcParams) == settings


def legend(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


@pytest.mark.parametrize("infinite", [False, True])
@pytest.mark.parametrize("scale", [0.01, 1.0, 1e30])
def test_levels_are_finite_few_and_within_the_losses(scale, infinite):
    axes = plots.landscape_contour(plane(scale, infinite))
    filled, lines = [found for found in axes.collections if hasattr(found, "levels")]
    assert np.all(np.isfinite(filled.levels)) and 3 < len(filled.levels) < 16
    assert len(lines.levels) > 1 and 0.01 < min(lines.levels) < max(lines.levels) < 4 * scale
    assert axes.get_xlabel() == "multiples of direction 1" and axes.get_ylabel() == "multiples of direction 2"


def test_the_first_direction_is_the_horizontal_axis():
    axes = plots.landscape_contour(plane(), levels=[0, 1.5, 4])
    _, lines = [found for found in axes.collections if hasattr(found, "levels")]
    assert list(lines.levels) == [1.5]
    extent = np.ptp(np.concatenate([path.vertices for path in lines.get_paths()]), axis=0)
    assert extent[0] > extent[1] + 0.1  # steeper along the second


def test_a_loss_that_is_the_same_everywhere_can_be_drawn():
    flat = Landscape((AXIS, AXIS), np.ones([9, 9]), 1.0)
    plots.landscape_contour(flat)
    plots.landscape_surface(flat)


@pytest.mark.parametrize("scale", [0.05, 1e3])
def test_surfaces_end_where_the_loss_is_infinite(scale):
    axes = plots.landscape_surface(plane(scale, infinite=True))
    low, high = axes.get_zlim()
    assert np.isfinite([low, high]).all() and axes.get_zlabel() == "loss"
    assert high == pytest.approx({0.05: 0.06, 1e3: 3}[scale], rel=0.1)  # 3 decades


def test_surfaces_with_holes_are_drawn_whatever_the_memory_holds(monkeypatch):
    """matplotlib pads cells of fewer corners with memory that nobody wrote, and reckons with it."""
    empty = np.empty

    def used_before(*args, **options):
        array = empty(*args, **options)
        if array.dtype == float:
            array.fill(np.finfo(float).max)
        return array

    monkeypatch.setattr(np, "empty", used_before)
    axes = plots.landscape_surface(plane(0.05, infinite=True))
    axes.figure.canvas.draw()


def test_lines_have_names_a_dot_each_and_gaps():
    steep = Landscape((AXIS,), np.where(AXIS > 0.5, np.inf, 1e3 * AXIS**2 + 0.1), 0.1)
    axes = plots.landscape_line({"SGD": steep, "SAM": LINE})
    assert legend(axes) == ["SGD", "SAM"] and len(axes.lines) == 4 and axes.get_yscale() == "log"
    assert np.ma.count_masked(axes.lines[0].get_ydata(orig=True)) == 2
    assert plots.landscape_line(LINE).get_yscale() == "linear"


def test_a_line_that_touches_zero_is_linear_and_whole():
    lowest = Landscape((AXIS,), 1e3 * AXIS**2, 0.0)
    axes = plots.landscape_line({"SGD": lowest, "SAM": LINE})
    assert axes.get_yscale() == "linear" and axes.get_ylim()[0] < 0


def test_densities_are_logarithmic_and_end_above_nothing():
    found = SpectralDensity(np.array([[0.0, 1.0, 30.0]]), np.array([[0.9, 0.09, 0.01]]), 100, 3)
    axes = plots.spectral_density({"SGD": found, "SAM": found})
    assert axes.get_yscale() == "log" and legend(axes) == ["SGD", "SAM"]
    assert axes.get_ylim()[0] > 1e-6 and axes.get_xlabel() == "eigenvalue"
    assert plots.spectral_density(found).get_legend() is None


def test_trajectories_share_the_axis_and_the_colours():
    series = {
        "loss": {"SGD": (EPOCHS, 10.0**-EPOCHS), "SAM": (EPOCHS, 1 / EPOCHS, 0.1 / EPOCHS)},
        "rate": {"SAM": (EPOCHS, EPOCHS / 5)},
    }
    top, low = plots.trajectories(series)
    assert legend(top) == ["SGD", "SAM"] and low.get_legend() is None
    assert [top.get_ylabel(), low.get_ylabel(), low.get_xlabel()] == ["loss", "rate", "epoch"]
    assert [top.get_yscale(), low.get_yscale()] == ["log", "linear"]
    assert low.lines[0].get_color() == top.lines[1].get_color() and top.get_xlim() == low.get_xlim()


def test_accuracy_is_in_percent_on_the_axes_given():
    axes = plt.figure().add_subplot()
    curves = {"SGD": (EPOCHS, EPOCHS / 6), "SAM": (2 * EPOCHS, EPOCHS / 5.5, EPOCHS / 100)}
    assert plots.accuracy_against_time(curves, axes) is axes
    assert legend(axes) == ["SGD", "SAM"] and len(axes.collections) == 1
    assert axes.yaxis.get_major_formatter()(0.95, 0) == "95%"


def test_the_wrong_number_of_directions_or_axes_is_named():
    with pytest.raises(ValueError, match=r"1 directions instead of 2: use landscape_line"):
        plots.landscape_contour(LINE)
    with pytest.raises(ValueError, match=r"2 directions instead of 1: use landscape_contour"):
        plots.landscape_line(plane())
    with pytest.raises(ValueError, match=r'flat: make them with projection="3d"'):
        plots.landscape_surface(plane(), plt.figure().add_subplot())
    with pytest.raises(ValueError, match=r"0 entries for 1 panels"):
        plots.trajectories({"loss": {"SGD": (EPOCHS, EPOCHS)}}, [])


@pytest.mark.parametrize(("module", "missing"), [(plots, "matplotlib"), (optax_sam.flax, "flax")])
def test_what_is_missing_is_named(module, missing, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=rf"pip install {missing}\.$"):
        runpy.run_path(str(module.__file__))


def test_a_diverged_run_leaves_its_panel_empty():
    nothing = np.full(5, np.nan)
    plots.trajectories({"loss": {"SGD": (EPOCHS, nothing)}})
