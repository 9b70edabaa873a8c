"""SAM: "Sharpness-Aware Minimization for Efficiently Improving Generalization" (2010.01412)."""

from types import ModuleType, SimpleNamespace

from . import network
from .trajectory import MomentumSGD, Record, Schedule, measured_twice, note, value_at, weights_at
from .trees import Tree, add, with_norm


def sam(
    params: Tree,
    batches: list[dict],
    *,
    rho: Schedule = 0.05,
    lr: Schedule = 0.1,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    weights: list | None = None,
    model: ModuleType | SimpleNamespace = network,
) -> Record:
    """e = rho g / ||g||;  the base optimizer descends on grad(w + e).

    Returns:
      A record with `params` (after the step), `descent`, `perturbation`, `grads` and the
      measurements `perturbed`, `loss`, `perturbed_loss`, `grad_norm`, `perturbed_grad_norm`,
      `perturbation_norm`.
    """
    base, record = MomentumSGD(params, lr, momentum, weight_decay), {}
    for t, batch in enumerate(batches):
        w = weights_at(weights, t)
        g = model.gradient(params, batch, w)
        e = with_norm(g, value_at(rho, t))
        gs = model.gradient(add(params, e), batch, w)
        note(record, **measured_twice(model, params, batch, w, g, e, gs))
        params = base.step(params, gs)
        note(record, params=params, grads=g, perturbation=e, descent=gs)
    return record
