"""What was recorded of the sharpness during training, as a picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import pyplot as plt

from experiments.methods.names import title
from experiments.reports.intervals import deviation
from optax_sam.sharpness import plots

PANELS = {
    "top_eigenvalue": "largest\neigenvalue",
    "psf_norm": "PSF norm",
    "surrogate_gap": "rise of the loss\nat 0.05",
    "loss_change_rank": "rank correlation,\nloss change and\ngradient norm",
    "batch_sharpness": "batch\nsharpness",
    "critical_sharpness": "critical\nsharpness",
    "directional_sharpness": "curvature along\nthe update",
    "gate": "gradients\nper step",
}

Lines = Sequence[Mapping[str, Any]]


def draw_sharpness(runs: Mapping[str, Sequence[Lines]], heading: str, file: Path) -> None:
    """Draws the recorded epochs, each method's mean and standard deviation over its runs.

    Args:
      runs: by method, the lines of metrics.jsonl of each run.
      heading: over the picture.
      file: where it goes.
    """
    series = {
        label: {title(name): trajectory(each, key) for name, each in runs.items()}
        for key, label in PANELS.items()
        if key == "gate" or all(_records(lines, key) for each in runs.values() for lines in each)
    }
    size = (7, 2 * len(series))
    figure, grid = plt.subplots(len(series), sharex=True, figsize=size, layout="constrained")
    figure.suptitle(heading, x=0.01, ha="left", fontsize=11)
    figure.align_ylabels()
    plots.trajectories(series, list(grid))
    figure.savefig(file, dpi=110)
    plt.close(figure)


def trajectory(runs: Sequence[Lines], key: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Recorded epochs, mean and standard deviation over runs of one number."""
    recorded = [[line for line in with_gate(lines) if "surrogate_gap" in line] for lines in runs]
    values = np.array([[line.get(key) for line in lines] for lines in recorded], float)
    return np.array([line["epoch"] for line in recorded[0]]), values.mean(axis=0), deviation(values)


def _records(lines: Lines, key: str) -> bool:
    """Whether a run, which may be older than a measure, has recorded it at any epoch."""
    return any(line.get(key) is not None for line in lines)


def with_gate(lines: Lines) -> list[dict[str, Any]]:
    """The lines with the gradients per step of their own epoch."""
    before = [{"gradients": 0.0, "step": 0}, *lines[:-1]]
    return [
        {**line, "gate": (line["gradients"] - old["gradients"]) / (line["step"] - old["step"])}
        for old, line in zip(before, lines, strict=True)
    ]
