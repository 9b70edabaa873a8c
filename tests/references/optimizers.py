"""Methods that are optimizers themselves: no base optimizer follows."""

import numpy as np

from . import network
from .training import Model
from .trajectory import Record, Schedule, measured_twice, note, value_at, weighted_mean, weights_at
from .trees import Tree, add, norm, scale, tree_map, weighted_sum, with_norm, zeros_like


def adasam(
    params: Tree,
    batches: list[dict],
    *,
    learning_rate: Schedule,
    rho: Schedule = 0.05,
    b1: float = 0.9,
    b2: float = 0.999,
    epsilon: float = 1e-8,
    weights: list | None = None,
    model: Model = network,
) -> Record:
    """AdaSAM (2303.00565): AMSGrad on SAM's gradient, no correction of the bias.

    m = b1 m + (1 - b1) g';  v = b2 v + (1 - b2) g'^2;  vhat = max(vhat, v), from epsilon^2 on;
    w -= learning_rate m / sqrt(vhat).

    Returns:
      The record of `sam`, and `first_moment`, `second_moment`, `maximum` (vhat) after the step.
    """
    record, m, v = {}, zeros_like(params), zeros_like(params)
    vhat = tree_map(lambda leaf: np.full_like(leaf, epsilon**2), params)
    for t, batch in enumerate(batches):
        w = weights_at(weights, t)
        g = model.gradient(params, batch, w)
        e = with_norm(g, value_at(rho, t))
        gs = model.gradient(add(params, e), batch, w)
        note(record, **measured_twice(model, params, batch, w, g, e, gs))
        m = weighted_sum((b1, m), (1 - b1, gs))
        v = weighted_sum((b2, v), (1 - b2, tree_map(np.square, gs)))
        vhat = tree_map(np.maximum, vhat, v)
        rate = value_at(learning_rate, t)
        params = tree_map(lambda p, a, b, rate=rate: p - rate * a / np.sqrt(b), params, m, vhat)
        note(record, params=params, grads=g, perturbation=e, descent=gs)
        note(record, first_moment=m, second_moment=v, maximum=vhat)
    return record


def bsam(
    params: Tree,
    batches: list[dict],
    *,
    num_examples: int,
    noises: list[list[Tree]],
    learning_rate: Schedule = 0.5,
    rho: Schedule = 0.01,
    b1: float = 0.9,
    b2: float = 0.999,
    prior_precision: float = 40.0,
    damping: float = 0.1,
    initial_scale: float = 1.0,
    augmentation_factor: float = 4,
    num_microbatches: int = 8,
    model: Model = network,
) -> Record:
    """bSAM (2210.01620): a posterior of precision N s around w, N = num_examples * augmentation_factor.

    For every contiguous shard of the batch: g at w + z / sqrt(N s), e = rho g / s, g2 at w + e. Then
    with means over the shards and delta = prior_precision / N:
    m = b1 m + (1 - b1) (g2 + delta w);  w -= learning_rate m / s;
    s = b2 s + (1 - b2) (sqrt(s g^2) + damping + delta), w being the parameters before the step.

    Args:
      noises: for every step and shard a tree z of standard normals.

    Returns:
      A record with `params`, `descent` (the mean g2), `first_moment` (m), `scale` (s), both after the
      step; `perturbed`, True; lists over the shards: `shard_grads` (g), `shard_perturbations` (e),
      `shard_perturbed_grads` (g2), `shard_losses` (at w + z / sqrt(N s)), `shard_perturbed_losses`;
      and means over the shards, of the losses and norms: `loss`, `perturbed_loss`, `grad_norm`,
      `perturbed_grad_norm`, `perturbation_norm`, and of the trees: `grads`, `perturbation`.
    """
    N = num_examples * augmentation_factor
    delta, record = prior_precision / N, {}
    m, s = zeros_like(params), tree_map(lambda leaf: np.full_like(leaf, initial_scale), params)
    for t, batch in enumerate(batches):
        shards, S = {}, num_microbatches
        size = len(next(iter(batch.values())))
        for rows, z in zip(np.split(np.arange(size), S), noises[t], strict=True):
            part = {name: leaf[rows] for name, leaf in batch.items()}
            theta = tree_map(lambda w, h, n: w + np.sqrt(1 / (N * h)) * n, params, s, z)
            g = model.gradient(theta, part)
            e = scale(value_at(rho, t), tree_map(np.divide, g, s))
            g2 = model.gradient(add(params, e), part)
            spread = tree_map(lambda h, d: np.sqrt(h * d * d), s, g)
            note(shards, grads=g, perturbations=e, perturbed_grads=g2, spreads=spread)
            note(shards, losses=weighted_mean(model.losses(theta, part)))
            note(shards, perturbed_losses=weighted_mean(model.losses(add(params, e), part)))

        g2, spread = mean(shards["perturbed_grads"]), mean(shards.pop("spreads"))
        m = weighted_sum((b1, m), (1 - b1, weighted_sum((1.0, g2), (delta, params))))
        rate = value_at(learning_rate, t)
        params = tree_map(lambda w, a, h, rate=rate: w - rate * a / h, params, m, s)
        s = tree_map(lambda h, d: b2 * h + (1 - b2) * (d + damping + delta), s, spread)

        note(record, params=params, descent=g2, first_moment=m, scale=s, perturbed=True)
        note(record, grads=mean(shards["grads"]), perturbation=mean(shards["perturbations"]))
        note(record, loss=np.mean(shards["losses"]), perturbed_loss=np.mean(shards["perturbed_losses"]))
        note(record, grad_norm=np.mean([norm(tree) for tree in shards["grads"]]))
        note(record, perturbed_grad_norm=np.mean([norm(tree) for tree in shards["perturbed_grads"]]))
        note(record, perturbation_norm=np.mean([norm(tree) for tree in shards["perturbations"]]))
        note(record, **{f"shard_{name}": values for name, values in shards.items()})
    return record


def mean(trees: list[Tree]) -> Tree:
    """The mean of trees."""
    return scale(1 / len(trees), weighted_sum(*((1.0, tree) for tree in trees)))
