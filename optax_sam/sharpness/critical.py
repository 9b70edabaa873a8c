"""How far along an update the loss does not rise: the critical sharpness."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optax_sam.arithmetic import trees
from optax_sam.engine import checks
from optax_sam.sharpness.along import direction_of
from optax_sam.sharpness.problem import Floats, NotFiniteError, Point, Problem, norm
from optax_sam.sharpness.progress import Steps, shown

TOLERANCE = 1 / 16
"""Width of the interval at which the search stops, as a part of the step; the paper's."""

MOST = 60
"""At most so many doublings or halvings of the first step."""

DROWNED = 3
"""After so many halvings that change the loss by no more than rounding, it falls at no step."""


@dataclasses.dataclass(frozen=True)
class CriticalSharpness:
    """How far along an update the loss does not rise.

    Attributes:
      value: `2 / step`. Infinite where the loss rises at once, 0 where it never does.
      step: `eta_c`, in the unit of learning rates, the middle of the interval.
      interval: `(low, high)`. At `low` the loss is no higher than at the parameters. At `high` it is higher.
      loss: at the parameters.
      passes: forward passes over all batches that it took.
    """

    value: float
    step: float
    interval: tuple[float, float]
    loss: float
    passes: int

    def __str__(self) -> str:
        low, high = self.interval
        return (
            f"{self.value:.4g}: the loss of {self.loss:.4g} rises between the steps {low:.4g} and {high:.4g} "
            f"({self.passes} passes)"
        )


def critical_sharpness(
    loss_fn: Callable[[Any, Any], Any],
    params: Any,
    batches: Any,
    updates: Any = None,
    *,
    learning_rate: float = 1.0,
    tolerance: float = TOLERANCE,
    progress: bool = False,
) -> CriticalSharpness:
    """`2 / eta_c`, with `eta_c` the least step along an update at which the mean loss rises.

    `eta_c = min {eta > 0: L(w + eta d) > L(w)}` for `d = updates / learning_rate`. For a quadratic loss and
    `d = -g` the value is `g^T H g / ||g||^2`, and no larger than the largest eigenvalue. Above
    `2 / learning_rate` the optimizer's own step raises the loss.

    The search begins at the learning rate. The step is doubled or halved until `eta_c` is enclosed. Then the
    interval is halved until it is narrow. Where the loss rises, falls and rises again, one of the rises is
    found.

    Args:
      loss_fn: see `top_eigenvalues`. Only its values are read, so that it needs no derivative where
        `updates` are given. Another loss than the one that the update descends on makes this the relative
        critical sharpness.
      params: the parameters.
      batches: one batch, or many. See `top_eigenvalues`.
      updates: a tree like `params`, what a step of the optimizer adds to them:
        `updates, _ = tx.update(grads, opt_state, params)`. By default minus the learning rate times the
        gradient.
      learning_rate: the one of the updates, above 0. It is the unit of the step.
      tolerance: width of the interval at which to stop, as a part of its upper end, from 0 to 1.
      progress: whether a bar is shown.

    Returns:
      A `CriticalSharpness`, on the host.

    Raises:
      ValueError: the updates are zero, not finite or unlike `params`, the loss is not finite, or an argument
        is out of range. Also what `hessian_vector_product` refuses.
      TypeError: an argument is of another kind.

    Cost:
      5 to 8 forward passes where `eta_c` is within a factor of two of the learning rate, and one more for
      each further factor of two. Without `updates` it takes one more gradient.

    Example:
      >>> import jax.numpy as jnp
      >>> from optax_sam import sharpness
      >>> loss_fn = lambda w, scale: scale * w**2
      >>> found = sharpness.critical_sharpness(loss_fn, jnp.array(1.0), jnp.ones(1), tolerance=1e-3)
      >>> print(round(found.value, 2))
      2.0

    References:
      Dayal Singh Kalra, Jean-Christophe Gagnon-Audet, Andrey Gromov, Ishita Mediratta, Kelvin Niu, Alexander
      H Miller, Michael Shvartsman, `A Scalable Measure of Loss Landscape Curvature for Analyzing the Training
      Dynamics of LLMs <https://arxiv.org/abs/2601.16979>`_, 2026.
    """
    _check(learning_rate, tolerance)
    problem = Problem.of(loss_fn, params, batches)
    if updates is None:
        direction = _descent(problem, "loss_fn")
    else:
        direction, _ = direction_of("updates", updates, problem.point)
        direction = trees.divide(direction, float(learning_rate))
    with shown(progress, "critical", None) as steps:
        return _found(problem, direction, float(learning_rate), tolerance, steps)


def relative_critical_sharpness(
    loss_fn: Callable[[Any, Any], Any],
    params: Any,
    batches: Any,
    trained_loss_fn: Callable[[Any, Any], Any],
    trained_batches: Any,
    *,
    learning_rate: float = 1.0,
    tolerance: float = TOLERANCE,
    progress: bool = False,
) -> CriticalSharpness:
    """`2 / eta_c` of one loss along the descent on another: how soon training on one harms the other.

    `eta_c = min {eta > 0: L(w - eta g') > L(w)}` with `g'` the gradient of the loss that is trained. To take
    the update of another optimizer, pass it to `critical_sharpness` with the first loss.

    Args:
      loss_fn: the loss that is watched, such as that of what the network knew before.
      params: the parameters.
      batches: for the watched loss, one batch, or many. See `top_eigenvalues`.
      trained_loss_fn: the loss on whose gradient the step goes down.
      trained_batches: for the trained loss.
      learning_rate: the first step that is tried, above 0.
      tolerance: see `critical_sharpness`.
      progress: whether a bar is shown.

    Returns:
      A `CriticalSharpness` of the loss that is watched. Its value is infinite where that loss rises at once.

    Raises:
      ValueError: as `critical_sharpness`.

    Cost:
      As `critical_sharpness` without `updates`.

    References:
      Dayal Singh Kalra, Jean-Christophe Gagnon-Audet, Andrey Gromov, Ishita Mediratta, Kelvin Niu, Alexander
      H Miller, Michael Shvartsman, `A Scalable Measure of Loss Landscape Curvature for Analyzing the Training
      Dynamics of LLMs <https://arxiv.org/abs/2601.16979>`_, 2026.
    """
    _check(learning_rate, tolerance)
    checks.function("trained_loss_fn", trained_loss_fn, "trained_loss_fn(params, batch) -> [batch]")
    problem = Problem.of(loss_fn, params, batches)
    direction = _descent(Problem.of(trained_loss_fn, params, trained_batches), "trained_loss_fn")
    with shown(progress, "critical", None) as steps:
        return _found(problem, direction, float(learning_rate), tolerance, steps)


def _check(learning_rate: Any, tolerance: Any) -> None:
    checks.positive("learning_rate", learning_rate)
    checks.positive("tolerance", tolerance)
    checks.number("tolerance", tolerance, high=1)


def _descent(problem: Problem, name: str) -> Floats:
    gradient = problem.gradient()
    length = float(norm(gradient))
    if not np.isfinite(length):
        raise NotFiniteError(f"the gradient of {name} has the norm {length} at params: measure elsewhere.")
    if not length:
        raise ValueError(f"the gradient of {name} is zero at params: pass updates, or measure elsewhere.")
    return [-g for g in gradient]


def _found(
    problem: Problem, direction: Floats, first: float, tolerance: float, steps: Steps
) -> CriticalSharpness:
    here, passes = problem.finite_loss(), 1

    def change(step: float) -> float:
        nonlocal passes
        passes += 1
        there = problem.at(_along(problem.point, direction, step)).loss()
        steps.advance(problem.count or 1)
        return there - here

    rounding = 4 * abs(here) * max(float(jnp.finfo(x.dtype).eps) for x in problem.point.floats)
    low, high = _enclosed(change, first, rounding)
    while low and np.isfinite(high) and 1 - low / high > tolerance:
        middle = (low + high) / 2
        low, high = (middle, high) if change(middle) <= 0 else (low, middle)
    step = (low + high) / 2 if low else 0.0
    return CriticalSharpness(2 / step if step else float("inf"), step, (low, high), here, passes)


def _enclosed(change: Callable[[float], float], first: float, rounding: float) -> tuple[float, float]:
    """Steps at which the loss has fallen and risen; 0 where it never falls, infinity where it never rises."""
    low, high, step, unchanged = 0.0, float("inf"), first, 0
    for _ in range(MOST):
        difference = change(step)
        unchanged = unchanged + 1 if abs(difference) <= rounding else 0
        if difference < -rounding:
            low = step
        elif not unchanged:  # NaN too
            high = step
        is_enclosed = low and np.isfinite(high)
        if is_enclosed or (np.isfinite(high) and unchanged == DROWNED):
            break
        step = step / 2 if np.isfinite(high) else 2 * step
    return low, high


@jax.jit
def _along(point: Point, direction: Floats, step: Any) -> Point:
    return point.moved([trees.times(step, d) for d in direction])
