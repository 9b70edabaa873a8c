"""vSAM: "Effective Gradient Sample Size via Variation Estimation" (2403.08821)."""

from itertools import pairwise
from types import ModuleType, SimpleNamespace

import numpy as np

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
from .trees import Tree, add, leaves, norm_of, scale, subtract, with_norm, zeros_like


def sliced_variance(norms: list[float], slices: int) -> float:
    """The mean of the unbiased variances of equal slices of the sorted values."""
    parts = np.split(np.sort(norms), slices)
    return float(np.mean([np.sum((part - part.mean()) ** 2) / (len(part) - 1) for part in parts]))


def mean_relative_change(values: list[float]) -> float:
    """The mean of (x[l+1] - x[l]) / x[l]; a change from zero counts as no change."""
    changes = [(after - before) / before if before != 0 else 0.0 for before, after in pairwise(values)]
    return float(np.mean(changes))


def renewed_rate(
    s: float,
    ratios: list[float],
    variances: list[float],
    rate_gain: tuple[float, float],
    maximum: int,
) -> float:
    """clip(s (1 + a1 clip(dR, -1, 1) + a2 clip(dV, -1, 1)), 1, s_max)."""
    change_r = np.clip(mean_relative_change(ratios), -1.0, 1.0)
    change_v = np.clip(mean_relative_change(variances), -1.0, 1.0)
    return float(np.clip(s * (1 + rate_gain[0] * change_r + rate_gain[1] * change_v), 1.0, maximum))


def vsam(
    params: Tree,
    batches: list[dict],
    *,
    uniforms: list[float] | None = None,
    perturbed: list[bool] | None = None,
    rho: Schedule = 0.05,
    window: int = 50,
    slices: int = 5,
    max_rate: float = 0.8,
    rate_gain: tuple[float, float] = (0.13, 0.13),
    reuse_decay: float = 0.7,
    reuse_steps: int = 6,
    warmup_steps: int = 0,
    tail: int = 10,
    lr: Schedule = 0.1,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    weights: list | None = None,
    model: ModuleType | SimpleNamespace = network,
) -> Record:
    """SAM at int(s) steps of each window; between them the gradient plus beta^j of the last PSF.

    Args:
      uniforms: U(0, 1) for every step, by which the rule decides (unused during warm-up).
      perturbed: instead of `uniforms`, the decisions themselves.

    Returns:
      A record with `params`, `grads`, `descent`, `psf`, the measurements of `sam` (NaN where not
      computed); what the decision saw: `k`, `rate` (s), `probability` (p), `quota`, `used_before`,
      `allowed` (used < quota), `forced` (the quota must be spent now); and after the step: `used`,
      `age` (j), `reuse_factor` (0 where nothing was reused), the buffers `norms` (N), `ratios` (R),
      `variances` (V), each of length `window`, the latest value last.
    """
    if (uniforms is None) == (perturbed is None):
        raise ValueError("pass exactly one of uniforms and perturbed")
    base, record = MomentumSGD(params, lr, momentum, weight_decay), {}
    psf, j, s, used, p, k = zeros_like(params), reuse_steps, 1.0, 0, 0.5, 1
    norms, ratios, variances = [0.0] * window, [0.0] * window, [0.0] * window
    for t, batch in enumerate(batches):
        warm = t < warmup_steps
        if not warm and k % window == 0:
            s = renewed_rate(s, ratios, variances, rate_gain, int(max_rate * window))
            p, used = s / window, 0
        quota = int(s)
        allowed, forced = used < quota, window - k % window <= quota - used
        if perturbed is not None:
            take_sam = bool(perturbed[t])
        else:
            take_sam = warm or (allowed and uniforms[t] >= 1 - p) or forced
        note(record, k=k, rate=s, probability=p, quota=quota, used_before=used)
        note(record, allowed=allowed, forced=forced)

        w = weights_at(weights, t)
        g = model.gradient(params, batch, w)
        factor = 0.0
        if take_sam:
            e = with_norm(g, value_at(rho, t))
            descent = model.gradient(add(params, e), batch, w)
            psf, j, used = subtract(descent, g), 0, used + 1
            n_psf, n_g = norm_of(leaves(psf)[-tail:]), norm_of(leaves(g)[-tail:])
            norms = norms[1:] + [n_psf]
            ratios = ratios[1:] + [n_psf / n_g if n_g > 0 else 0.0]
            variances = variances[1:] + [sliced_variance(norms, slices)]
            note(record, **measured_twice(model, params, batch, w, g, e, descent))
        else:
            if j < reuse_steps:
                j += 1
                factor = reuse_decay**j
            descent = add(g, scale(factor, psf))
            note(record, **measured(model, params, batch, w, g))
        if warm:
            used = 1
        else:
            k += 1
        params = base.step(params, descent)
        note(record, params=params, grads=g, descent=descent, psf=psf, used=used, age=j)
        note(record, reuse_factor=factor, norms=norms, ratios=ratios, variances=variances)
    return record
