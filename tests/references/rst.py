"""RST and G-RST: "Randomized Sharpness-Aware Training" (2203.09962)."""

from types import ModuleType, SimpleNamespace

from . import network
from .trajectory import (
    MomentumSGD,
    Record,
    Schedule,
    measured,
    measured_twice,
    note,
    value_at,
    weights_at,
)
from .trees import Tree, add, scale, with_norm


def rst(
    params: Tree,
    batches: list[dict],
    perturbed: list[bool],
    *,
    rho: Schedule = 0.05,
    probability: Schedule = 0.5,
    lr: Schedule = 0.1,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    weights: list | None = None,
    model: ModuleType | SimpleNamespace = network,
) -> Record:
    """Where X_t = 1 a step of SAM, else a step of the base optimizer; `perturbed` holds the X_t.

    Returns:
      A record with `params`, `grads`, `descent`, the measurements of `sam` (NaN where the step
      did not compute them) and `probability`, p(t).
    """
    base, record = MomentumSGD(params, lr, momentum, weight_decay), {}
    for t, batch in enumerate(batches):
        w = weights_at(weights, t)
        g1 = model.gradient(params, batch, w)
        if perturbed[t]:
            e = with_norm(g1, value_at(rho, t))
            g = model.gradient(add(params, e), batch, w)
            note(record, **measured_twice(model, params, batch, w, g1, e, g))
        else:
            g = g1
            note(record, **measured(model, params, batch, w, g1))
        params = base.step(params, g)
        note(record, params=params, grads=g1, descent=g, probability=value_at(probability, t))
    return record


def grst(
    params: Tree,
    batches: list[dict],
    perturbed: list[bool],
    *,
    rho: Schedule = 0.05,
    probability: Schedule = 0.5,
    alpha: Schedule | None = None,
    lr: Schedule = 0.1,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    weights: list | None = None,
    model: ModuleType | SimpleNamespace = network,
) -> Record:
    """Where X_t = 1 descends on (1 - alpha) g1 + alpha g2; `alpha=None` is 1 / p(t).

    Returns:
      The record of `rst`, and `alpha`, NaN at the steps that mix nothing.
    """
    base, record = MomentumSGD(params, lr, momentum, weight_decay), {}
    for t, batch in enumerate(batches):
        w = weights_at(weights, t)
        p, a = value_at(probability, t), float("nan")
        g1 = model.gradient(params, batch, w)
        if perturbed[t]:
            e = with_norm(g1, value_at(rho, t))
            g2 = model.gradient(add(params, e), batch, w)
            a = 1.0 / p if alpha is None else value_at(alpha, t)
            g = add(scale(1.0 - a, g1), scale(a, g2))
            note(record, **measured_twice(model, params, batch, w, g1, e, g2))
        else:
            g = g1
            note(record, **measured(model, params, batch, w, g1))
        params = base.step(params, g)
        note(record, params=params, grads=g1, descent=g, probability=p, alpha=a)
    return record
