"""ZSharp: a perturbation along the entries of the gradient with a large z-score."""

from typing import Unpack

import numpy as np

from .training import Base, Training
from .trajectory import Record, Schedule, value_at
from .trees import Tree, tree_map, with_norm


def outliers(leaf: np.ndarray, quantile: float) -> np.ndarray:
    """The entries whose |z| is above the quantile of all; zero for the others."""
    if leaf.ndim < 2:
        return leaf
    z = np.abs((leaf - np.mean(leaf)) / np.std(leaf))
    return np.where(z > np.quantile(z, quantile), leaf, 0.0)


def zsharp(
    params: Tree,
    batches: list[dict],
    *,
    rho: Schedule = 0.05,
    quantile: float = 0.95,
    **base: Unpack[Base],
) -> Record:
    """ZSharp (2505.02369): e = rho m g / ||m g||, m the entries with |z| above its quantile in the leaf."""
    run = Training(params, batches, **base)
    for t in run:
        g = run.gradient()
        kept = tree_map(lambda leaf: outliers(leaf, quantile), g)
        e = with_norm(kept, value_at(rho, t))
        gs = run.gradient(e)
        run.measure_pair(g, e, gs)
        run.descend(gs)
    return run.record
