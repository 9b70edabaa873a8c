"""How far along an update the loss does not rise: the critical sharpness."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from optax_sam.arithmetic import trees
from optax_sam.engine import checks
from optax_sam.sharpness.along import direction_of
from optax_sam.sharpness.problem import Floats, NotFiniteError, Point, Problem, computing_precision, norm
from optax_sam.sharpness.progress import Steps, shown

TOLERANCE = 1 / 16
"""Width of the interval at which the search stops, as a part of the step; the paper's."""

MOST = 60
"""At most so many doublings or halvings of the first step."""

DROWNED = 3
"""After so many halvings that change the loss by no more than rounding, a fall would stay hidden."""

ROUNDING = 4
"""The rounding of a loss, in units in its last place."""


@dataclasses.dataclass(frozen=True)
class CriticalSharpness:
    """How far along an update the loss does not rise.

    Attributes:
      value: `2 / step`. Infinite where the loss rises at once, which it never does along its own descent. 0
        where it never rises. NaN where rounding hides which it is.
      step: `eta_c`, in the unit of learning rates, the middle of the interval. NaN where the value is.
      interval: `(low, high)`. At `low` the loss has fallen by more than its rounding, at `high` it has risen
        by more. Between them rounding may hide where it rises. `low` is 0 where no fall was seen.
      loss: at the parameters.
      rounding: changes of the loss up to this are not trusted.
      passes: forward passes over all batches that it took.
    """

    value: float
    step: float
    interval: tuple[float, float]
    loss: float
    rounding: float
    passes: int

    def __str__(self) -> str:
        low, high = self.interval
        if np.isnan(self.value):
            return (
                f"above {2 / high:.4g}: rounding hides whether the loss of {self.loss:.4g} falls before the "
                f"step {high:.4g}. Changes up to {self.rounding:.1g} are not seen: set jax_enable_x64, and "
                f"use float64 parameters, or ask directional_sharpness ({self.passes} passes)."
            )
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

    Changes of the loss up to four units in its last place count as rounding, in the coarsest float type that
    the loss computes in. Near convergence no fall may be
    larger. The value is then NaN, and `print` says what to do. Where a loss is a small difference of large
    numbers, its rounding is larger than is assumed here.

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
      each further factor of two. Up to 10 more where rounding hides a part of the interval. Without `updates`
      it takes one more gradient.

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
        return _found(problem, direction, float(learning_rate), tolerance, steps, descends=updates is None)


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
      A `CriticalSharpness` of the loss that is watched. Its value is infinite where that loss rises at once,
      and NaN where rounding hides whether it does.

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
    problem: Problem,
    direction: Floats,
    first: float,
    tolerance: float,
    steps: Steps,
    descends: bool = False,
) -> CriticalSharpness:
    """The sharpness along a direction; where that is the loss's own descent, no rise at once is true."""
    here, passes = problem.finite_loss(), 1

    def change(step: float) -> float:
        nonlocal passes
        passes += 1
        there = problem.at(_along(problem.point, direction, step)).loss()
        steps.advance(problem.count or 1)
        return there - here

    rounding = ROUNDING * abs(here) * computing_precision(problem)

    def sign(step: float) -> int:
        difference = change(step)
        return 0 if abs(difference) <= rounding else -1 if difference < 0 else 1  # NaN is a rise

    low, high, is_hidden = _enclosed(sign, first)
    if low and np.isfinite(high):
        low, high = _narrowed(sign, low, high, tolerance)
    if low:
        step = (low + high) / 2
    elif descends or (is_hidden and not _rises_at_once(change, high, rounding)):
        step = float("nan")
    else:
        step = 0.0
    return CriticalSharpness(2 / step if step else float("inf"), step, (low, high), here, rounding, passes)


def _enclosed(sign: Callable[[float], int], first: float) -> tuple[float, float, bool]:
    """Steps at which the loss has fallen and risen, and whether rounding hides the smallest steps.

    0 where it was not seen to fall, infinity where it was not seen to rise.
    """
    low, high, step, hidden = 0.0, float("inf"), first, 0
    for _ in range(MOST):
        found = sign(step)
        hidden = 0 if found else hidden + 1
        low, high = step if found < 0 else low, step if found > 0 else high
        is_enclosed = low and np.isfinite(high)
        if is_enclosed or (np.isfinite(high) and hidden == DROWNED):
            break
        step = step / 2 if np.isfinite(high) else 2 * step
    return low, high, hidden > 0


def _narrowed(sign: Callable[[float], int], low: float, high: float, tolerance: float) -> tuple[float, float]:
    """The interval, halved; where rounding hides its middle, each end as near to that as shows."""
    while 1 - low / high > tolerance:
        middle = (low + high) / 2
        found = sign(middle)
        if not found:
            gap = tolerance * high
            return _near(sign, low, middle, -1, gap), _near(sign, high, middle, 1, gap)
        low, high = (middle, high) if found < 0 else (low, middle)
    return low, high


def _near(sign: Callable[[float], int], shown: float, hidden: float, wanted: int, gap: float) -> float:
    """The step with the wanted sign that is nearest to one where rounding hides it."""
    while abs(hidden - shown) > gap:
        middle = (shown + hidden) / 2
        shown, hidden = (middle, hidden) if sign(middle) == wanted else (shown, middle)
    return shown


def _rises_at_once(change: Callable[[float], float], step: float, rounding: float) -> bool:
    """Whether the slope is seen to be positive, from as large a step on the other side.

    There the curvature adds as much, so that the difference is that of the slope.
    """
    return np.isfinite(step) and change(step) - change(-step) > rounding


@jax.jit
def _along(point: Point, direction: Floats, step: Any) -> Point:
    return point.moved([trees.times(step, d) for d in direction])
