"""LE-SAM: a perturbation along which the loss rises by a budget."""

from typing import Unpack

from .training import Base, Training
from .trajectory import Record, Schedule, value_at
from .trees import Tree, norm, with_norm


def lesam(
    params: Tree,
    batches: list[dict],
    *,
    budget: Schedule = 0.35,
    max_rho: Schedule = 0.3,
    **base: Unpack[Base],
) -> Record:
    """LE-SAM (2605.10183): e = min(sigma / ||g||, rho_max) g / ||g||."""
    run = Training(params, batches, **base)
    for t in run:
        g = run.gradient()
        e = with_norm(g, min(value_at(budget, t) / norm(g), value_at(max_rho, t)))
        gs = run.gradient(e)
        run.measure_pair(g, e, gs)
        run.descend(gs)
    return run.record
