"""Layers perturbed by their fans: in the Frobenius and in the spectral norm."""

from collections.abc import Callable
from typing import Unpack

import numpy as np

from .training import Base, Training
from .trajectory import Record, Schedule, value_at
from .trees import Tree, scale, tree_map


def root_of_fans(leaf: np.ndarray) -> float:
    """sqrt(fan_out / fan_in); the last axis goes out, a vector has one input."""
    matrix = np.reshape(leaf, (-1, leaf.shape[-1])) if leaf.ndim else np.reshape(leaf, (1, 1))
    return float(np.sqrt(matrix.shape[1] / matrix.shape[0]))


def unit(leaf: np.ndarray) -> np.ndarray:
    """The leaf with Frobenius norm one; zero stays zero."""
    size = np.sqrt(np.sum(np.abs(leaf) ** 2))
    return leaf / size if size > 0 else leaf


def newton_schulz(leaf: np.ndarray) -> np.ndarray:
    """Muon's five steps X <- 3.4445 X - 4.7750 (X X^T) X + 2.0315 (X X^T)^2 X."""
    if leaf.ndim < 2:
        return unit(leaf)
    x = unit(leaf).reshape(-1, leaf.shape[-1])
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x - 4.7750 * a @ x + 2.0315 * a @ a @ x
    return x.reshape(leaf.shape)


def layers(
    params: Tree, batches: list[dict], rho: Schedule, steepest: Callable, **base: Unpack[Base]
) -> Record:
    """Every layer moved by rho sqrt(fan_out / fan_in) times what is steepest in it."""
    run = Training(params, batches, **base)
    for t in run:
        g = run.gradient()
        e = scale(value_at(rho, t), tree_map(lambda leaf: root_of_fans(leaf) * steepest(leaf), g))
        gs = run.gradient(e)
        run.measure_pair(g, e, gs)
        run.descend(gs)
    return run.record


def spectral_sam(params: Tree, batches: list[dict], *, rho: Schedule = 0.01, **base: Unpack[Base]) -> Record:
    """Spectral SAM: e = rho sqrt(fan_out / fan_in) NewtonSchulz(g)."""
    return layers(params, batches, rho, newton_schulz, **base)


def fan_scaled_sam(
    params: Tree, batches: list[dict], *, rho: Schedule = 0.01, **base: Unpack[Base]
) -> Record:
    """Fan-scaled SAM (2411.00075): e = rho sqrt(fan_out / fan_in) g / ||g||_F."""
    return layers(params, batches, rho, unit, **base)
