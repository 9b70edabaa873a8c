"""How much the loss rises around a point: at worst, and on average."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from optax_sam.arithmetic import keys, random_trees, trees
from optax_sam.engine import checks
from optax_sam.sharpness.problem import Floats, Point, Problem, random_vector
from optax_sam.sharpness.progress import Steps, shown
from optax_sam.sharpness.standard_errors import standard_error


@dataclasses.dataclass(frozen=True)
class Rise:
    """How much the loss rises.

    Attributes:
      value: the mean over parts of the data, or over random perturbations.
      standard_error: of that mean. NaN where there is but one.
      loss: at the parameters.
      count: how many parts or perturbations.
    """

    value: float
    standard_error: float
    loss: float
    count: int

    def __str__(self) -> str:
        spread = "" if np.isnan(self.standard_error) else f" ± {self.standard_error:.1g}"
        return f"{self.value:.4g}{spread} above a loss of {self.loss:.4g} (n = {self.count})"


def ascent_sharpness(
    loss_fn: Callable[[Any, Any], Any],
    params: Any,
    batches: Any,
    rho: float,
    *,
    num_steps: int = 1,
    adaptive: bool = False,
    eta: float = 0.0,
    microbatch_size: int | None = None,
    progress: bool = False,
) -> Rise:
    """How much the loss rises at worst in a ball: `max L(w + e) - L(w)` over `||T^-1 e|| <= rho`.

    `T = 1`, or `|w| + eta` with `adaptive`. The adaptive measure does not change when weights are rescaled.
    With `e = T u`, each of `n` steps goes `2 rho / n` along the normalized gradient of `L` by `u`, and back
    into the ball. One step ends at SAM's own perturbation (or ASAM's, with biases in proportion too). The
    largest loss on the way counts.

    Args:
      loss_fn: see `top_eigenvalues`.
      params: the parameters.
      batches: one batch, or many. See `top_eigenvalues`.
      rho: radius of the ball, 0 or more.
      num_steps: steps uphill. More steps are shorter ones, and mostly find a higher loss.
      adaptive: whether perturbations are measured relative to the weights.
      eta: floor under the size of a weight, where adaptive.
      microbatch_size: None for one perturbation for all examples. `m` for one perturbation for each `m`
        examples, cut from the batches in order. The rise is then averaged over these parts (m-sharpness,
        which SAM lowers).
      progress: whether a bar is shown.

    Returns:
      A `Rise`, on the host.

    Raises:
      ValueError: the loss is not finite, `microbatch_size` does not divide a batch, or an argument is out of
        range. Also what `hessian_vector_product` refuses.
      TypeError: an argument is of another kind.

    Cost:
      `num_steps` gradients, and `num_steps + 1` forward passes.

    Example:
      >>> import jax.numpy as jnp
      >>> from optax_sam import sharpness
      >>> loss_fn = lambda w, scale: scale @ w**2
      >>> found = sharpness.ascent_sharpness(loss_fn, jnp.ones(1), jnp.array([[1.0]]), rho=0.5)
      >>> print(found.value)
      1.25

    References:
      Maksym Andriushchenko, Francesco Croce, Maximilian Mueller, Matthias Hein, Nicolas Flammarion, `A
      Modern Look at the Relationship between Sharpness and Generalization
      <https://arxiv.org/abs/2302.07011>`_, 2023.
    """
    checks.number("rho", rho, low=0)
    checks.integer("num_steps", num_steps, low=1)
    _check_ball(adaptive, eta)
    problem = Problem.of(loss_fn, params, batches)
    if microbatch_size is not None:
        checks.integer("microbatch_size", microbatch_size, low=1)
    rises, losses, sizes = [], [], []
    total = problem.count and 2 * num_steps * problem.count if microbatch_size is None else None
    with shown(progress, "ascent", total) as steps:
        whole = [(problem, 1)] if microbatch_size is None else problem.parts(microbatch_size)
        for part, size in whole:
            loss = part.finite_loss()
            highest = _highest_loss(part, rho, num_steps, adaptive, eta, steps)
            rises.append(max(highest - loss, 0.0))
            losses.append(loss)
            sizes.append(size)
    value, loss = (float(np.average(x, weights=sizes)) for x in (rises, losses))
    return Rise(value, standard_error(rises, sizes), loss, len(rises))


def surrogate_gap(
    loss_fn: Callable[[Any, Any], Any], params: Any, batches: Any, rho: float, *, progress: bool = False
) -> Rise:
    """How much each batch's loss rises at SAM's own perturbation, on average (GSAM's surrogate gap).

    `h = mean(L_B(w + rho g_B / ||g_B||) - L_B(w))` over the batches `B`, as training sees them. Near a
    minimum it is about `rho^2 / 2` times the largest eigenvalue of the Hessian.

    Args:
      loss_fn: see `top_eigenvalues`.
      params: the parameters.
      batches: one batch, or many, of the size of training's. See `top_eigenvalues`.
      rho: radius of the perturbation, 0 or more.
      progress: whether a bar is shown.

    Returns:
      A `Rise`, on the host. Negative where the loss falls.

    Raises:
      ValueError: as `ascent_sharpness`.

    Cost:
      A gradient and two forward passes.

    References:
      Juntang Zhuang, Boqing Gong, Liangzhe Yuan, Yin Cui, Hartwig Adam, Nicha Dvornek, Sekhar
      Tatikonda, James Duncan, Ting Liu, `Surrogate Gap Minimization Improves Sharpness-Aware Training
      <https://arxiv.org/abs/2203.08065>`_, 2022.
    """
    checks.number("rho", rho, low=0)
    problem = Problem.of(loss_fn, params, batches)
    gaps, losses, sizes = [], [], []
    with shown(progress, "surrogate gap", problem.count) as steps:
        for part, size in problem.parts(None):
            loss = part.finite_loss()
            moved = part.point.moved(climbed(part, part.gradient(), rho))
            gaps.append(part.at(moved).finite_loss_within(rho) - loss)
            losses.append(loss)
            sizes.append(size)
            steps.advance()
    value, loss = (float(np.average(x, weights=sizes)) for x in (gaps, losses))
    return Rise(value, standard_error(gaps, sizes), loss, len(gaps))


def average_sharpness(
    loss_fn: Callable[[Any, Any], Any],
    params: Any,
    batches: Any,
    rho: float,
    *,
    distribution: Literal["gaussian", "uniform"] = "gaussian",
    adaptive: bool = False,
    eta: float = 0.0,
    num_samples: int = 20,
    seed: int = 0,
    progress: bool = False,
) -> Rise:
    """How much the loss rises on average: `E L(w + T z) - L(w)`, independent entries `z`.

    `T = 1`, or `|w| + eta` with `adaptive`. Entries are normal with standard deviation `rho`, or uniform
    between `-rho` and `rho`. To second order the rise is the trace of `T H T`, times `rho^2 / 2` for normal
    entries and `rho^2 / 6` for uniform ones. Every `z` is used with its mirror image `-z`, so that the slope
    cancels.

    Args:
      loss_fn: see `top_eigenvalues`.
      params: the parameters.
      batches: one batch, or many. See `top_eigenvalues`.
      rho: size of the entries, 0 or more. A ball of radius `r` in `n` dimensions has its mass where
        `rho = r / sqrt(n)`.
      distribution: "gaussian" or "uniform".
      adaptive: whether perturbations are in proportion to the weights.
      eta: floor under the size of a weight, where adaptive.
      num_samples: pairs of perturbations.
      seed: of the perturbations.
      progress: whether a bar is shown.

    Returns:
      A `Rise`, on the host. `count` is the number of pairs.

    Raises:
      ValueError: as `ascent_sharpness`.
      TypeError: an argument is of another kind.

    Cost:
      `2 num_samples + 1` forward passes.

    Example:
      >>> import jax.numpy as jnp
      >>> from optax_sam import sharpness
      >>> loss_fn = lambda w, scale: scale @ w**2
      >>> found = sharpness.average_sharpness(loss_fn, jnp.ones(1), jnp.array([[1.0]]), 0.1, num_samples=100)
      >>> print(round(found.value, 2))
      0.01
    """
    checks.number("rho", rho, low=0)
    checks.one_of("distribution", distribution, ("gaussian", "uniform"))
    checks.integer("num_samples", num_samples, low=1)
    checks.seed(seed)
    _check_ball(adaptive, eta)
    problem = Problem.of(loss_fn, params, batches)
    loss, rises = problem.finite_loss(), []
    draw = {"gaussian": random_trees.standard_normal, "uniform": _symmetric}[distribution]
    with shown(progress, "average", problem.count and 2 * num_samples * problem.count) as steps:
        for number in range(num_samples):
            key = jax.random.fold_in(keys.from_seed(seed, "average"), number)
            entries = random_vector(draw, key, problem.point)
            pair = [
                problem.at(_placed(problem.point, entries, sign * rho, adaptive, eta)).finite_loss_within(rho)
                for sign in (1.0, -1.0)
            ]
            rises.append(np.mean(pair) - loss)
            steps.advance(2 * (problem.count or 1))
    return Rise(float(np.mean(rises)), standard_error(rises), loss, num_samples)


def climbed(problem: Problem, gradient: Floats, rho: float) -> Floats:
    """SAM's perturbation for the mean loss of a problem: `rho g / ||g||`."""
    zeros = jax.tree.map(jnp.zeros_like, trees.widen(problem.point.floats))
    return _step(problem.point.floats, zeros, gradient, rho, 2.0 * rho, False, 0.0)


def _highest_loss(
    problem: Problem, rho: float, num_steps: int, adaptive: bool, eta: float, steps: Steps
) -> float:
    point, here, highest = problem.point, problem, -np.inf
    moved = jax.tree.map(jnp.zeros_like, trees.widen(point.floats))
    for _ in range(num_steps):
        gradient = here.gradient()
        steps.advance(problem.count or 1)
        moved = _step(point.floats, moved, gradient, rho, 2.0 * rho / num_steps, adaptive, eta)
        here = problem.at(_placed(point, moved, 1.0, adaptive, eta))
        highest = max(highest, here.finite_loss_within(rho))
        steps.advance(problem.count or 1)
    return highest


@jax.jit
def _step(
    params: Floats, moved: Floats, gradient: Floats, rho: Any, step: Any, adaptive: Any, eta: Any
) -> Floats:
    """One step uphill by `u`, where `e = T u`, and back into the ball."""
    scaled = [g * s for g, s in zip(gradient, _sizes(params, adaptive, eta), strict=True)]
    unit = trees.divide(scaled, trees.norm(scaled))
    moved = [u + trees.times(step, d) for u, d in zip(moved, unit, strict=True)]
    length = trees.norm(moved)
    shrunk = jnp.where(length > rho, rho / jnp.where(length > rho, length, jnp.ones_like(length)), 1.0)
    return [trees.times(shrunk, u) for u in moved]


@jax.jit
def _placed(point: Point, moved: Floats, factor: Any, adaptive: Any, eta: Any) -> Point:
    """The point at `params + factor T u`."""
    sizes = _sizes(point.floats, adaptive, eta)
    return point.moved([trees.times(factor, u * s) for u, s in zip(moved, sizes, strict=True)])


def _sizes(params: Floats, adaptive: Any, eta: Any) -> Floats:
    """`T`: one, or the size of each weight."""
    floor = jnp.asarray(eta)

    def on_leaf(w):
        return jnp.where(adaptive, jnp.abs(w) + floor.astype(w.dtype), jnp.ones_like(w))

    return [on_leaf(w) for w in trees.widen(params)]


def _symmetric(key: jax.Array, like: Floats) -> Floats:
    drawn = random_trees.uniform(key, like)
    return [2 * x.astype(w.dtype) - 1 for x, w in zip(drawn, like, strict=True)]


def _check_ball(adaptive: Any, eta: Any) -> None:
    checks.boolean("adaptive", adaptive)
    checks.number("eta", eta, low=0)
