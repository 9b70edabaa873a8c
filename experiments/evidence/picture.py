"""Share of SAM's gain against time, for every candidate and task."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt

from experiments.evidence.candidates import CANDIDATES
from experiments.evidence.summary import AS_CHEAP, ENOUGH, Summary
from experiments.reports.comparison import MARKERS, name_at_margin, spread_out
from optax_sam.sharpness.plots import COLOURS

LOWEST, HIGHEST = -0.25, 1.5


def draw(summaries: Sequence[Summary], file: Path) -> None:
    """A point for each candidate and task whose gain is beyond its interval; a large one for the mean."""
    gaining = [each for each in summaries if each.gains]
    plt.rcParams.update({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False})
    figure, panel = plt.subplots(figsize=(10, 6), layout="constrained")
    panel.set(xlim=(0.4, 2.2), ylim=(LOWEST - 0.05, HIGHEST + 0.05))
    panel.fill_between([0.4, AS_CHEAP], ENOUGH, HIGHEST + 0.05, color="#009E73", alpha=0.12, linewidth=0)
    asked = f"wanted: {ENOUGH:.0%} of SAM's gain,\nin {AS_CHEAP:g} times the base's time"
    panel.text(0.42, ENOUGH - 0.02, asked, color="#00704F", va="top")
    for height, style in ((1, "--"), (0, ":")):
        panel.axhline(height, color="#555555", lw=0.8, ls=style)
    points = {name: points_of(gaining, name) for name in CANDIDATES}
    points = {name: each for name, each in points.items() if len(each)}
    means = [each.mean(0) for each in points.values()]
    heights = spread_out([height for _, height in means], panel.get_ylim())
    for number, (name, each) in enumerate(points.items()):
        colour = COLOURS[number % len(COLOURS)]
        marker = MARKERS[(number + number // len(COLOURS)) % len(MARKERS)]
        panel.plot(*each.T, marker, color=colour, ms=4, alpha=0.5)
        panel.plot(*means[number], marker, color=colour, ms=10)
        name_at_margin(panel, CANDIDATES[name].title, tuple(means[number]), heights[number], colour)
    panel.set_xlabel("time of a step / the base's")
    panel.set_ylabel(f"share of SAM's gain that is kept, cut at {LOWEST} and {HIGHEST}")
    count = "one task" if len(gaining) == 1 else f"{len(gaining)} tasks"
    panel.set_title(f"What you keep, what you pay: {count} on which SAM gains, and the mean", loc="left")
    panel.grid(alpha=0.2)
    figure.savefig(file, dpi=130)
    plt.close(figure)


def points_of(summaries: Sequence[Summary], name: str) -> np.ndarray:
    """Time and share of a candidate on each task where both are known [tasks, 2]; SAM keeps all."""
    kept = [each.kept[name] for each in summaries if name in each.kept]
    found = [
        (each.time[0], 1.0 if name == "sam" else each.share[0] if each.share else np.nan)
        for each in kept
        if each.time is not None
    ]
    known = [(time, float(np.clip(share, LOWEST, HIGHEST))) for time, share in found if share == share]
    return np.array(known).reshape(-1, 2)
