"""The highest loss in a ball of weights, by projected ascent: the measure of Andriushchenko et al."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from optax_sam.arithmetic import shares, trees
from optax_sam.engine import checks
from optax_sam.sharpness.balls import Rise
from optax_sam.sharpness.problem import Floats, NotFiniteError, Point, Problem, of_floats
from optax_sam.sharpness.progress import Steps, shown
from optax_sam.sharpness.standard_errors import standard_error

MOMENTUM = 0.75
"""The share of the new point; the rest is that of the point before the last."""

SUCCESSES = 0.75
"""Steps that must raise the highest loss for the step to keep its length, as a part of them."""


def worst_case_sharpness(
    loss_fn: Callable[[Any, Any], Any],
    params: Any,
    batches: Any,
    rho: float,
    *,
    norm: Literal["linf", "l2"] = "linf",
    adaptive: bool = True,
    num_steps: int = 20,
    microbatch_size: int | None = None,
    progress: bool = False,
) -> Rise:
    """How much the loss rises at worst within `rho` of the weights, each in its own units.

    `max L_B(w + e) - L_B(w)` over `||e / |w| ||_p <= rho`, for each `m` of the `n` examples, on average. With
    `e = |w| u`, a step goes along `sign(g)` or `|w| g / || |w| g ||` by `u`, and back into the ball. It is
    mixed with the point before the last. A step is `2 rho` long at first. It is halved, and goes on from the
    best point, where fewer than three quarters of the steps since the last look raised the highest loss
    (Auto-PGD).

    With `normalized_logits` in the loss, as in the paper, it does not change when the logits are scaled.

    Args:
      loss_fn: see `top_eigenvalues`.
      params: the parameters.
      batches: `n` examples in one batch or many. See `top_eigenvalues`.
      rho: radius, 0 or more. The paper's are from 0.0005 to 0.05 for "linf", and from 0.05 to 2 for "l2".
      norm: "linf" or "l2".
      adaptive: False for `|w| = 1`.
      num_steps: gradients for each part.
      microbatch_size: `m`, the number of examples that share a perturbation (128 of 1,024 in the paper), cut
        from the batches in order. None for one perturbation for each batch.
      progress: whether a bar is shown.

    Returns:
      A `Rise`, on the host, the mean over parts, with its standard error.

    Raises:
      ValueError: the loss is not finite, `microbatch_size` does not divide a batch, or an argument is out of
        range. Also what `hessian_vector_product` refuses.
      TypeError: an argument is of another kind.

    Cost:
      `num_steps + 1` gradients. Six vectors like the parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> from optax_sam import sharpness
      >>> loss_fn = lambda w, x: x @ w
      >>> print(sharpness.worst_case_sharpness(loss_fn, jnp.array([1.0, -3.0]), jnp.ones([1, 2]), rho=0.5))
      2 above a loss of -2 (n = 1)

    References:
      Maksym Andriushchenko, Francesco Croce, Maximilian Mueller, Matthias Hein, Nicolas Flammarion, `A
      Modern Look at the Relationship between Sharpness and Generalization
      <https://arxiv.org/abs/2302.07011>`_, 2023.

    Deviations:
      The authors project onto the l2 ball in the space of `e`. Here the projection is in the space of `u`,
      where the ball is round. The l2 step is the steepest one there. The authors' code keeps the current
      perturbation where it goes back to the best point.
    """
    checks.number("rho", rho, low=0)
    checks.one_of("norm", norm, ("linf", "l2"))
    checks.boolean("adaptive", adaptive)
    checks.integer("num_steps", num_steps, low=1)
    if microbatch_size is not None:
        checks.integer("microbatch_size", microbatch_size, low=1)
    problem = Problem.of(loss_fn, params, batches)
    climb = functools.partial(_climbed, norm=norm, rho=float(rho))
    rises, losses, sizes = [], [], []
    total = problem.count and problem.count * (num_steps + 1) if microbatch_size is None else None
    with shown(progress, "worst case", total) as steps:
        for part, size in problem.parts(microbatch_size):
            loss, highest = _highest(part, climb, float(rho), adaptive, num_steps, steps)
            rises.append(highest - loss)
            losses.append(loss)
            sizes.append(size)
    value, loss = (float(np.average(x, weights=sizes)) for x in (rises, losses))
    return Rise(value, standard_error(rises, sizes), loss, len(rises))


def normalized_logits(logits: jax.Array) -> jax.Array:
    """Logits minus their mean, divided by their length: `f = (z - mean z) / ||z - mean z||`.

    A network with larger logits has larger gradients and a lower loss, but classifies the same. With
    normalized logits in the loss, its sharpness does not grow with the logits.

    Args:
      logits: `float[..., classes]`.

    Returns:
      Logits of length one. Zeros where all are equal.

    References:
      Maksym Andriushchenko, Francesco Croce, Maximilian Mueller, Matthias Hein, Nicolas Flammarion, `A
      Modern Look at the Relationship between Sharpness and Generalization
      <https://arxiv.org/abs/2302.07011>`_, 2023.
    """
    wide = trees.widen(logits)
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(wide), axis=-1, keepdims=True))
    wide = trees.divide(wide, largest)
    wide = wide - wide[..., :1]  # zeros where all are equal, without rounding
    centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
    square = jnp.sum(jnp.square(centred), axis=-1, keepdims=True)
    inverse = jnp.where(square > 0, jax.lax.rsqrt(jnp.where(square > 0, square, jnp.ones_like(square))), 0)
    return (centred * inverse).astype(logits.dtype)


def checkpoints(num_steps: int) -> list[int]:
    """The steps after which the step's length is looked at. They are Auto-PGD's, ever closer together."""
    parts, found = [0.0, 0.22], [shares.up(0.22, num_steps)]
    while found[-1] < num_steps:
        parts.append(parts[-1] + max(parts[-1] - parts[-2] - 0.03, 0.06))
        found.append(shares.up(parts[-1], num_steps))
    return [step for step in dict.fromkeys(found) if step < num_steps]


@dataclasses.dataclass
class _Search:
    """What is known on the way up.

    Attributes:
      highest: loss so far.
      best: where it is, and the gradient there.
      length: of a step.
      successes: steps that raised it since the last look.
      looked_at: the number of that step.
      before: length and highest loss then.
    """

    highest: float
    best: tuple[Floats, Floats]
    length: float
    successes: int = 0
    looked_at: int = 0
    before: tuple[float, float] = (0.0, 0.0)

    def tried(self, loss: float, place: tuple[Floats, Floats]) -> None:
        """Remembers a place that is higher than all before."""
        if loss > self.highest:
            self.highest, self.best = loss, place
            self.successes += 1

    def halves(self, number: int) -> bool:
        """Whether the step was halved after so many."""
        now = self.length, self.highest
        halved = self.successes < SUCCESSES * (number - self.looked_at) or self.before == now
        self.successes, self.looked_at, self.before = 0, number, now
        self.length = self.length / 2 if halved else self.length
        return halved


def _highest(
    problem: Problem, climb: Callable[..., Floats], rho: float, adaptive: bool, num_steps: int, steps: Steps
) -> tuple[float, float]:
    """The loss at the parameters, and the highest on the way."""

    def at(moved: Floats) -> tuple[float, Floats]:
        loss, gradient = problem.mean(_at, moved, adaptive)
        steps.advance(problem.count or 1)
        if not np.isfinite(float(loss)):
            raise NotFiniteError(f"the loss within rho={rho} of params is {float(loss)}: lower rho.")
        return float(loss), gradient

    here = last = jax.tree.map(jnp.zeros_like, trees.widen(problem.point.floats))
    first, gradient = at(here)
    search, looks = _Search(first, (here, gradient), 2 * rho), checkpoints(num_steps)
    for number in range(1, num_steps + 1):
        here, last = climb(here, last, gradient, search.length), here
        loss, gradient = at(here)
        search.tried(loss, (here, gradient))
        if number in looks and search.halves(number):
            here, gradient = search.best
            last = here
    return first, search.highest


def _placed(point: Point, moved: Floats, adaptive: Any) -> Point:
    """The point at `params + |w| u`."""
    sizes = [jnp.where(adaptive, jnp.abs(w), jnp.ones_like(w)) for w in trees.widen(point.floats)]
    return point.moved([u * s for u, s in zip(moved, sizes, strict=True)])


def _loss_at(loss_fn: Any, point: Point, batch: Any, moved: Floats, adaptive: Any) -> jax.Array:
    there = _placed(point, moved, adaptive)
    return of_floats(loss_fn, there, batch)(there.floats)


def _at(loss_fn: Any, point: Point, batch: Any, moved: Floats, adaptive: Any) -> tuple[jax.Array, Floats]:
    """The loss, and its gradient by `u`."""
    return jax.value_and_grad(lambda u: _loss_at(loss_fn, point, batch, u, adaptive))(moved)


@functools.partial(jax.jit, static_argnames="norm")
def _climbed(here: Floats, last: Floats, gradient: Floats, length: Any, *, norm: str, rho: Any) -> Floats:
    """A step uphill, back into the ball, and between there and the point before the last."""
    if norm == "linf":
        up = [u + trees.times(length, jnp.sign(g)) for u, g in zip(here, gradient, strict=True)]
        inside = [jnp.clip(u, -jnp.asarray(rho, u.dtype), jnp.asarray(rho, u.dtype)) for u in up]
    else:
        unit = trees.divide(gradient, trees.norm(gradient))
        up = [u + trees.times(length, d) for u, d in zip(here, unit, strict=True)]
        size = trees.norm(up)
        inside = [trees.times(jnp.where(size > rho, rho / jnp.maximum(size, rho), 1.0), u) for u in up]
    return [
        trees.times(MOMENTUM, u) + trees.times(1 - MOMENTUM, v) for u, v in zip(inside, last, strict=True)
    ]
