"""SAM-SPS: Polyak's step size at the perturbed point."""

from typing import Unpack

import numpy as np

from .training import Base, Training
from .trajectory import Record, Schedule, value_at
from .trees import Tree, dot, norm, ratio, scale


def sam_sps(
    params: Tree,
    batches: list[dict],
    *,
    rho: Schedule = 0.1,
    normalization: float = 1.0,
    max_step: Schedule = 1.0,
    lower_bound: Schedule = 0.0,
    **base: Unpack[Base],
) -> Record:
    """SAM-SPS (2606.01827): gamma = clip((f(e) - l* - <f'(e), e - x>) / ||f'(e)||^2, 0, gamma_b)."""
    run = Training(params, batches, **base)
    for t in run:
        g = run.gradient()
        e = scale(value_at(rho, t) * (1 - normalization + ratio(normalization, norm(g))), g)
        gs = run.gradient(e)
        run.measure_pair(g, e, gs)
        excess = run.loss(e) - value_at(lower_bound, t) - dot(gs, e)
        gamma = np.clip(ratio(excess, dot(gs, gs)), 0, value_at(max_step, t))
        run.descend(scale(gamma, gs))
    return run.record
