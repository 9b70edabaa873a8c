"""Persistent SAM: a perturbation that climbs on through the steps."""

from typing import Unpack

from .training import Base, Training
from .trajectory import Record, Schedule, value_at
from .trees import Tree, norm, weighted_sum, with_norm, zeros_like


def persistent_sam(
    params: Tree,
    batches: list[dict],
    *,
    rho: Schedule = 0.3,
    ascent_rate: Schedule = 0.1,
    decay: float = 0.1,
    **base: Unpack[Base],
) -> Record:
    """Bi-LoRA (2508.19564) on all parameters: e <- clip_rho((1 - decay) e + ascent_rate g), g at w + e."""
    run, s = Training(params, batches, **base), zeros_like(params)
    for t in run:
        radius = value_at(rho, t)
        e = s if norm(s) <= radius else with_norm(s, radius)
        g = run.gradient(e)
        s = weighted_sum((1 - decay, e), (value_at(ascent_rate, t), g))
        run.measure_ahead(e, g)
        run.descend(g, direction=e)
    return run.record
