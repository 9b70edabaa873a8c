"""Methods that perturb as SAM does and differ in the descent that they make of the gradients."""

from typing import Unpack

import numpy as np

from .training import Base, Model, Training
from .trajectory import Record, Schedule, note, value_at
from .trees import (
    Tree,
    norm,
    perpendicular,
    ratio,
    scale,
    subtract,
    weighted_sum,
    with_norm,
    zeros_like,
)


def gsam(
    params: Tree,
    batches: list[dict],
    *,
    rho: Schedule = 0.05,
    alpha: Schedule = 0.4,
    minimize_clean: bool = False,
    **base: Unpack[Base],
) -> Record:
    """GSAM (2203.08065): g' - alpha (g orthogonal to g').

    `minimize_clean`: g + alpha (g' orthogonal to g).
    """
    run = Training(params, batches, **base)
    for t in run:
        g = run.gradient()
        e = with_norm(g, value_at(rho, t))
        gs = run.gradient(e)
        if minimize_clean:
            descent = weighted_sum((1.0, g), (value_at(alpha, t), perpendicular(gs, to=g)))
        else:
            descent = weighted_sum((1.0, gs), (-value_at(alpha, t), perpendicular(g, to=gs)))
        run.measure_pair(g, e, gs)
        run.descend(descent)
    return run.record


def gradient_norm_penalty(
    params: Tree,
    batches: list[dict],
    *,
    rho: Schedule = 0.1,
    alpha: Schedule = 0.8,
    **base: Unpack[Base],
) -> Record:
    """GNP (2202.03599): (1 - alpha) g + alpha g'."""
    run = Training(params, batches, **base)
    for t in run:
        g = run.gradient()
        e = with_norm(g, value_at(rho, t))
        gs = run.gradient(e)
        run.measure_pair(g, e, gs)
        run.descend(weighted_sum((1 - value_at(alpha, t), g), (value_at(alpha, t), gs)))
    return run.record


def wsam(
    params: Tree, batches: list[dict], *, rho: Schedule = 0.05, gamma: float = 0.9, **base: Unpack[Base]
) -> Record:
    """WSAM (2305.15817): (1 - a) g + a g', a = gamma / (1 - gamma)."""
    run, a = Training(params, batches, **base), gamma / (1 - gamma)
    for t in run:
        g = run.gradient()
        e = with_norm(g, value_at(rho, t))
        gs = run.gradient(e)
        run.measure_pair(g, e, gs)
        run.descend(weighted_sum((1 - a, g), (a, gs)))
    return run.record


def decoupled_wsam(
    params: Tree,
    batches: list[dict],
    *,
    rho: Schedule = 0.05,
    gamma: float = 0.9,
    learning_rate: Schedule | None = None,
    **base: Unpack[Base],
) -> Record:
    """WSAM decoupled: the base optimizer descends on g, then w -= learning_rate a (g' - g).

    `learning_rate=None` is the rate of the base optimizer.

    Returns:
      The record of `sam` (its `descent` is g), and `sharpness`: g' - g.
    """
    run, a = Training(params, batches, **base), gamma / (1 - gamma)
    for t in run:
        g = run.gradient()
        e = with_norm(g, value_at(rho, t))
        gs = run.gradient(e)
        run.measure_pair(g, e, gs)
        stepped = run.base.step(run.params, g)
        rate = value_at(run.base.lr if learning_rate is None else learning_rate, t)
        run.params = weighted_sum((1.0, stepped), (-rate * a, subtract(gs, g)))
        note(run.record, params=run.params, descent=g, sharpness=subtract(gs, g))
    return run.record


def bilateral_sam(
    params: Tree,
    batches: list[dict],
    *,
    rho: Schedule = 0.05,
    lower_rho: Schedule = 0.05,
    **base: Unpack[Base],
) -> Record:
    """BSAM (2409.13173): g+ + g - (||g+|| / ||g-||) g-, with g- at w - lower_rho g / ||g||.

    Returns:
      The record of `sam`, measured at w and at the upper point, and `lower_grads`: g-.
    """
    run = Training(params, batches, **base)
    for t in run:
        g = run.gradient()
        e = with_norm(g, value_at(rho, t))
        upper = run.gradient(e)
        lower = run.gradient(with_norm(g, -value_at(lower_rho, t)))
        run.measure_pair(g, e, upper)
        descent = weighted_sum((1.0, upper), (1.0, g), (-ratio(norm(upper), norm(lower)), lower))
        run.descend(descent, lower_grads=lower)
    return run.record


def fgsam(
    params: Tree,
    batches: list[dict],
    *,
    surrogate: Model,
    rho: Schedule = 0.05,
    mix: Schedule = 0.5,
    **base: Unpack[Base],
) -> Record:
    """FGSAM (2410.16845): mix g + gs, gs the surrogate's gradient at w + rho g / ||g||.

    Returns:
      The record of `sam`; `perturbed_grad_norm` is ||gs||, `perturbed_loss` is NaN.
    """
    run = Training(params, batches, **base)
    for t in run:
        g = run.gradient()
        e = with_norm(g, value_at(rho, t))
        gs = run.gradient(e, model=surrogate)
        run.measure_pair(g, e, gs, perturbed_loss=np.nan)
        run.descend(weighted_sum((value_at(mix, t), g), (1.0, gs)))
    return run.record


def fgsam_plus(
    params: Tree,
    batches: list[dict],
    *,
    surrogate: Model,
    rho: Schedule = 0.05,
    mix: Schedule = 0.5,
    every_k: int = 2,
    alpha: Schedule = 0.7,
    **base: Unpack[Base],
) -> Record:
    """FGSAM+ (2410.16845): FGSAM in every k-th step; the others take gm, the surrogate's gradient at w.

    FGSAM's steps keep gG = g and gv = gs, both orthogonal to gm. The others descend on
    gm + alpha gv ||gm|| / ||gv|| + mix (gm + gG ||gm|| / ||gG||).

    Returns:
      The record of `fgsam`, in the other steps with gm for `grads` and NaN for `loss`; and
      `surrogate_grads` (gm), `surrogate_loss` (at w), `kept_gradient` (gG), `kept_perturbed` (gv).
    """
    run = Training(params, batches, **base)
    gG = gv = zeros_like(params)
    for t in run:
        gm = run.gradient(model=surrogate)
        if t % every_k == 0:
            g = run.gradient()
            e = with_norm(g, value_at(rho, t))
            gs = run.gradient(e, model=surrogate)
            gG, gv = perpendicular(g, to=gm), perpendicular(gs, to=gm)
            descent = weighted_sum((value_at(mix, t), g), (1.0, gs))
            run.measure_pair(g, e, gs, perturbed_loss=np.nan)
        else:
            guessed = weighted_sum((1.0, gm), (ratio(norm(gm), norm(gG)), gG))
            reused = scale(value_at(alpha, t) * ratio(norm(gm), norm(gv)), gv)
            descent = weighted_sum((1.0, gm), (1.0, reused), (value_at(mix, t), guessed))
            run.measure_plain(gm, loss=np.nan)
        note(run.record, surrogate_grads=gm, surrogate_loss=run.loss(model=surrogate))
        run.descend(descent, kept_gradient=gG, kept_perturbed=gv)
    return run.record
