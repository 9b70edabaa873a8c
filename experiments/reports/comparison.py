"""The comparison as a table in the terminal and as a picture."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.optimize import isotonic_regression

from experiments.methods.names import NOTES, title
from experiments.running.scores import Score

matplotlib.use("agg")

from matplotlib import pyplot as plt  # noqa: E402 (after the choice of a backend)
from matplotlib import ticker  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402

from optax_sam.sharpness.plots import COLOURS  # noqa: E402

# From so many methods on, the table is in order of the score and says what is cheap.
MANY = 12

# A step's time relative to SGD's that counts as the same: repeated measurements differ by as much.
AS_CHEAP = 1.1

MARKERS = "osD^vP*X"


class Curve(NamedTuple):
    """A method's way through training, over seeds.

    Attributes:
      seconds: [epochs], time in training steps so far.
      scores: [epochs], the mean accuracy in percent, or loss.
      spreads: [epochs], its standard deviation.
    """

    seconds: np.ndarray
    scores: np.ndarray
    spreads: np.ndarray


Rows = Mapping[str, Mapping[str, Any]]


def print_table(rows: Rows, score: Score) -> None:
    """Prints one row per method."""
    seeds = max(row["seeds"] for row in rows.values())
    caption = over_seeds(seeds)
    many = len(rows) >= MANY
    if many:
        rows = dict(sorted(rows.items(), key=lambda item: -score.sign * item[1]["score_mean"]))
        caption += "; best first, SGD and SAM in bold"
    table = Table(caption=caption)
    table.add_column("method", no_wrap=True)
    headings = (score.label, "gradients / step", "time / SGD's", "top eigenvalue", "rise at 0.05")
    for heading in headings:
        table.add_column(heading, justify="right")
    for name, row in rows.items():
        table.add_row(
            title(name),
            score_text(row, score),
            f"{row['gradients_per_step']:.2f}",
            f"{row['step_time_vs_sgd']:.2f}",
            f"{row['top_eigenvalue']:.3g}",
            f"{row['surrogate_gap']:.2g}",
            style="bold" if many and name in ("sgd", "sam") else None,
        )
    Console().print(table)
    for name in rows:
        if name in NOTES:
            print(f"{title(name)}: {NOTES[name]}")
    if many and seeds > 1 and "sam" in rows:
        names = ", ".join(title(name) for name in as_cheap_as_sgd(rows, score)) or "none"
        print(f"as good as SAM within its deviation, in at most {AS_CHEAP:g} times SGD's time: {names}")


def over_seeds(seeds: int) -> str:
    """What the numbers of a table are; one seed has no deviation."""
    return f"mean and standard deviation over {seeds} seeds" if seeds > 1 else "of one seed"


def score_text(row: Mapping[str, Any], score: Score) -> str:
    """The score of a row, with its deviation where there is one."""
    return score.text(row["score_mean"], row["score_std"] if row["seeds"] > 1 else None)


def as_cheap_as_sgd(rows: Rows, score: Score) -> list[str]:
    """Methods as good as SAM, within its deviation, in SGD's time, within a tenth."""
    least = score.sign * rows["sam"]["score_mean"] - rows["sam"]["score_std"]
    return [
        name
        for name, row in rows.items()
        if score.sign * row["score_mean"] >= least and row["step_time_vs_sgd"] <= AS_CHEAP and name != "sgd"
    ]


def draw(rows: Rows, curves: Mapping[str, Curve], score: Score, heading: str, file: Path) -> None:
    """Draws the score against time, against gradients per step, and against sharpness.

    The heading names methods that have diverged.
    """
    ended = {name: row for name, row in rows.items() if math.isfinite(row["score_mean"])}
    heading += without([title(name) for name in rows if name not in ended])
    plt.rcParams.update({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False})
    figure, panels = plt.subplot_mosaic(
        [["time", "gradients"], ["time", "sharpness"]],
        figsize=(14, max(8.0, 0.36 * len(rows))),  # a label's height for every method in each panel
        width_ratios=(1.25, 1),
        layout="constrained",
    )
    figure.suptitle(heading, x=0.01, ha="left", fontsize=14, fontweight="bold")
    if ended:
        draw_panels(panels, ended, curves, score)
    figure.savefig(file, dpi=150)
    plt.close(figure)


def draw_panels(panels: Mapping[str, Axes], rows: Rows, curves: Mapping[str, Curve], score: Score) -> None:
    """The three panels of the comparison."""
    seconds = {name: curves[name].seconds[-1] for name in rows}
    gradients = {name: row["gradients_per_step"] for name, row in rows.items()}
    eigenvalues = {name: row["top_eigenvalue"] for name, row in rows.items()}
    best = max(rows, key=lambda name: score.sign * rows[name]["score_mean"])
    for name, colour in zip(rows, COLOURS * len(rows), strict=False):
        if name in ("sgd", "sam", best):
            draw_way(panels["time"], curves[name], colour)
    draw_methods(panels["time"], rows, score, seconds, "training time (seconds)", room=0.25)
    top = seconds[best], score.unit * rows[best]["score_mean"]
    panels["time"].plot(*top, "o", ms=20, mfc="none", mec="#555555", mew=1.5)
    panels["time"].annotate("best", top, (-14, 0), textcoords="offset points", ha="right", va="center")
    panels["time"].set_xlim(left=min(seconds.values()) / 8)
    draw_methods(panels["gradients"], rows, score, gradients, "gradients per step")
    draw_methods(
        panels["sharpness"],
        rows,
        score,
        eigenvalues,
        "largest Hessian eigenvalue of the training loss; flatter to the left",
    )
    named = ", ".join(title(name) for name in dict.fromkeys(("sgd", "sam", best)) if name in rows)
    panels["time"].set_title(f"Where the trainings end; on the way: {named}", loc="left")
    panels["gradients"].set_title("What it costs", loc="left")
    panels["sharpness"].set_title("How flat it ends", loc="left")


def without(diverged: Sequence[str]) -> str:
    """What a heading says of those whose loss is not finite."""
    return f"; diverged: {', '.join(diverged)}" if diverged else ""


def draw_way(panel: Axes, curve: Curve, colour: str) -> None:
    """The means on the way, with a band of one standard deviation."""
    panel.plot(curve.seconds, curve.scores, color=colour, lw=1.4, alpha=0.8)
    low, high = curve.scores - curve.spreads, curve.scores + curve.spreads
    panel.fill_between(curve.seconds, low, high, color=colour, alpha=0.15, linewidth=0)


def draw_methods(
    panel: Axes, rows: Rows, score: Score, xs: Mapping[str, float], label: str, room: float = 0.06
) -> None:
    """Draws each method's final score with its spread, and names it at the right margin.

    Args:
      panel: where.
      rows: the table.
      score: what it holds.
      xs: the methods' places on the axis, which is logarithmic.
      label: of the axis.
      room: space under the lowest error bar, as a share of the scores' range.
    """
    ends = [
        score.unit * (row["score_mean"] + sign * row["score_std"])
        for row in rows.values()
        for sign in (-1, 1)
    ]
    low, high = min(ends), max(ends)
    height = max(high - low, score.resolution)
    panel.set(xscale="log", ylim=(low - room * height, high + 0.06 * height))
    panel.set(xlabel=f"{label}, log scale", ylabel=score.label)
    panel.grid(alpha=0.2)
    panel.xaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    panel.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    panel.xaxis.set_minor_locator(ticker.NullLocator())
    means = [score.unit * row["score_mean"] for row in rows.values()]
    heights = spread_out(means, panel.get_ylim())
    styles = zip(rows, means, heights, COLOURS * len(rows), strict=False)
    for number, (name, mean, height, colour) in enumerate(styles):
        marker = MARKERS[(number + number // len(COLOURS)) % len(MARKERS)]  # the next with the same colour
        spread = score.unit * rows[name]["score_std"]
        panel.errorbar(xs[name], mean, spread, color=colour, marker=marker, ms=8, capsize=3)
        name_at_margin(panel, title(name), (xs[name], mean), height, colour)


def name_at_margin(panel: Axes, name: str, point: tuple[float, float], height: float, colour: str) -> None:
    """Names a point at the right margin, in its colour, with a thin line to it."""
    panel.annotate(
        name,
        point,
        xytext=(1.03, height),
        textcoords=panel.get_yaxis_transform(),
        color=colour,
        va="center",
        fontweight="bold",
        arrowprops={"arrowstyle": "-", "color": colour, "lw": 0.6, "alpha": 0.5},
    )


def spread_out(heights: Sequence[float], limits: tuple[float, float]) -> np.ndarray:
    """Moves labels apart: the nearest heights in the same order, a line's height between two."""
    low, high = limits
    gap = min(0.06, 1 / len(heights)) * (high - low)
    order = np.argsort(heights, kind="stable")
    # Without the gaps, the nearest ordered heights are an isotonic regression.
    offsets = gap * np.arange(len(heights))
    fitted = isotonic_regression(np.asarray(heights)[order] - offsets).x
    fitted = np.clip(fitted, low, high - offsets[-1]) + offsets
    return fitted[np.argsort(order)]
