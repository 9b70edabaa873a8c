"""SAM along the gradient over the root of a second moment."""

from typing import Unpack

import numpy as np

from .training import Base, Training
from .trajectory import Record, Schedule, value_at
from .trees import Tree, tree_map, weighted_sum, with_norm, zeros_like


class Adam:
    """m, v: running means of g and g^2;  w <- w - lr m^ / (sqrt(v^) + 1e-8)."""

    def __init__(self, params: Tree, lr: float, b1: float, b2: float):
        self.lr, self.b1, self.b2, self.count = lr, b1, b2, 0
        self.m, self.v = zeros_like(params), zeros_like(params)

    def step(self, params: Tree, grads: Tree) -> Tree:
        """Returns the new parameters."""
        self.count += 1
        self.m = weighted_sum((self.b1, self.m), (1 - self.b1, grads))
        self.v = weighted_sum((self.b2, self.v), (1 - self.b2, tree_map(np.square, grads)))
        first, second = 1 - self.b1**self.count, 1 - self.b2**self.count
        return tree_map(
            lambda w, m, v: w - self.lr * (m / first) / (np.sqrt(v / second) + 1e-8), params, self.m, self.v
        )


def preconditioned_sam(
    params: Tree,
    batches: list[dict],
    *,
    rho: Schedule = 0.05,
    decay: float = 0.999,
    epsilon: float = 1e-8,
    adam: Adam | None = None,
    **base: Unpack[Base],
) -> Record:
    """Preconditioned ascent (2502.02407): e = rho d / ||d||, d = g / (sqrt(v) + epsilon).

    v is that of `adam`, which is then the base optimizer, or v <- decay v + (1 - decay) g'^2.
    """
    run, own = Training(params, batches, **base), zeros_like(params)
    if adam is not None:
        run.base = adam
    for t in run:
        v = own if adam is None else adam.v
        g = run.gradient()
        e = with_norm(tree_map(lambda g, v: g / (np.sqrt(v) + epsilon), g, v), value_at(rho, t))
        gs = run.gradient(e)
        own = weighted_sum((decay, own), (1 - decay, tree_map(np.square, gs)))
        run.measure_pair(g, e, gs)
        run.descend(gs, moment=own)
    return run.record
