"""AUSAM: "Asymptotic Unbiased Sample Sampling to Speed Up SAM" (2406.08001)."""

from types import ModuleType, SimpleNamespace

import numpy as np

from . import network
from .trajectory import MomentumSGD, Record, Schedule, measured_twice, note, value_at
from .trees import Tree, add, with_norm


def upper_score(step: int, score_range: tuple[float, float], ramp_steps: int) -> float:
    """smax at a step: linear from fmin to fmax over the ramp; no ramp: fmax from the start."""
    low, high = score_range
    return low + (high - low) * min(step / ramp_steps, 1.0) if ramp_steps else high


def sampling_probabilities(scores: np.ndarray, real: np.ndarray, low: float, high: float) -> np.ndarray:
    """q_i = smin + (A_i - min A) / (max A - min A) (smax - smin), over its sum; padding gets 0."""
    if not real.any():
        return np.zeros(len(scores))
    least, most = scores[real].min(), scores[real].max()
    q = np.ones(len(scores))
    if most > least:
        q = low + (scores - least) / (most - least) * (high - low)
    q = np.where(real, q, 0.0)
    return q / q.sum() if q.sum() > 0 else real / real.sum()


def ausam(
    params: Tree,
    batches: list[dict],
    indices: list[np.ndarray],
    drawn: list[np.ndarray | None],
    num_examples: int,
    *,
    rho: Schedule = 0.1,
    score_range: tuple[float, float] = (0.1, 0.5),
    ramp_steps: int = 0,
    score: str = "loss_difference",
    lr: Schedule = 0.1,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    weights: list | None = None,
    model: ModuleType | SimpleNamespace = network,
) -> Record:
    """SAM on the drawn examples only, drawn in favour of those whose mean score is high.

    Args:
      indices: for every step the batch's rows in the data set; rows outside it are padding.
      drawn: for every step the positions drawn from the batch, or None for the whole batch.
      score: "loss_difference", |l(w + e) - l(w)|, or "gradient_norm", ||grad l(w)||.

    Returns:
      The record of `sam`, measured on the drawn examples, and per step `probabilities` (of the
      draw, over the batch), `upper_score` (smax), `drawn`, `example_scores` (of the drawn), and
      the table after the step, each `[num_examples]`: `sums`, `counts`, `scores`.
    """
    if score not in ("loss_difference", "gradient_norm"):
        raise ValueError(f"unknown score {score!r}")
    base, record = MomentumSGD(params, lr, momentum, weight_decay), {}
    sums, counts, scores = (
        np.zeros(num_examples),
        np.zeros(num_examples, int),
        np.ones(num_examples),
    )
    for t, batch in enumerate(batches):
        rows = np.asarray(indices[t])
        inside = (rows >= 0) & (rows < num_examples)
        w = np.where(inside, 1.0 if weights is None else weights[t], 0.0)
        high = upper_score(t, score_range, ramp_steps)
        batch_scores = np.array([scores[i] if ok else 1.0 for i, ok in zip(rows, inside, strict=True)])
        probabilities = sampling_probabilities(batch_scores, w > 0, score_range[0], high)
        note(record, probabilities=probabilities, upper_score=high)

        S = np.arange(len(rows)) if drawn[t] is None else np.asarray(drawn[t])
        part, w = {name: leaf[S] for name, leaf in batch.items()}, w[S]
        before = model.losses(params, part)
        g = model.gradient(params, part, w)
        e = with_norm(g, value_at(rho, t))
        after = model.losses(add(params, e), part)
        gs = model.gradient(add(params, e), part, w)
        if score == "loss_difference":
            example_scores = np.abs(after - before)
        else:
            example_scores = model.per_example_gradient_norms(params, part)

        written = set()
        for i, weight, value in zip(rows[S], w, example_scores, strict=True):
            if weight > 0 and i not in written:
                sums[i] += value
                counts[i] += 1
                scores[i] = sums[i] / counts[i]
                written.add(i)
        note(record, **measured_twice(model, params, part, w, g, e, gs))
        params = base.step(params, gs)
        note(record, params=params, grads=g, perturbation=e, descent=gs, drawn=S)
        note(record, example_scores=example_scores, sums=sums.copy(), counts=counts.copy())
        note(record, scores=scores.copy())
    return record
