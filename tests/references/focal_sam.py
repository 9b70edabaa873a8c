"""Focal-SAM: examples of rare classes count more in the sharpness."""

from typing import Unpack

import numpy as np

from .training import Base, Training
from .trajectory import Record, Schedule, value_at
from .trees import Tree, add, scale, subtract, with_norm


def focal_sam(
    params: Tree,
    batches: list[dict],
    *,
    class_frequencies: list[float],
    weight: float,
    gamma: float,
    rho: Schedule = 0.05,
    **base: Unpack[Base],
) -> Record:
    """Focal-SAM (2505.01660): descent grad mean((1 - c) l)(w) + grad mean(c l)(w + e), as written."""
    run = Training(params, batches, **base)
    pi = np.asarray(class_frequencies, float) / np.sum(class_frequencies)
    for t in run:
        w = np.ones(len(run)) if run.w is None else np.asarray(run.w, float)
        c = weight * (1 - pi[run.batch["label"]]) ** gamma

        def mean(factor, e=None, w=w):
            """The gradient of sum(w factor l) / sum(w)."""
            of_those = run.model.gradient(run.point(e), run.batch, w * factor)
            return scale(np.sum(w * factor) / np.sum(w), of_those)

        g, d = run.gradient(), mean(c)
        e = with_norm(d, value_at(rho, t))
        gs = mean(c, e)
        of_selection = run.model.gradient(run.point(e), run.batch, w * c)
        run.measure_pair(g, e, of_selection)
        run.descend(add(subtract(g, d), gs))
    return run.record
