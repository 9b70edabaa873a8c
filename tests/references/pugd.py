"""PUGD: "Perturbated Gradients Updating within Unit Space for Deep Learning" (2110.00199)."""

from types import ModuleType, SimpleNamespace

import numpy as np

from . import network
from .trajectory import MomentumSGD, Record, Schedule, measured_twice, note, value_at, weights_at
from .trees import Tree, add, norm, tree_map, with_norm


def pugd(
    params: Tree,
    batches: list[dict],
    *,
    radius: Schedule = 1.0,
    sum_gradients: bool = True,
    lr: Schedule = 0.1,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    weights: list | None = None,
    model: ModuleType | SimpleNamespace = network,
) -> Record:
    """e = radius |w| g / || |w| g ||;  u = g + grad(w + e);  descends on u / ||u||.

    With `sum_gradients=False`, u = grad(w + e).

    Returns:
      The record of `sam` (its `descent` is u / ||u||), and `sum_norm`: ||u||.
    """
    base, record = MomentumSGD(params, lr, momentum, weight_decay), {}
    for t, batch in enumerate(batches):
        w = weights_at(weights, t)
        g = model.gradient(params, batch, w)
        d = tree_map(lambda leaf, slope: np.abs(leaf) * slope, params, g)
        e = with_norm(d, value_at(radius, t))
        gp = model.gradient(add(params, e), batch, w)
        u = add(g, gp) if sum_gradients else gp
        unit = with_norm(u, 1.0)
        note(record, **measured_twice(model, params, batch, w, g, e, gp))
        params = base.step(params, unit)
        note(record, params=params, grads=g, perturbation=e, descent=unit, sum_norm=norm(u))
    return record
