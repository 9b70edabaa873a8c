"""ASAM: "Adaptive Sharpness-Aware Minimization for Scale-Invariant Learning" (2102.11600)."""

from types import ModuleType, SimpleNamespace

import numpy as np

from . import network
from .trajectory import MomentumSGD, Record, Schedule, measured_twice, note, value_at, weights_at
from .trees import Tree, add, norm, scale, tree_map, tree_map_with_key, zeros_like


def asam(
    params: Tree,
    batches: list[dict],
    *,
    rho: Schedule = 0.5,
    eta: float = 0.01,
    lr: Schedule = 0.1,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    weights: list | None = None,
    model: ModuleType | SimpleNamespace = network,
) -> Record:
    """e = rho T^2 g / ||T g||, with T = |w| + eta, and T = 1 for every leaf called "bias".

    Returns:
      The record of `sam`, and `adaptive_norm`: the norm of e / T, which is rho.
    """
    base, record = MomentumSGD(params, lr, momentum, weight_decay), {}
    for t, batch in enumerate(batches):
        w = weights_at(weights, t)
        g = model.gradient(params, batch, w)
        size = tree_map_with_key(
            lambda key, leaf: np.ones_like(leaf) if key == "bias" else np.abs(leaf) + eta, params
        )
        length = norm(tree_map(np.multiply, size, g))
        e = zeros_like(g)
        if length > 0:
            e = scale(value_at(rho, t) / length, tree_map(lambda T, d: T * T * d, size, g))
        gs = model.gradient(add(params, e), batch, w)
        note(record, **measured_twice(model, params, batch, w, g, e, gs))
        params = base.step(params, gs)
        note(record, params=params, grads=g, perturbation=e, descent=gs)
        note(record, adaptive_norm=norm(tree_map(np.divide, e, size)))
    return record
