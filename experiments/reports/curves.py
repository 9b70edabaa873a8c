"""Accuracy or loss on the way, against time and against gradients: one line and one band for each group."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from experiments.reports.comparison import name_at_margin, plt, spread_out, without
from experiments.reports.groups import Group
from experiments.reports.intervals import margin
from experiments.running.scores import Score
from optax_sam.sharpness.plots import COLOURS

AXES = {
    "seconds": "training time (seconds)",
    "gradients": "gradient evaluations, in batches",
}

# Groups beyond the colours.
LINES = ("-", "--", ":")


def draw_curves(groups: Sequence[Group], heading: str, folder: Path) -> None:
    """Draws both pictures, mean and 95 % interval over seeds. The heading names groups that have diverged."""
    together = any("side_by_side" in run.result for group in groups for run in group.runs.values())
    for name, label in AXES.items():
        if name == "seconds" and together:
            label = "seconds of the whole program, whose runs go side by side"
        ended = [group for group in groups if np.isfinite(group.results(group.score.name)).all()]
        diverged = [group.label for group in groups if group not in ended]
        draw(ended, name, label, heading + without(diverged), folder / f"score_by_{name}.png")


def draw(groups: Sequence[Group], name: str, label: str, heading: str, file: Path) -> None:
    """Draws one picture: the early epochs, far below, are cut off."""
    plt.rcParams.update({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False})
    figure, panel = plt.subplots(figsize=(10, max(5.5, 0.36 * len(groups))), layout="constrained")
    figure.suptitle(heading, x=0.01, ha="left", fontsize=13, fontweight="bold")
    if groups:
        draw_lines(panel, groups, name)
    panel.set_xlabel(label)
    figure.savefig(file, dpi=130)
    plt.close(figure)


def draw_lines(panel: Axes, groups: Sequence[Group], name: str) -> None:
    """One line and one band for each group, over one of `AXES`."""
    score = groups[0].score
    xs = [group.curves(name).mean(axis=0) for group in groups]
    ys = [score.unit * group.curves(score.name) for group in groups]
    means, bands = [y.mean(axis=0) for y in ys], [margin(y) for y in ys]
    panel.set(ylabel=score.label, ylim=limits(means, bands, score), xlim=(0, 1.01 * max(map(np.max, xs))))
    panel.grid(alpha=0.2)
    heights = spread_out([mean[-1] for mean in means], panel.get_ylim())
    faint = min(0.12, 0.5 / len(groups))
    for number, (group, x, mean, band) in enumerate(zip(groups, xs, means, bands, strict=True)):
        colour = COLOURS[number % len(COLOURS)]
        style = LINES[number // len(COLOURS) % len(LINES)]
        panel.plot(x, mean, style, color=colour, linewidth=1.6)
        end = None if band is None else band[-1]
        panel.errorbar(x[-1], mean[-1], end, fmt="o", color=colour, ms=5, capsize=3, lw=1)
        if band is not None:
            panel.fill_between(x, mean - band, mean + band, color=colour, alpha=faint, linewidth=0, zorder=1)
        name_at_margin(panel, group.label, (x[-1], mean[-1]), heights[number], colour)


def draw_rises(groups: Sequence[Group], heading: str, file: Path) -> None:
    """How much the loss rises at the perturbed weights, as a part of itself: the median of the seeds."""
    plt.rcParams.update({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False})
    figure, panel = plt.subplots(figsize=(10, 5.5), layout="constrained")
    figure.suptitle(heading, x=0.01, ha="left", fontsize=13, fontweight="bold")
    ends = []
    for number, group in enumerate(groups):
        colour, style = COLOURS[number % len(COLOURS)], LINES[number // len(COLOURS) % len(LINES)]
        middle = np.ma.median(np.ma.masked_invalid(group.rises()), axis=0).filled(np.nan)
        epochs = np.arange(1, len(middle) + 1)
        panel.plot(epochs, middle, style, color=colour, linewidth=1.6)
        seen = np.flatnonzero(middle > 0)
        ends.append((group.label, colour, epochs[seen[-1:]], middle[seen[-1:]]))
    panel.set(xlabel="epoch", ylabel="(L(w + e) - L(w)) / L(w), last step of the epoch", yscale="log")
    panel.grid(alpha=0.2)
    for label, colour, epoch, height in ends:
        if len(epoch):
            panel.annotate(label, (epoch[0], height[0]), (6, 0), textcoords="offset points", color=colour)
    figure.savefig(file, dpi=130)
    plt.close(figure)


def limits(
    means: Sequence[np.ndarray], bands: Sequence[np.ndarray | None], score: Score
) -> tuple[float, float]:
    """Room for the lines after their first fifth, and for the intervals at their ends as far as fits."""
    late = np.concatenate([mean[len(mean) // 5 :] for mean in means])
    late = late[np.isfinite(late)]
    low, high = late.min(), late.max()
    most = 0.5 * max(high - low, score.resolution)
    margins = [0.0 if band is None else min(band[-1], most) for band in bands]
    low = min(low, *(mean[-1] - margin for mean, margin in zip(means, margins, strict=True)))
    high = max(high, *(mean[-1] + margin for mean, margin in zip(means, margins, strict=True)))
    highest = 100.5 if score.metric == "accuracy" else math.inf
    return low - 0.1 * most, min(high + 0.1 * most, highest)
