"""Sparse SAM: a perturbation of SAM's length, of which a mask leaves some entries."""

from typing import Unpack

import numpy as np

from .training import Base, Training
from .trajectory import Record, Schedule, value_at
from .trees import Tree, add, flatten, leaves, scale, tree_map, unflatten, with_norm, zeros_like


def largest_entries(scores: Tree, number: int) -> Tree:
    """True at the `number` largest of all entries; of equal ones the first in `flatten` come first."""
    vector = flatten(scores)
    chosen = np.zeros(len(vector), bool)
    chosen[np.argsort(-vector, kind="stable")[:number]] = True
    return unflatten(chosen, scores)


def largest_leaves(scores: Tree, number: float) -> Tree:
    """True on whole leaves, those of the largest mean first, until `number` entries are kept."""
    parts = leaves(scores)
    masks, kept = [np.zeros(part.shape, bool) for part in parts], 0
    for i in np.argsort([-part.mean() for part in parts], kind="stable"):
        if kept >= number:
            break
        masks[i][...] = True
        kept += parts[i].size
    return unflatten(np.concatenate([mask.ravel() for mask in masks]), scores)


def largest_in_groups(leaf: np.ndarray, n: int, m: int) -> np.ndarray:
    """True at the n largest of every m consecutive rows of a column; a rest of fewer is kept whole."""
    mask = np.ones(leaf.shape, bool)
    if leaf.ndim < 2:
        return mask
    columns = leaf.reshape(-1, leaf.shape[-1])
    kept = mask.reshape(columns.shape)
    for column in range(columns.shape[1]):
        for first in range(0, columns.shape[0] - m + 1, m):
            group = columns[first : first + m, column]
            best = np.argsort(-group, kind="stable")[:n]
            kept[first : first + m, column] = np.isin(np.arange(m), best)
    return kept.reshape(leaf.shape)


def fisher_mask(fisher: Tree, sparsity: float, pattern: str) -> Tree:
    """The entries to keep: "unstructured", "structured" (whole leaves) or "N:M"."""
    number = len(flatten(fisher)) * (1 - sparsity)
    if pattern == "unstructured":
        return largest_entries(fisher, int(number))
    if pattern == "structured":
        return largest_leaves(fisher, number)
    n, m = (int(part) for part in pattern.split(":"))
    return tree_map(lambda leaf: largest_in_groups(leaf, n, m), fisher)


def empirical_fisher(run: Training, num_samples: int) -> Tree:
    """The mean of the squared gradients of the first examples that are no padding, each alone."""
    real = [i for i in range(len(run)) if run.w is None or run.w[i] != 0][:num_samples]
    total = zeros_like(run.params)
    for i in real:
        total = add(total, tree_map(np.square, run.gradient(rows=[i])))
    return scale(1 / len(real), total)


def dynamic_rates(t: int, size: int, sparsity: float, drop_rate: float, total_steps: int) -> tuple[int, int]:
    """How many entries a refresh keeps, and how many it lets grow: their number stays."""
    d = drop_rate * (1 + np.cos(np.pi * t / total_steps)) / 2
    live = size - int(np.ceil(sparsity * size))
    grown = int(min(live * d, size - live))
    return live - grown, grown


def sparse_sam(
    params: Tree,
    batches: list[dict],
    *,
    rho: Schedule = 0.05,
    sparsity: float = 0.2,
    mask: str = "fisher",
    refresh_steps: int = 2000,
    num_samples: int = 1024,
    pattern: str = "unstructured",
    drop_rate: float = 0.5,
    total_steps: int | None = None,
    first_mask: Tree | None = None,
    uniforms: list[Tree] | None = None,
    **base: Unpack[Base],
) -> Record:
    """Sparse SAM (2210.05177, 2306.17504): e = m rho g / ||g||, the norm of the whole g.

    The mask m changes in every refresh_steps-th step, after that step's perturbation:
    "fisher", at first no entry: the largest of the empirical Fisher diagonal at w, by `pattern`;
    "dynamic", at first `first_mask`: of the entries in it the ones of largest |g| stay, and of the
    others the ones of largest `uniforms` come in.

    Returns:
      The record of `sam`; `mask_used`, of the step's perturbation; `mask`, after the step; and
      `scores`: the Fisher diagonal or |g|, NaN where nothing was refreshed.
    """
    run = Training(params, batches, **base)
    m = tree_map(lambda leaf: np.zeros(leaf.shape, bool), params) if mask == "fisher" else first_mask
    for t in run:
        g = run.gradient()
        e = tree_map(np.multiply, m, with_norm(g, value_at(rho, t)))
        used, scores = m, tree_map(lambda leaf: np.full_like(leaf, np.nan), g)
        if t % refresh_steps == 0 and mask == "fisher":
            scores = empirical_fisher(run, num_samples)
            m = fisher_mask(scores, sparsity, pattern)
        elif t % refresh_steps == 0:
            scores = tree_map(np.abs, g)
            keep, grow = dynamic_rates(t, len(flatten(g)), sparsity, drop_rate, total_steps)
            death = tree_map(lambda score, live: (score + 1e-7) * live, scores, m)
            growth = tree_map(lambda u, live: (u + 1e-7) * ~live, uniforms[t], m)
            m = tree_map(np.logical_or, largest_entries(death, keep), largest_entries(growth, grow))
        gs = run.gradient(e)
        run.measure_pair(g, e, gs, mask_used=used)
        run.descend(gs, mask=m, scores=scores)
    return run.record


def fisher_mask_sam(
    params: Tree,
    batches: list[dict],
    *,
    rho: Schedule = 0.05,
    sparsity: float = 0.5,
    refresh_steps: int = 100,
    num_samples: int = 128,
    **base: Unpack[Base],
) -> Record:
    """FSAM (2210.05497): Sparse SAM with the Fisher mask, refreshed more often."""
    return sparse_sam(
        params, batches, rho=rho, sparsity=sparsity, refresh_steps=refresh_steps,
        num_samples=num_samples, **base,
    )  # fmt: skip
