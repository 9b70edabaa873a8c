"""The comparison of many methods as a picture: one line each, best first."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from experiments.methods.names import title
from experiments.reports.comparison import AS_CHEAP, score_text
from experiments.running.scores import Score

SLOW, FAST, PLAIN = "#D55E00", "#009E73", "#555555"
SHOWN = 0.08  # worse than SGD by so much, a dot stands at the edge with its value beside it


def draw_ranking(rows: Mapping[str, Mapping[str, Any]], score: Score, heading: str, file: Path) -> None:
    """Draws the score with its spread, time per step, and sharpness, the methods under each other."""
    rows = dict(sorted(rows.items(), key=lambda item: score.sign * item[1]["score_mean"]))
    plt.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False})
    figure, panels = plt.subplots(
        1,
        3,
        figsize=(12, 1.4 + 0.24 * len(rows)),
        sharey=True,
        width_ratios=(2.2, 1, 1),
        layout="constrained",
    )
    figure.suptitle(heading, x=0.01, ha="left", fontsize=13, fontweight="bold")
    draw_scores(panels[0], rows, score)
    draw_bars(
        panels[1], {name: row["step_time_vs_sgd"] for name, row in rows.items()}, "time of a step / SGD's"
    )
    draw_dots(panels[2], {name: row["top_eigenvalue"] for name, row in rows.items()})
    panels[0].set_yticks(range(len(rows)), [title(name) for name in rows])
    for name, label in zip(rows, panels[0].get_yticklabels(), strict=True):
        label.set_fontweight("bold" if name in ("sgd", "sam") else "normal")
    panels[0].set_ylim(-0.7, len(rows) - 0.3)
    figure.savefig(file, dpi=110)
    plt.close(figure)


def draw_scores(panel: Axes, rows: Mapping[str, Mapping[str, Any]], score: Score) -> None:
    """Means with standard deviations; SGD's and SAM's as lines through all."""
    best = max(rows.values(), key=lambda row: score.sign * row["score_mean"])
    first = rows["sgd"] if "sgd" in rows and math.isfinite(rows["sgd"]["score_mean"]) else best
    worst = score.unit * (first["score_mean"] - score.sign * SHOWN)
    worst = worst if math.isfinite(worst) else 0.0  # all have diverged
    for name, row in rows.items():
        mean, spread = score.unit * row["score_mean"], score.unit * row["score_std"]
        at = list(rows).index(name)
        if score.sign * mean < score.sign * worst:
            panel.plot(worst, at, "<" if score.sign > 0 else ">", color=PLAIN, ms=5)
            panel.annotate(
                score_text(row, score),
                (worst, at),
                (8 * score.sign, 0),
                textcoords="offset points",
                va="center",
                ha="left" if score.sign > 0 else "right",
            )
        else:
            panel.errorbar(
                mean,
                at,
                xerr=spread,
                color=colour(row["step_time_vs_sgd"]),
                marker="o",
                ms=4,
                capsize=2,
                lw=1,
            )
        if name in ("sgd", "sam") and math.isfinite(mean):
            panel.axvline(mean, color=PLAIN, lw=0.8, ls=":" if name == "sgd" else "--")
    panel.set_xlabel(f"{score.label}; dotted: SGD, dashed: SAM")
    panel.grid(axis="y", alpha=0.2)


def draw_bars(panel: Axes, values: Mapping[str, float], label: str) -> None:
    """One bar for each method, and a line at 1."""
    panel.barh(range(len(values)), list(values.values()), color=[*map(colour, values.values())], height=0.65)
    panel.axvline(1, color=PLAIN, lw=0.8, ls=":")
    panel.set_xlabel(label)


def draw_dots(panel: Axes, values: Mapping[str, float]) -> None:
    """The largest eigenvalue of the Hessian, on a logarithmic axis."""
    panel.plot(list(values.values()), range(len(values)), "o", color=PLAIN, ms=4)
    panel.set(xscale="log", xlabel="largest Hessian eigenvalue")
    panel.grid(axis="y", alpha=0.2)


def colour(cost: float) -> str:
    """Green for what costs what SGD costs, orange for what costs what SAM costs, grey between."""
    return FAST if cost <= AS_CHEAP else SLOW if cost >= 1.9 else PLAIN
