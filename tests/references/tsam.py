"""TSAM: "Reweighting Local Minima with Tilted SAM" (2410.22656)."""

from types import ModuleType, SimpleNamespace

import numpy as np

from . import network
from .trajectory import MomentumSGD, Record, Schedule, note, value_at, weighted_mean, weights_at
from .trees import Tree, add, norm, scale, with_norm, zeros_like


def gaussian_noise(z: Tree, radius: float, noise_scale: float) -> Tree:
    """sigma z, its global norm clipped to the radius; `z` is standard normal."""
    n = scale(noise_scale, z)
    return with_norm(n, min(norm(n), radius))


def uniform_noise(z: Tree, u: float, radius: float) -> Tree:
    """R u^(1/1e8) z / ||z||: in practice on the sphere; `z` is standard normal, `u` is U(0, 1)."""
    return with_norm(z, radius * u ** (1.0 / 1e8))


def tilted_weights(losses: list[float], tilt: float) -> np.ndarray:
    """softmax(t L_j), the maximum of the losses subtracted."""
    powers = np.exp(tilt * (np.array(losses) - np.max(losses)))
    return powers / powers.sum()


def tsam(
    params: Tree,
    batches: list[dict],
    noises: list[list[Tree]],
    *,
    rho: Schedule = 0.05,
    tilt: Schedule = 1.0,
    lr: Schedule = 0.1,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    weights: list | None = None,
    model: ModuleType | SimpleNamespace = network,
) -> Record:
    """Descends on sum_j softmax(t L)_j grad(w + e_j), e_j = n_j + rho g'/||g'|| from the start n_j.

    Args:
      noises: for every step the random starts n_j, one tree per sample.

    Returns:
      A record with `params`, `descent`, and per step one array over the samples of each of
      `tilted_weights`, `start_losses` and `start_grad_norms` (at w + n_j), `losses` and
      `grad_norms` (at w + e_j), `ascent_norms` (of e_j - n_j), `offset_norms` (of e_j).
    """
    base, record = MomentumSGD(params, lr, momentum, weight_decay), {}
    for t, batch in enumerate(batches):
        w = weights_at(weights, t)
        samples, gradients, losses = {}, [], []
        for n in noises[t]:
            start = add(params, n)
            g = model.gradient(start, batch, w)
            ascent = with_norm(g, value_at(rho, t))
            there = add(start, ascent)
            losses.append(weighted_mean(model.losses(there, batch), w))
            gradients.append(model.gradient(there, batch, w))
            note(samples, start_losses=weighted_mean(model.losses(start, batch), w))
            note(samples, start_grad_norms=norm(g), losses=losses[-1])
            note(samples, grad_norms=norm(gradients[-1]), ascent_norms=norm(ascent))
            note(samples, offset_norms=norm(add(n, ascent)))

        a = tilted_weights(losses, value_at(tilt, t))
        descent = zeros_like(params)
        for a_j, g_j in zip(a, gradients, strict=True):
            descent = add(descent, scale(a_j, g_j))
        params = base.step(params, descent)
        note(record, params=params, descent=descent, tilted_weights=a)
        note(record, **{name: np.array(values) for name, values in samples.items()})
    return record
