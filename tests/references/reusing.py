"""Methods that pay for SAM in some steps only, and those that reuse its gradient in the others."""

from typing import Unpack

import numpy as np

from .training import Base, Training
from .trajectory import Record, Schedule, value_at
from .trees import Tree, norm, norm_of, perpendicular, ratio, tree_map, weighted_sum, with_norm, zeros_like


def with_reuse(g: Tree, gv: Tree, alpha: float) -> Tree:
    """g + alpha (||g|| / ||gv||) gv."""
    return weighted_sum((1.0, g), (alpha * ratio(norm(g), norm(gv)), gv))


def looksam(
    params: Tree,
    batches: list[dict],
    *,
    rho: Schedule = 0.05,
    every_k: int = 5,
    alpha: Schedule = 0.7,
    layerwise: bool = False,
    **base: Unpack[Base],
) -> Record:
    """LookSAM (2203.02714): in every k-th step SAM, and gv = g' orthogonal to g is remembered.

    The other steps descend on g + alpha (||g|| / ||gv||) gv. `layerwise` is Look-LayerSAM's
    perturbation of every leaf.

    Returns:
      The record of `sam`, NaN where a step did not compute it, and `reused`: gv after the step.
    """
    run, gv = Training(params, batches, **base), zeros_like(params)
    for t in run:
        g = run.gradient()
        if t % every_k == 0:
            e = with_norm(g, value_at(rho, t))
            if layerwise:
                e = layerwise_perturbation(run.params, g, value_at(rho, t))
            descent = run.gradient(e)
            gv = perpendicular(descent, to=g)
            run.measure_pair(g, e, descent)
        else:
            descent = with_reuse(g, gv, value_at(alpha, t))
            run.measure_plain(g)
        run.descend(descent, reused=gv)
    return run.record


def layerwise_perturbation(params: Tree, g: Tree, rho: float) -> Tree:
    """rho (||w_l|| / ||g_l||) g_l for every leaf l."""
    return tree_map(lambda w, d: rho * ratio(norm_of([w]), norm_of([d])) * d, params, g)


def look_layersam(
    params: Tree,
    batches: list[dict],
    *,
    rho: Schedule = 0.1,
    every_k: int = 5,
    alpha: Schedule = 0.7,
    **base: Unpack[Base],
) -> Record:
    """Look-LayerSAM (2203.02714): e_l = rho (||w_l|| / ||g_l||) g_l; gv by the global norms."""
    return looksam(params, batches, rho=rho, every_k=every_k, alpha=alpha, layerwise=True, **base)


def late_sam(
    params: Tree, batches: list[dict], *, start_step: int, rho: Schedule = 0.05, **base: Unpack[Base]
) -> Record:
    """Late SAM (2410.10373): SAM from step `start_step` on, before it the gradient."""
    run = Training(params, batches, **base)
    for t in run:
        g = descent = run.gradient()
        if t >= start_step:
            e = with_norm(g, value_at(rho, t))
            descent = run.gradient(e)
            run.measure_pair(g, e, descent)
        else:
            run.measure_plain(g)
        run.descend(descent)
    return run.record


def aelooksam(
    params: Tree,
    batches: list[dict],
    *,
    total_steps: int,
    rho: Schedule = 0.05,
    alpha: Schedule = 0.7,
    decay: float = 0.9,
    start_threshold: float = 1.0,
    end_threshold: float = -1.0,
    **base: Unpack[Base],
) -> Record:
    """AE-LookSAM (2304.14647): SAM where ||g||^2 >= mu + c sqrt(var), else LookSAM's reuse.

    Returns:
      The record of `looksam`, and of the gate after its update: `mean` (mu), `variance` (var),
      `threshold` (mu + c sqrt(var)) and `squared_norm`.
    """
    run, gv, mu, var = Training(params, batches, **base), zeros_like(params), 0.0, 0.0
    for t in run:
        g = run.gradient()
        x = norm(g) ** 2
        mu = decay * mu + (1 - decay) * x
        var = decay * var + (1 - decay) * (x - mu) ** 2
        passed = min(t / total_steps, 1.0)
        threshold = mu + (passed * end_threshold + (1 - passed) * start_threshold) * float(np.sqrt(var))
        if x >= threshold:
            e = with_norm(g, value_at(rho, t))
            descent = run.gradient(e)
            gv = perpendicular(descent, to=g)
            run.measure_pair(g, e, descent)
        else:
            descent = with_reuse(g, gv, value_at(alpha, t))
            run.measure_plain(g)
        run.descend(descent, reused=gv, mean=mu, variance=var, threshold=threshold, squared_norm=x)
    return run.record


def aesam(
    params: Tree,
    batches: list[dict],
    *,
    total_steps: int,
    rho: Schedule = 0.05,
    decay: float = 0.9,
    start_threshold: float = 1.0,
    end_threshold: float = -1.0,
    **base: Unpack[Base],
) -> Record:
    """AE-SAM (2304.14647): AE-LookSAM that descends on g where the gate is shut."""
    return aelooksam(
        params, batches, total_steps=total_steps, rho=rho, alpha=0.0, decay=decay,
        start_threshold=start_threshold, end_threshold=end_threshold, **base,
    )  # fmt: skip
