"""The loss along lines and planes through the parameters."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optax_sam.arithmetic import keys, random_trees, trees
from optax_sam.engine import checks
from optax_sam.engine.losses import mean_loss
from optax_sam.pieces import geometries
from optax_sam.sharpness.curvatures import Curvature
from optax_sam.sharpness.parts import OnPart
from optax_sam.sharpness.problem import (
    Floats,
    NotFiniteError,
    Point,
    Problem,
    alone,
    floats_of,
    loss_at,
    point_of,
    random_vector,
)
from optax_sam.sharpness.progress import shown


@dataclasses.dataclass(frozen=True)
class Landscape:
    """The loss on a grid.

    Attributes:
      axes: one or two, `float64[points]` each: multiples of the directions.
      losses: `float64[points]` or `float64[points of the first axis, points of the second]`. Infinity where
        the loss overflows.
      loss: at the parameters.
    """

    axes: tuple[np.ndarray, ...]
    losses: np.ndarray = dataclasses.field(repr=False)
    loss: float

    def __str__(self) -> str:
        shape = " x ".join(str(axis.size) for axis in self.axes)
        return (
            f"{shape} losses from {self.losses.min():.4g} to {self.losses.max():.4g}, "
            f"{self.loss:.4g} at the parameters"
        )


def random_direction(params: Any, seed: int = 0, *, filter_normalized: bool = True) -> Any:
    """A direction with normal entries, each filter as long as the parameters' own.

    `d_f = (||w_f|| / ||z_f||) z_f` for each filter `f` (output feature, the last axis) of each leaf. Leaves
    with one axis or none (biases, scales) get zeros. You can then compare pictures of networks whose weights
    have different sizes.

    Args:
      params: the parameters.
      seed: of the entries.
      filter_normalized: False for plain normal entries in all leaves.

    Returns:
      A tree like `params`, in float32 or wider.

    References:
      Hao Li, Zheng Xu, Gavin Taylor, Christoph Studer, Tom Goldstein, `Visualizing the Loss Landscape
      of Neural Nets <https://arxiv.org/abs/1712.09913>`_, 2017.
    """
    checks.seed(seed)
    checks.boolean("filter_normalized", filter_normalized)
    point = point_of(params)
    noise = random_vector(random_trees.standard_normal, keys.from_seed(seed, "landscape"), point)
    return point.vector(_as_filters(point.floats, noise) if filter_normalized else noise)


@jax.jit
def _as_filters(params: Floats, noise: Floats) -> Floats:
    def on_leaf(w, z):
        if w.ndim < 2:
            return jnp.zeros_like(z)
        largest = jnp.max(jnp.abs(w), initial=0)  # squares of small or large weights are no numbers
        unit = jnp.where(largest > 0, largest, jnp.ones_like(largest))
        length = jnp.maximum(geometries.filter_norms(z), jnp.finfo(z.dtype).tiny)
        return unit * (geometries.filter_norms(w / unit) / length).astype(z.dtype) * z

    return [on_leaf(w, z) for w, z in zip(trees.widen(params), noise, strict=True)]


def difference(params: Any, other: Any) -> Any:
    """The direction from `params` to `other`, a tree like `params`. `other` stands at 1 on its axis."""
    point = point_of(params)
    there = floats_of("other", other, point)
    return point.vector([y - x for x, y in zip(trees.widen(point.floats), there, strict=True)])


def landscape(
    loss_fn: Callable[..., Any],
    params: Any,
    batches: Any,
    directions: Sequence[Any],
    *,
    span: float | tuple[float, float] = 1.0,
    num_points: int = 21,
    statistics: Callable[[Any, Any], Any] | None = None,
    progress: bool = False,
) -> Landscape:
    """The mean loss at `params + a d` or `params + a d + b d'`, on a grid of `a` and `b`.

    Batch norm's running statistics belong to one point. With those of `params`, the loss elsewhere is that of
    no network. `statistics` computes them anew at each point.

    Args:
      loss_fn: see `top_eigenvalues`. With `statistics`, `loss_fn(params, batch, statistics)`.
      params: the parameters.
      batches: one batch, or many. See `top_eigenvalues`.
      directions: one or two trees like `params`, in a list or tuple: from `random_direction`, an
        eigenvector of `top_eigenvalues`, or the `difference` to another solution.
      span: how far, in multiples of the directions. `(from, to)`, or one number for both sides.
      num_points: on each axis, 2 or more.
      statistics: `statistics(params, batch)` returns a tree of arrays, such as means and variances of this
        batch. Its floats are averaged over all examples at each point, before the losses there. Integers are
        those of the first batch.
      progress: whether a bar is shown.

    Returns:
      A `Landscape`, on the host.

    Raises:
      ValueError: there are neither one nor two directions, or one is unlike `params`. The loss at `params` is
        not finite. An argument is out of range. Also what `hessian_vector_product` refuses.
      TypeError: an argument is of another kind.

    Cost:
      A forward pass for each point, and one more with `statistics`.

    Example:
      >>> import jax.numpy as jnp
      >>> from optax_sam import sharpness
      >>> loss_fn = lambda w, scale: scale @ w**2
      >>> batch, direction = jnp.array([[1.0, 3.0]]), jnp.array([1.0, 0.0])
      >>> print(sharpness.landscape(loss_fn, jnp.zeros(2), batch, [direction], num_points=5).losses)
      [1.   0.25 0.   0.25 1.  ]
    """
    problem = Problem.of(loss_fn, params, batches)
    checks.integer("num_points", num_points, low=2)
    if not isinstance(directions, list | tuple) or len(directions) not in (1, 2):
        number = f" of {len(directions)}" if isinstance(directions, list | tuple) else ""
        raise ValueError(
            f"directions is a {type(directions).__name__}{number}: "
            "pass a list of one or two trees like params."
        )
    vectors = [floats_of(f"directions[{n}]", d, problem.point) for n, d in enumerate(directions)]
    axis = _axis(span, num_points)
    if statistics is not None:
        checks.function("statistics", statistics, "statistics(params, batch) -> tree of arrays")
        if isinstance(loss_fn, Curvature):
            raise ValueError(
                f"loss_fn is a {type(loss_fn).__name__}, which passes no statistics on: a landscape is of "
                "the losses alone, so pass these, loss_fn(params, batch, statistics)."
            )
    passes = 1 if statistics is None else 2
    total = problem.count and passes * problem.count * num_points ** len(vectors)
    at = _loss_function(problem, statistics)
    middle = float(at(problem.point))
    if not np.isfinite(middle):
        raise NotFiniteError(f"the loss at params is {middle}: draw where the loss is finite.")
    losses = []
    with shown(progress, "landscape", total) as steps:
        for factors in np.stack(np.meshgrid(*[axis] * len(vectors), indexing="ij"), -1).reshape(
            -1, len(vectors)
        ):
            losses.append(at(_there(problem.point, vectors, list(factors))))
            steps.advance(passes * (problem.count or 1))
    values = np.nan_to_num(
        np.asarray(jax.device_get(losses), float), nan=np.inf, posinf=np.inf, neginf=-np.inf
    )
    return Landscape((axis,) * len(vectors), values.reshape([num_points] * len(vectors)), middle)


def _axis(span: float | tuple[float, float], num_points: int) -> np.ndarray:
    if not isinstance(span, tuple):
        checks.positive("span", span)
        span = (-span, span)
    if len(span) != 2:
        raise ValueError(f"span={span!r} has {len(span)} ends: pass (from, to), or one number.")
    checks.number("span", span[0])
    checks.number("span", span[1], low=span[0])
    return np.linspace(*span, num_points)


def _loss_function(
    problem: Problem, statistics: Callable[[Any, Any], Any] | None
) -> Callable[[Point], jax.Array]:
    """The mean loss at any point, its own batch statistics behind it."""
    if statistics is None:
        return lambda point: problem.at(point).mean(loss_at)
    if isinstance(problem.loss_fn, OnPart):
        statistics = OnPart(statistics, problem.loss_fn.others)
    of_statistics = Problem(statistics, problem.point, problem.batches)

    def at(point):
        found = of_statistics.at(point).mean(_statistics_at)
        return problem.at(point).mean(_loss_with, found)

    return at


def _statistics_at(statistics: Any, point: Point, batch: Any) -> Any:
    return statistics(point.params(), trees.anew(batch))


def _loss_with(loss_fn: Any, point: Point, batch: Any, statistics: Any) -> jax.Array:
    def losses(params, batch):
        return loss_fn(params, batch, trees.anew(statistics))

    return mean_loss(functools.partial(alone, losses), point.params(), batch)


@jax.jit
def _there(point: Point, vectors: list[Floats], factors: list[Any]) -> Point:
    total = jax.tree.map(jnp.zeros_like, vectors[0])
    for factor, vector in zip(factors, vectors, strict=True):
        total = [t + trees.times(factor, x) for t, x in zip(total, vector, strict=True)]
    return point.moved(total)
