"""Methods with random perturbations; their standard normals z are arguments, a tree per step."""

from typing import Unpack

import numpy as np

from .training import WHOLE, Base, Training
from .trajectory import Record, Schedule, value_at
from .trees import Tree, add, filter_norms, norm, tree_map, weighted_sum, with_norm, zeros_like


def halves(run: Training) -> tuple[np.ndarray, np.ndarray]:
    """The positions of the first and of the second half of the batch."""
    middle = len(run) // 2
    return np.arange(middle), np.arange(middle, len(run))


def measure_mixture(run: Training, g: Tree, e: Tree, gs: Tree, split: bool) -> None:
    """`g` is of the first half if the batch is split, and then the loss at `e` is not measured."""
    if split:
        run.measure_pair(g, e, gs, loss=run.loss(rows=halves(run)[0]), perturbed_loss=np.nan)
    else:
        run.measure_pair(g, e, gs)


def random_perturbation(
    params: Tree,
    batches: list[dict],
    *,
    noises: list[Tree],
    noise_scale: Schedule = 0.01,
    alpha: Schedule = 0.5,
    split_batch: bool = True,
    **base: Unpack[Base],
) -> Record:
    """RWP (2211.11489): alpha grad_B2(w + e) + (1 - alpha) grad_B1(w), e_f = noise_scale ||w_f|| z.

    B1 and B2 are the halves of the batch, or without `split_batch` both the whole.

    Returns:
      The record of `sam`, of B1 at w; if split, `perturbed_loss` is NaN.
    """
    run = Training(params, batches, **base)
    for t in run:
        first, second = halves(run) if split_batch else (WHOLE, WHOLE)
        deviation = value_at(noise_scale, t)
        e = tree_map(lambda w, z, s=deviation: s * filter_norms(w) * z, run.params, noises[t])
        g, gs = run.gradient(rows=first), run.gradient(e, rows=second)
        measure_mixture(run, g, e, gs, split_batch)
        a = value_at(alpha, t)
        run.descend(weighted_sum((a, gs), (1 - a, g)))
    return run.record


def filter_sums(leaf: np.ndarray) -> np.ndarray:
    """The sum over every filter of a matrix; the entries themselves of a leaf with fewer axes."""
    return leaf.sum(axis=tuple(range(leaf.ndim - 1)), keepdims=True) if leaf.ndim > 1 else leaf


def adaptive_random_perturbation(
    params: Tree,
    batches: list[dict],
    *,
    noises: list[Tree],
    noise_scale: Schedule = 0.001,
    fisher_weight: float = 0.1,
    fisher_decay: float = 0.99,
    alpha: float = 1.0,
    **base: Unpack[Base],
) -> Record:
    """ARWP (2404.00357): e_f = noise_scale ||w_f|| z / sqrt(1 + fisher_weight sum_f F).

    F <- fisher_decay F + (gradient at w + e)^2 after that. alpha = 1: that gradient, of the whole
    batch, is the descent. alpha < 1 (m-ARWP): it is of the second half, and mixed with the gradient
    of the first half at w.

    Returns:
      The record of `sam`: of the one gradient, or of the first half at w; `fisher`, F after the step.
    """
    run, F = Training(params, batches, **base), zeros_like(params)
    for t in run:
        deviation = value_at(noise_scale, t)
        e = tree_map(
            lambda w, z, f, s=deviation: (
                s * filter_norms(w) * z / np.sqrt(1 + fisher_weight * filter_sums(f))
            ),
            run.params, noises[t], F,
        )  # fmt: skip
        if alpha == 1:
            descent = noisy = run.gradient(e)
            run.measure_ahead(e, noisy)
        else:
            first, second = halves(run)
            g, noisy = run.gradient(rows=first), run.gradient(e, rows=second)
            descent = weighted_sum((alpha, noisy), (1 - alpha, g))
            measure_mixture(run, g, e, noisy, split=True)
        F = weighted_sum((fisher_decay, F), (1.0, tree_map(np.square, noisy)))
        run.descend(descent, fisher=F)
    return run.record


def random_sam(
    params: Tree,
    batches: list[dict],
    *,
    noises: list[Tree],
    rho: Schedule = 0.05,
    noise_scale: Schedule = 0.1,
    **base: Unpack[Base],
) -> Record:
    """R-SAM (NeurIPS 2022): SAM from w + D, D_f = noise_scale ||w_f|| n_f / ||n_f||, n of `noises`.

    Returns:
      The record of `sam`: `loss`, `grads` at w + D; `perturbation` is D + rho g / ||g||, and
      `perturbation_norm` the norm of its second part; `start`, D.
    """
    run = Training(params, batches, **base)
    for t in run:
        length = value_at(noise_scale, t)
        D = tree_map(lambda w, n, s=length: s * filter_norms(w) * unit_filters(n), run.params, noises[t])
        g = run.gradient(D)
        ascent = with_norm(g, value_at(rho, t))
        e = add(D, ascent)
        gs = run.gradient(e)
        run.measure_pair(g, e, gs, loss=run.loss(D), perturbation_norm=norm(ascent))
        run.descend(gs, start=D)
    return run.record


def unit_filters(leaf: np.ndarray) -> np.ndarray:
    """Every filter over its norm; zero filters stay zero."""
    norms = filter_norms(leaf)
    return leaf / np.where(norms > 0, norms, 1.0)
