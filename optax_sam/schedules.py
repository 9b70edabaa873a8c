"""Schedules of RST's probability, and one of LE-SAM's budget, as Optax schedules of the step count.

Those of the probability are the families of RST's paper. In their formulas `t` is the step, `T` is
`total_steps`, and `p` is `probability`. The brackets have the name of the family in the authors' code, and
the mean over training. A step costs `1 + mean` gradients.
"""

import jax.numpy as jnp
import optax

from optax_sam.arithmetic import shares
from optax_sam.engine import checks
from optax_sam.engine.hyperparameters import Count, FixedNotNegative, Share


def constant(probability: Share) -> optax.Schedule:
    """`p(t) = p` ("constant"; mean `p`)."""
    checks.static_number("probability", probability, 0, 1)
    return optax.constant_schedule(probability)


def plain_then_perturbed(probability: Share, total_steps: Count) -> optax.Schedule:
    """`p(t) = 0` for `t <= p T`, then 1 ("piecewise1"; mean `1 - p`)."""
    _check(probability, total_steps)
    return _switch(0.0, 1.0, total_steps, at=probability)


def perturbed_then_plain(probability: Share, total_steps: Count) -> optax.Schedule:
    """`p(t) = 1` for `t <= p T`, then 0 ("piecewise2"; mean `p`)."""
    _check(probability, total_steps)
    return _switch(1.0, 0.0, total_steps, at=probability)


def complement_halfway(probability: Share, total_steps: Count) -> optax.Schedule:
    """`p(t) = p` for `t <= T / 2`, then `1 - p` ("piecewise3"; mean 1/2)."""
    _check(probability, total_steps)
    return _switch(probability, 1 - probability, total_steps, at=0.5)


def increasing(probability: Share, total_steps: Count) -> optax.Schedule:
    """`p(t) = 2 p t / T` if `p <= 1/2`, else `2 p - 1 + 2 (1 - p) t / T` ("linear1"; mean `p`)."""
    _check(probability, total_steps)
    if probability <= 0.5:
        return optax.linear_schedule(0.0, 2 * probability, total_steps)
    return optax.linear_schedule(2 * probability - 1, 1.0, total_steps)


def to_complement(probability: Share, total_steps: Count) -> optax.Schedule:
    """`p(t) = p + (1 - 2 p) t / T`, from `p` to `1 - p` ("linear2"; mean 1/2)."""
    _check(probability, total_steps)
    return optax.linear_schedule(probability, 1 - probability, total_steps)


def cosine(total_steps: Count) -> optax.Schedule:
    """`p(t) = 1/2 + 1/2 cos(pi t / T)`, from 1 to 0 ("trigonometric"; mean 1/2)."""
    checks.integer("total_steps", total_steps, low=1)
    decay = optax.cosine_decay_schedule(1.0, total_steps)
    return lambda step: decay(jnp.asarray(step, float))


def cosine_at_end(value: FixedNotNegative, total_steps: Count, start: Share = 0.8) -> optax.Schedule:
    """`value` for `t < start T`, then along half a cosine to 0 at `T`, where it stays.

    Args:
      value: a budget or a radius, 0 or more.
      total_steps: of the training.
      start: the part of the steps after which the value falls.
    """
    checks.number("value", value, low=0)
    checks.static_number("start", start, 0, 1)
    checks.integer("total_steps", total_steps, low=1)
    first = float(start) * total_steps
    length = max(total_steps - first, 1e-6)

    def schedule(step):
        fallen = jnp.clip((jnp.asarray(step, float) - first) / length, 0, 1)
        part = (1 + jnp.cos(jnp.pi * fallen)) / 2
        return value * jnp.where(jnp.asarray(step) >= total_steps, 0.0, part)

    return schedule


def _switch(before: float, after: float, total_steps: int, at: float) -> optax.Schedule:
    halves = [optax.constant_schedule(before), optax.constant_schedule(after)]
    return optax.join_schedules(halves, [shares.down(at, total_steps) + 1])


def _check(probability: float, total_steps: int) -> None:
    checks.static_number("probability", probability, 0, 1)
    checks.integer("total_steps", total_steps, low=1)
