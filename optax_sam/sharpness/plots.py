"""Pictures of what is measured here, for papers and notebooks.

Each function draws on the axes that you pass, or on a new figure, and returns them. No setting of matplotlib
is changed. Fonts and sizes are yours.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from optax_sam.sharpness.landscapes import Landscape
from optax_sam.sharpness.layers import Layers
from optax_sam.sharpness.page import Report
from optax_sam.sharpness.radius import RadiusTest
from optax_sam.sharpness.spectrum import SpectralDensity

try:
    from matplotlib import colors, pyplot, ticker
    from matplotlib.axes import Axes
    from mpl_toolkits.mplot3d.art3d import Poly3DCollection

    from optax_sam.sharpness import scales
except ImportError as error:
    raise ImportError("optax_sam.sharpness.plots draws with matplotlib: pip install matplotlib.") from error

Curves = Mapping[str, Sequence[Any]]
"""Names and `(x, y)` or `(x, y, spread)`, arrays of equal length."""

COLOURS = ("#000000", "#D55E00", "#0072B2", "#56B4E9", "#009E73", "#CC79A7", "#882255", "#E69F00", "#888888")
"""Okabe and Ito's, which the colour-blind can tell apart; wine for yellow, pale on white. A grey is last."""

_LOSSES = colors.LinearSegmentedColormap.from_list("losses", ["#FFFFFF", "#C6DCEC", "#6FA3C8"])
_PLACES = "multiples of direction {}"


def landscape_contour(
    landscape: Landscape, axes: Axes | None = None, levels: Sequence[float] | None = None
) -> Axes:
    """A landscape of two directions as labelled level lines, with a cross at the parameters.

    Where the loss is infinite, the ground is grey.

    Args:
      landscape: from `landscape`, with two directions.
      axes: where to draw. A new figure by default.
      levels: of the lines and colours, ascending, the same for pictures that are compared. By default about
        ten that suit the losses, log-spaced where their range is large.

    Returns:
      The axes.

    Raises:
      ValueError: the landscape has one direction.
    """
    _check_directions(landscape, 2, "landscape_line")
    panel = _axes(axes, (4.8, 4.6))
    low, high = _range(landscape)
    drawn = scales.levels(low, high) if levels is None else np.asarray(levels)
    losses = np.ma.masked_invalid(landscape.losses.T)
    norm = colors.BoundaryNorm(drawn, _LOSSES.N)
    panel.contourf(*landscape.axes, losses.clip(drawn[0], drawn[-1]), drawn, cmap=_LOSSES, norm=norm)
    within = [level for level in drawn if low < level < high]
    if within:
        lines = panel.contour(*landscape.axes, losses, within, colors="0.3", linewidths=0.7)
        panel.clabel(lines, fmt="%g", fontsize="small")
    panel.plot(0, 0, "+", color=COLOURS[1], markersize=12, markeredgewidth=2)
    panel.set_facecolor("0.8")
    x, y = landscape.axes
    panel.set(xlim=x[[0, -1]], ylim=y[[0, -1]], xlabel=_PLACES.format(1), ylabel=_PLACES.format(2))
    panel.set_box_aspect(1)
    panel.locator_params(nbins=5)
    return panel


def landscape_surface(landscape: Landscape, axes: Any = None) -> Any:
    """A landscape of two directions as a surface in space.

    The height is logarithmic where the losses have a large range, and ends where they are infinite.

    Args:
      landscape: from `landscape`, with two directions.
      axes: where to draw, made with `projection="3d"`. A new figure by default.

    Returns:
      The axes.

    Raises:
      ValueError: the landscape has one direction, or the axes are flat.
    """
    _check_directions(landscape, 2, "landscape_line")
    panel = _axes(axes, (5.6, 4.8), projection="3d")
    if not hasattr(panel, "plot_surface"):
        raise ValueError(f'axes={axes!r} are flat: make them with projection="3d".')
    low, high = _range(landscape)
    heights = np.where(np.isfinite(landscape.losses.T), landscape.losses.T, np.nan)
    if scales.is_large(low, high):
        heights, (low, high) = np.log10(np.clip(heights, low, high)), np.log10([low, high])
        panel.zaxis.set_major_formatter(ticker.FuncFormatter(lambda height, _: f"{10**height:.2g}"))
    sides = np.meshgrid(*landscape.axes)
    cells = np.stack([_corners(values) for values in (*sides, heights)], axis=-1)
    cells = cells[np.isfinite(cells).all(axis=(1, 2))]  # where a corner is missing there is a hole
    surface = Poly3DCollection(cells, cmap=_LOSSES, edgecolor="0.3", linewidth=0.3)
    surface.set(array=cells[..., 2].mean(axis=1), clim=(low, high))
    panel.add_collection3d(surface)
    panel.auto_scale_xyz(*sides, heights[np.isfinite(heights)])
    panel.locator_params(nbins=5)
    panel.set_xlabel(_PLACES.format(1), labelpad=8)
    panel.set_ylabel(_PLACES.format(2), labelpad=8)
    panel.set_zlabel("loss", labelpad=8)
    return panel


def landscape_line(landscape: Landscape | Mapping[str, Landscape], axes: Axes | None = None) -> Axes:
    """Landscapes of one direction as curves, with gaps where the loss is infinite.

    Args:
      landscape: from `landscape`, with one direction, or several by their names.
      axes: where to draw. A new figure by default.

    Returns:
      The axes. A dot stands at the parameters. The loss is logarithmic where it is above 0 and its range is
      large.

    Raises:
      ValueError: a landscape has two directions.
    """
    landscapes = _named(landscape)
    panel = _axes(axes, (5.6, 3.6))
    for (name, one), colour in zip(landscapes.items(), _colours(landscapes), strict=True):
        _check_directions(one, 1, "landscape_contour")
        panel.plot(one.axes[0], np.ma.masked_invalid(one.losses), color=colour, label=name)
        panel.plot(0, one.loss, "o", color=colour)
    ranges = np.array([_range(one) for one in landscapes.values()])
    is_positive = all(_lowest(one) > 0 for one in landscapes.values())
    if is_positive and scales.is_large(ranges.min(), ranges.max()):
        scales.make_logarithmic(panel)
    panel.set(xlabel="multiples of the direction", ylabel="loss")
    return _finished(panel, landscapes)


def spectral_density(
    density: SpectralDensity | Mapping[str, SpectralDensity], axes: Axes | None = None
) -> Axes:
    """The density of the Hessian's eigenvalues, on a logarithmic axis.

    Args:
      density: from `spectral_density`, or several by their names.
      axes: where to draw. A new figure by default.

    Returns:
      The axes. A curve ends where it is lower than a hundredth of a single eigenvalue's.
    """
    densities = _named(density)
    panel = _axes(axes, (5.6, 3.6))
    panel.set(yscale="log", xlabel="eigenvalue", ylabel="density")
    panel.axvline(0, color="0.7", linewidth=0.8, zorder=0)
    for (name, one), colour in zip(densities.items(), _colours(densities), strict=True):
        grid, heights = one.density()
        floor = heights.max() / (100 * one.size)
        heights = np.where(heights > floor, heights, np.nan)
        panel.plot(grid, heights, color=colour, linewidth=1.3, label=name)
        panel.fill_between(grid, floor, heights, color=colour, alpha=0.15, linewidth=0)
    return _finished(panel, densities)


def radius_test(test: RadiusTest, axes: Axes | None = None) -> Axes:
    """How much the loss rises with the radius, beside its first-order prediction.

    Args:
      test: from `radius_test`.
      axes: where to draw. A new figure by default.

    Returns:
      The axes, both logarithmic. A line stands at the recommended radius.
    """
    panel = _axes(axes, (5.6, 3.6))
    rises = np.where(np.isfinite(test.rises) & (test.rises > 0), test.relative_rises, np.nan)
    panel.plot(test.radii, rises, "o-", color=COLOURS[2], markersize=4, label="measured")
    panel.plot(test.radii, test.predicted / test.loss, "--", color=COLOURS[1], label="first order")
    if np.isfinite(test.recommended):
        panel.axvline(test.recommended, color="0.5", linewidth=1)
        text = f" rho = {test.recommended:.2g}"
        panel.text(test.recommended, 0.02, text, transform=panel.get_xaxis_transform(), color="0.3")
    panel.set(xscale="log", yscale="log", xlabel="radius", ylabel="rise of a batch's loss / loss")
    return _finished(panel, ("measured", "first order"))


def by_layer(layers: Layers | Mapping[str, Layers], axes: Axes | None = None) -> Axes:
    """The trace of each layer as a bar with its standard error, and its largest eigenvalue as a dot.

    Args:
      layers: from `by_layer`, or several by their names, of the same layers.
      axes: where to draw. A new figure by default.

    Returns:
      The axes. The first layer is on top.

    Raises:
      ValueError: the layers have different names.
    """
    several = _named(layers)
    names = next(iter(several.values())).names
    panel = _axes(axes, (5.6, 1.2 + 0.3 * len(names) * len(several)))
    thick = 0.8 / len(several)
    for number, ((name, one), colour) in enumerate(zip(several.items(), _colours(several), strict=True)):
        if one.names != names:
            raise ValueError(f"layers has the layers {one.names} beside {names}: draw each on its own.")
        places = np.arange(len(names)) - 0.4 + (number + 0.5) * thick
        errors = np.nan_to_num(one.standard_errors)
        panel.barh(places, one.traces, thick, xerr=errors, color=colour, alpha=0.35, ecolor=colour)
        panel.plot(one.eigenvalues, places, "o", color=colour, markersize=4, label=name)
    panel.axvline(0, color="0.7", linewidth=0.8, zorder=0)
    panel.set(yticks=np.arange(len(names)), yticklabels=names, xlabel="trace (bar), largest eigenvalue (dot)")
    panel.invert_yaxis()
    return _finished(panel, several)


def report(report: Report | Mapping[str, Report]) -> Any:
    """A page: density, rises, curvature along the gradients beside `2 / learning rate`, and by layer.

    Args:
      report: from `report`, or several by their names, of networks with the same layers.

    Returns:
      The figure.
    """
    reports = _named(report)
    layers = {name: one.layers for name, one in reports.items()}
    height = 4.2 + 0.3 * len(reports) * len(next(iter(layers.values())).names)
    figure, panels = pyplot.subplots(2, 2, figsize=(11, max(height, 7)), layout="constrained")
    spectral_density({name: one.density for name, one in reports.items()}, panels[0, 0])
    _rises(reports, panels[0, 1])
    _along_gradients(reports, panels[1, 0])
    by_layer(layers, panels[1, 1])
    return figure


def _rises(reports: Mapping[str, Report], axes: Axes) -> None:
    for (name, one), colour in zip(reports.items(), _colours(reports), strict=True):
        rises = [rise.value if rise.value > 0 else np.nan for rise in one.rises]
        errors = np.nan_to_num([rise.standard_error for rise in one.rises])
        axes.errorbar(one.radii, rises, errors, fmt="o-", color=colour, markersize=4, label=name)
    axes.set(xscale="log", yscale="log", xlabel="radius", ylabel="rise at SAM's perturbation")
    _finished(axes, ())


def _along_gradients(reports: Mapping[str, Report], axes: Axes) -> None:
    labels = ["largest\neigenvalue", "critical\nsharpness", "batch\nsharpness"]
    for number, (one, colour) in enumerate(zip(reports.values(), _colours(reports), strict=True)):
        places = np.arange(3) + 0.15 * (number - (len(reports) - 1) / 2)
        values = [one.eigenvalues.values[0], one.critical.value, one.batch.value]
        errors = np.nan_to_num([one.eigenvalues.residuals[0], 0.0, one.batch.standard_error])
        axes.errorbar(places, np.ma.masked_invalid(values), errors, fmt="o", color=colour)
        if one.learning_rate is not None:
            axes.axhline(2 / one.learning_rate, color=colour, linestyle="--", linewidth=1)
    known = any(one.learning_rate is not None for one in reports.values())
    axes.set(xticks=np.arange(3), xticklabels=labels, xlim=(-0.5, 2.5))
    axes.set_ylabel("curvature; dashed: 2 / learning rate" if known else "curvature")
    axes.axhline(0, color="0.7", linewidth=0.8, zorder=0)
    _finished(axes, ())


def trajectories(
    series: Mapping[str, Curves], axes: Sequence[Axes] | None = None, x_label: str = "epoch"
) -> list[Axes]:
    """What you watch during training: panels under each other, with one x axis.

    Args:
      series: for each panel, by the name of its y axis, the methods and their `(x, y)` or
        `(x, y, spread)`. A method has the same colour in all panels.
      axes: one for each panel. A new figure by default.
      x_label: of the lowest panel.

    Returns:
      The axes, from top to bottom.

    Raises:
      ValueError: there is not one axes for each panel.
    """
    if axes is None:
        size = (5.6, 0.7 + 1.5 * len(series))
        figure, grid = pyplot.subplots(
            len(series), sharex=True, squeeze=False, figsize=size, layout="constrained"
        )
        figure.align_ylabels()
        axes = list(grid[:, 0])
    if len(axes) != len(series):
        raise ValueError(f"axes has {len(axes)} entries for {len(series)} panels: pass one for each panel.")
    methods = dict.fromkeys(name for curves in series.values() for name in curves)
    colours = dict(zip(methods, _colours(methods), strict=True))
    for panel, (name, curves) in zip(axes, series.items(), strict=True):
        _draw(panel, curves, colours)
        values = np.concatenate([np.ravel(curve[1]) for curve in curves.values()])
        if scales.is_large(*scales.extremes(values)) and values.min() > 0:
            scales.make_logarithmic(panel)
        panel.set_ylabel(name)
        _finished(panel, ())
        panel.grid(alpha=0.2)
    _legend(axes[0], [axes[0].plot([], [], color=colours[name], label=name)[0] for name in methods])
    axes[-1].set_xlabel(x_label)
    return list(axes)


def accuracy_against_time(curves: Curves, axes: Axes | None = None) -> Axes:
    """Accuracy against training time.

    Args:
      curves: methods and their `(seconds, accuracy)` or `(seconds, accuracy, spread)`, accuracies
        from 0 to 1.
      axes: where to draw. A new figure by default.

    Returns:
      The axes. A dot stands at the end of each curve.
    """
    panel = _axes(axes, (5.6, 4.0))
    colours = dict(zip(curves, _colours(curves), strict=True))
    _draw(panel, curves, colours)
    for name, (seconds, accuracy, *_) in curves.items():
        panel.plot(seconds[-1], accuracy[-1], "o", color=colours[name])
    panel.yaxis.set_major_formatter(ticker.FuncFormatter(lambda part, _: f"{100 * part:g}%"))
    panel.set(xlabel="training time (seconds)", ylabel="accuracy")
    panel.grid(alpha=0.2)
    return _finished(panel, curves)


def _draw(axes: Axes, curves: Curves, colours: Mapping[str, str]) -> None:
    for name, (x, y, *spread) in curves.items():
        axes.plot(x, y, color=colours[name], linewidth=1.5, label=name)
        if spread:
            low, high = np.subtract(y, spread[0]), np.add(y, spread[0])
            axes.fill_between(x, low, high, color=colours[name], alpha=0.15, linewidth=0)


def _axes(axes: Axes | None, size: tuple[float, float], **options: Any) -> Any:
    """The axes given, or those of a new figure."""
    if axes is not None:
        return axes
    return pyplot.figure(figsize=size, layout="constrained").add_subplot(**options)


def _finished(axes: Axes, names: Any) -> Axes:
    """The axes without the frame's upper and right side, with a legend if there are several names."""
    axes.spines[["top", "right"]].set_visible(False)
    if len(names) > 1:
        _legend(axes, [line for line in axes.lines if line.get_label() in names])
    return axes


def _legend(axes: Axes, lines: Sequence[Any]) -> None:
    """A legend above the data, never on it."""
    columns = max(1, 48 // (4 + max(len(line.get_label()) for line in lines)))
    axes.legend(handles=lines, loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, frameon=False)


def _named(one: Any) -> Mapping[str, Any]:
    return one if isinstance(one, Mapping) else {"": one}


def _lowest(landscape: Landscape) -> float:
    losses = landscape.losses
    return float(np.min(losses, where=np.isfinite(losses), initial=landscape.loss))


def _colours(names: Any) -> list[str]:
    return [COLOURS[number % len(COLOURS)] for number in range(len(names))]


def _check_directions(landscape: Landscape, number: int, other: str) -> None:
    if len(landscape.axes) != number:
        raise ValueError(f"landscape has {len(landscape.axes)} directions instead of {number}: use {other}.")


def _corners(values: np.ndarray) -> np.ndarray:
    """The values at the four corners of each cell of a grid, in their order around it."""
    corners = values[:-1, :-1], values[:-1, 1:], values[1:, 1:], values[1:, :-1]
    return np.stack(corners, axis=-1).reshape(-1, 4)


def _range(landscape: Landscape) -> tuple[float, float]:
    """The smallest and the largest finite loss."""
    return scales.extremes(np.append(landscape.losses, landscape.loss))
