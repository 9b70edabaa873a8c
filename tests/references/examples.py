"""Methods that choose or weigh the examples of a gradient."""

from typing import Unpack

import numpy as np

from .training import Base, Training
from .trajectory import Record, Schedule, value_at
from .trees import Tree, norm, ratio, scale, tree_map, with_norm


def positions_of_largest(
    scores: np.ndarray, real: np.ndarray, fraction: float, strata: int = 1
) -> np.ndarray:
    """Ascending positions of the int(fraction * batch / strata) largest scores of every stratum.

    The strata are contiguous parts of the batch. Of equal scores the first come first; rows that
    are not real are never chosen, even if fewer remain.
    """
    number = int(fraction * len(scores) / strata)
    ranked, chosen = np.where(real, scores, -np.inf), []
    for part in np.split(np.arange(len(scores)), strata):
        chosen.extend(part[np.argsort(-ranked[part], kind="stable")[:number]])
    return np.array(sorted(i for i in chosen if real[i]), int)


def esam(
    params: Tree,
    batches: list[dict],
    *,
    rho: Schedule = 0.05,
    weight_fraction: float = 0.6,
    example_fraction: float = 0.5,
    strata: int = 1,
    coins: list[Tree] | None = None,
    **base: Unpack[Base],
) -> Record:
    """ESAM (2110.03141): e = (rho / beta) m g / ||m g||, descends on the examples it makes worst.

    Args:
      coins: for every step a tree of one bool per leaf, m; none if `weight_fraction` (beta) is 1.

    Returns:
      The record of `sam`; `perturbed_loss` is NaN if not all examples are seen; `seen`, the
      positions of the examples of the second gradient; `increases`, l_i(w + e) - l_i(w).
    """
    run = Training(params, batches, **base)
    for t in run:
        g = kept = run.gradient()
        if weight_fraction < 1:
            kept = tree_map(lambda leaf, coin: leaf * bool(coin), g, coins[t])
        e = scale(ratio(value_at(rho, t) / weight_fraction, norm(kept)), kept)
        increases = run.losses(e) - run.losses()
        if example_fraction < 1:
            seen = positions_of_largest(increases, run.real(), example_fraction, strata)
            gs = run.gradient(e, rows=seen)
            run.measure_pair(g, e, gs, perturbed_loss=np.nan)
        else:
            seen = np.arange(len(run))
            gs = run.gradient(e)
            run.measure_pair(g, e, gs)
        run.descend(gs, seen=seen, increases=increases)
    return run.record


def ksam(
    params: Tree,
    batches: list[dict],
    *,
    rho: Schedule = 0.05,
    fraction: float = 0.5,
    strata: int = 1,
    **base: Unpack[Base],
) -> Record:
    """K-SAM (2210.12864): SAM on the examples of largest loss alone.

    Returns:
      The record of `sam`, measured on those examples; `seen`, their positions; `losses` at w.
    """
    run = Training(params, batches, **base)
    for t in run:
        losses = run.losses()
        seen = positions_of_largest(losses, run.real(), fraction, strata)
        g = run.gradient(rows=seen)
        e = with_norm(g, value_at(rho, t))
        gs = run.gradient(e, rows=seen)
        run.measure_pair(g, e, gs, rows=seen)
        run.descend(gs, seen=seen, losses=losses)
    return run.record


def reweighted_sam(
    params: Tree,
    batches: list[dict],
    *,
    noises: list[Tree],
    weight: float,
    difference_step: float,
    rho: Schedule = 0.05,
    **base: Unpack[Base],
) -> Record:
    """RW-SAM (2509.18001): e = rho g / ||g||, g the gradient of sum p_i l_i; the descent is plain.

    n_i = |l_i(w + delta z) - l_i(w)| / delta, p_i ~ exp(weight n_i) times the example's weight.

    Args:
      noises: for every step a tree z of +-1.

    Returns:
      The record of `sam`: `grads` and `grad_norm` are of g, `loss` and `perturbed_loss` the plain
      means; `slopes` (n) and `probabilities` (p) of the examples.
    """
    run = Training(params, batches, **base)
    for t in run:
        z = scale(difference_step, noises[t])
        slopes = np.abs(run.losses(z) - run.losses()) / difference_step
        real = run.real()
        p = np.where(real, 1.0 if run.w is None else run.w, 0.0)
        p[real] *= np.exp(weight * (slopes[real] - slopes[real].max(initial=0.0)))
        p = p / p.sum() if p.sum() > 0 else p
        g = run.model.gradient(run.params, run.batch, p)
        e = with_norm(g, value_at(rho, t))
        gs = run.gradient(e)
        run.measure_pair(g, e, gs)
        run.descend(gs, slopes=slopes, probabilities=p)
    return run.record
