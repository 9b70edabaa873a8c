"""Methods that differ from SAM in where the one perturbation points and how long it is."""

from collections.abc import Callable
from typing import Unpack

import numpy as np

from .training import Base, Training
from .trajectory import Record, Schedule, value_at
from .trees import (
    Tree,
    add,
    dot,
    filter_norms,
    norm,
    norm_of,
    ratio,
    scale,
    subtract,
    tree_map,
    tree_map_with_key,
    tree_map_with_path,
    weighted_sum,
    with_norm,
    zeros_like,
)


def friendly_sam(
    params: Tree,
    batches: list[dict],
    *,
    rho: Schedule = 0.1,
    sigma: float = 1.0,
    decay: float = 0.9,
    **base: Unpack[Base],
) -> Record:
    """Friendly SAM (2403.12350): d = g - sigma m, with the running mean m of the steps before."""
    run, m = Training(params, batches, **base), None
    for t in run:
        g = run.gradient()
        d = g if m is None else weighted_sum((1.0, g), (-sigma, m))
        m = g if m is None else weighted_sum((decay, m), (1 - decay, g))
        e = with_norm(d, value_at(rho, t))
        gs = run.gradient(e)
        run.measure_pair(g, e, gs)
        run.descend(gs, direction=d, mean=m)
    return run.record


def vasso(
    params: Tree, batches: list[dict], *, rho: Schedule = 0.05, theta: float = 0.9, **base: Unpack[Base]
) -> Record:
    """VaSSO (2309.15639): d = (1 - theta) d + theta g, at first g."""
    run, d = Training(params, batches, **base), None
    for t in run:
        g = run.gradient()
        d = g if d is None else weighted_sum((1 - theta, d), (theta, g))
        e = with_norm(d, value_at(rho, t))
        gs = run.gradient(e)
        run.measure_pair(g, e, gs)
        run.descend(gs, direction=d)
    return run.record


def single_step_sam(
    params: Tree,
    batches: list[dict],
    *,
    rho: Schedule = 0.05,
    friendly: bool = False,
    decay: float = 0.99,
    **base: Unpack[Base],
) -> Record:
    """S2-SAM (NeurIPS 2024): the one gradient is at w + rho d / ||d||, d the last descent.

    `friendly` (S2FSAM): d = x - m of the last descent x, m the running mean of those before it; the
    first descent is its own d.
    """
    run, last, m = Training(params, batches, **base), None, None
    for t in run:
        d = zeros_like(params) if last is None else last
        if friendly and last is not None:
            d = last if m is None else subtract(last, m)
            m = last if m is None else weighted_sum((decay, m), (1 - decay, last))
        e = with_norm(d, value_at(rho, t))
        last = run.gradient(e)
        run.measure_ahead(e, last)
        run.descend(last, direction=d)
    return run.record


def momentum_sam(
    params: Tree,
    batches: list[dict],
    *,
    reads_base: bool,
    rho: Schedule = 0.3,
    trace_momentum: float = 0.9,
    **base: Unpack[Base],
) -> Record:
    """Momentum SAM (2401.12033): the one gradient is at w - rho v / ||v||.

    v is the base optimizer's velocity (`reads_base`), or v <- trace_momentum v + descent.
    """
    run, own = Training(params, batches, **base), zeros_like(params)
    for t in run:
        v = run.base.velocity if reads_base else own
        e = with_norm(v, -value_at(rho, t))
        g = run.gradient(e)
        own = weighted_sum((trace_momentum, own), (1.0, g))
        run.measure_ahead(e, g)
        run.descend(g, direction=v)
    return run.record


def extrapolation(
    params: Tree,
    batches: list[dict],
    *,
    step_size: Schedule,
    source: str = "previous_gradient",
    reads_base: bool = False,
    trace_momentum: float = 0.9,
    noises: list[Tree] | None = None,
    **base: Unpack[Base],
) -> Record:
    """EXTRAP (2006.05720): descends on the gradient at w - step_size zeta, nothing normalized.

    zeta is by `source` the "gradient" at w, the last descent ("previous_gradient", 0 at first), the
    "momentum" of `momentum_sam`, or "noise", ||w_f|| z with z of `noises`.
    """
    run, own = Training(params, batches, **base), zeros_like(params)
    last, g = zeros_like(params), None
    for t in run:
        if source == "gradient":
            zeta = g = run.gradient()
        elif source == "previous_gradient":
            zeta = last
        elif source == "momentum":
            zeta = run.base.velocity if reads_base else own
        elif source == "noise":
            zeta = tree_map(lambda w, z: filter_norms(w) * z, run.params, noises[t])
        else:
            raise ValueError(f"unknown source {source!r}")
        e = scale(-value_at(step_size, t), zeta)
        last = run.gradient(e)
        own = weighted_sum((trace_momentum, own), (1.0, last))
        if source == "gradient":
            run.measure_pair(g, e, last)
        else:
            run.measure_ahead(e, last)
        run.descend(last, direction=zeta)
    return run.record


def graphsam(
    params: Tree,
    batches: list[dict],
    *,
    refresh_steps: int,
    rho: Schedule = 0.05,
    max_leaf_norm: Schedule = 0.05,
    decay: float = 0.99,
    adaptive: bool = True,
    **base: Unpack[Base],
) -> Record:
    """GraphSAM (2406.13137): e = rho T^2 gh / ||T gh||, then every leaf cut to `max_leaf_norm`.

    gh is the gradient in every refresh_steps-th step (a second one), else the running mean of the
    descents, each leaf of them over its norm. T = |w|, and 1 for biases or without `adaptive`.
    """
    run, gh, gs = Training(params, batches, **base), zeros_like(params), zeros_like(params)
    for t in run:
        refreshed = t % refresh_steps == 0
        if refreshed:
            gh = run.gradient()
        else:
            unit = tree_map(lambda leaf: ratio(1.0, norm_of([leaf])) * leaf, gs)
            gh = weighted_sum((decay, gh), (1 - decay, unit))
        T = tree_map_with_key(
            lambda key, w: np.abs(w) if adaptive and key != "bias" else np.ones_like(w), run.params
        )
        length = norm(tree_map(np.multiply, T, gh))
        e = scale(ratio(value_at(rho, t), length), tree_map(lambda size, d: size * size * d, T, gh))
        most = value_at(max_leaf_norm, t)
        e = tree_map(lambda leaf, most=most: with_norm_at_most(leaf, most), e)
        gs = run.gradient(e)
        run.measure_ahead(e, gs)
        run.descend(gs, direction=gh, refreshed=refreshed)
    return run.record


def with_norm_at_most(leaf: np.ndarray, most: float) -> np.ndarray:
    """The leaf, shortened where it is longer."""
    return leaf * (most / norm_of([leaf])) if norm_of([leaf]) > most else leaf


def fisher_sam(
    params: Tree, batches: list[dict], *, rho: Schedule = 0.1, eta: float = 1.0, **base: Unpack[Base]
) -> Record:
    """Fisher SAM (2206.04920): u = g / (1 + eta g^2); e = rho u / sqrt(<g, u>)."""
    run = Training(params, batches, **base)
    for t in run:
        g = run.gradient()
        u = tree_map(lambda leaf: leaf / (1 + eta * leaf * leaf), g)
        e = scale(ratio(value_at(rho, t), np.sqrt(dot(g, u))), u)
        gs = run.gradient(e)
        run.measure_pair(g, e, gs)
        run.descend(gs)
    return run.record


def usam(params: Tree, batches: list[dict], *, rho: Schedule = 0.05, **base: Unpack[Base]) -> Record:
    """Unnormalized SAM: e = rho g."""
    run = Training(params, batches, **base)
    for t in run:
        g = run.gradient()
        e = scale(value_at(rho, t), g)
        gs = run.gradient(e)
        run.measure_pair(g, e, gs)
        run.descend(gs)
    return run.record


def multistep_sam(
    params: Tree, batches: list[dict], *, rho: Schedule = 0.05, num_steps: int = 2, **base: Unpack[Base]
) -> Record:
    """n ascent steps of length rho / n, each along the gradient where it stands."""
    run = Training(params, batches, **base)
    for t in run:
        g = slope = run.gradient()
        e = zeros_like(g)
        for _ in range(num_steps):
            e = add(e, with_norm(slope, value_at(rho, t) / num_steps))
            slope = run.gradient(e)
        run.measure_pair(g, e, slope)
        run.descend(slope)
    return run.record


def sam_on(
    params: Tree,
    batches: list[dict],
    *,
    mask: Callable[[tuple[str, ...], np.ndarray], bool],
    rho: Schedule = 10.0,
    eta: float = 0.01,
    order: float = 2,
    **base: Unpack[Base],
) -> Record:
    """SAM-ON (2306.04226): perturbs only the leaves with mask(path, leaf), in units of T = |w| + eta.

    Order 2: e = rho T^2 g / ||T g||, the norm over those leaves; order inf: e = rho T sign(g).
    """
    run = Training(params, batches, **base)
    for t in run:
        g = run.gradient()
        kept = tree_map_with_path(lambda path, w, d: d * bool(mask(path, w)), run.params, g)
        T = tree_map(lambda w: np.abs(w) + eta, run.params)
        if order == 2:
            length = norm(tree_map(np.multiply, T, kept))
            e = scale(ratio(value_at(rho, t), length), tree_map(lambda size, d: size * size * d, T, kept))
        elif order == np.inf:
            e = scale(value_at(rho, t), tree_map(lambda size, d: size * np.sign(d), T, kept))
        else:
            raise ValueError(f"order is 2 or inf, not {order!r}")
        gs = run.gradient(e)
        run.measure_pair(g, e, gs)
        run.descend(gs)
    return run.record
