"""Functional SAM: the Jacobian of the outputs at the perturbed point, the loss's at the clean one."""

from typing import Unpack

from .training import Base, Training
from .trajectory import Record, Schedule, value_at
from .trees import Tree, with_norm


def functional_sam(
    params: Tree, batches: list[dict], *, rho: Schedule = 0.05, **base: Unpack[Base]
) -> Record:
    """Functional SAM (2502.02407): g' = J(w + e)^T dl/dz (z(w)), e = rho g / ||g||."""
    run = Training(params, batches, **base)
    for t in run:
        g = run.gradient()
        e = with_norm(g, value_at(rho, t))
        gs = run.model.gradient(run.point(e), run.batch, run.w, outputs_at=run.params)
        run.measure_pair(g, e, gs)
        run.descend(gs)
    return run.record
