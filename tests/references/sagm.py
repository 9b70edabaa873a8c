"""SAGM: a perturbation shortened in proportion to the gradient, and the sum of both gradients."""

from typing import Unpack

from .training import Base, Training
from .trajectory import Record, Schedule, value_at
from .trees import Tree, add, norm, ratio, scale


def sagm(
    params: Tree,
    batches: list[dict],
    *,
    rho: Schedule = 0.05,
    alpha: Schedule = 0.001,
    **base: Unpack[Base],
) -> Record:
    """SAGM (2303.10353): e = (rho / ||g|| - alpha) g, descent g + g'."""
    run = Training(params, batches, **base)
    for t in run:
        g = run.gradient()
        e = scale(ratio(value_at(rho, t), norm(g)) - value_at(alpha, t), g)
        gs = run.gradient(e)
        run.measure_pair(g, e, gs)
        run.descend(add(g, gs))
    return run.record
