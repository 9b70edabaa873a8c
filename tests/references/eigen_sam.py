"""Eigen-SAM: the gradient, and the top eigenvector of the Hessian beside it."""

from typing import Unpack

import numpy as np

from .training import Base, Training
from .trajectory import Record, Schedule, value_at
from .trees import Tree, add, dot, norm, ratio, scale, subtract, weighted_sum


def eigen_sam(
    params: Tree,
    batches: list[dict],
    *,
    first_vector: Tree,
    rho: Schedule = 0.1,
    alpha: Schedule = 0.2,
    refresh_steps: int = 100,
    power_iterations: int = 5,
    **base: Unpack[Base],
) -> Record:
    """Eigen-SAM (2501.12666): e = rho (g / ||g|| + alpha sign(<g, v>) v), v by power iterations.

    The Hessian product is a difference of gradients, right to the fourth order.
    """
    run, v = Training(params, batches, **base), first_vector
    for t in run:
        g, old = run.gradient(), v
        if t % refresh_steps == 0:
            for _ in range(power_iterations):
                near, far = (
                    subtract(run.gradient(scale(h, v)), run.gradient(scale(-h, v))) for h in (1e-3, 2e-3)
                )
                change = weighted_sum((8.0, near), (-1.0, far))
                v = scale(1 / norm(change), change)
            v = scale(-1.0, v) if dot(v, old) < 0 else v
        unit = scale(ratio(1.0, norm(g)), g)
        side = value_at(alpha, t) * float(np.sign(dot(unit, v)))
        e = scale(value_at(rho, t), add(unit, scale(side, v)))
        gs = run.gradient(e)
        run.measure_pair(g, e, gs)
        run.descend(gs, vector=v, direction=weighted_sum((1.0, unit), (side, v)))
    return run.record
