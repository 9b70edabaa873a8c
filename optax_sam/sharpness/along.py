"""How the loss bends along one direction: an update, or each batch's own gradient."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from optax_sam.arithmetic import trees
from optax_sam.engine import checks
from optax_sam.sharpness.problem import (
    Floats,
    NotFiniteError,
    Point,
    Problem,
    check_product,
    floats_of,
    gradient_at,
    norm,
)
from optax_sam.sharpness.products import images
from optax_sam.sharpness.progress import shown
from optax_sam.sharpness.standard_errors import standard_error


@dataclasses.dataclass(frozen=True)
class DirectionalSharpness:
    """The curvature along a direction `u`.

    Attributes:
      value: `u^T H u / ||u||^2`, the mean over batches, each weighted by the number of its examples.
      standard_error: of that mean. NaN with one batch.
      slope: `g^T u / ||u||`, the same mean.
      norm: `||u||`.
      count: how many batches.
    """

    value: float
    standard_error: float
    slope: float
    norm: float
    count: int

    def __str__(self) -> str:
        return (
            f"{_with_error(self.value, self.standard_error)} at a slope of {self.slope:.4g}{_n(self.count)}"
        )


def directional_sharpness(
    loss_fn: Callable[[Any, Any], Any], params: Any, batches: Any, updates: Any, *, progress: bool = False
) -> DirectionalSharpness:
    """The curvature of the mean loss along an update: `u^T H u / ||u||^2`.

    A step `u` of the optimizer changes the loss by `g^T u + u^T H u / 2`. This is the second part, for a step
    of length one. It tells what a longer step of the same optimizer costs.

    Args:
      loss_fn: see `top_eigenvalues`.
      params: the parameters.
      batches: one batch, or many. See `top_eigenvalues`.
      updates: a tree like `params`, such as `updates, _ = tx.update(grads, opt_state, params)` of the base
        optimizer. Its length and its sign do not matter.
      progress: whether a bar is shown.

    Returns:
      A `DirectionalSharpness`, on the host.

    Raises:
      ValueError: `updates` are zero or unlike `params`, or the loss or a product is not finite. Also what
        `hessian_vector_product` refuses.

    Cost:
      One product with the Hessian, about two gradients, and a forward pass.

    Example:
      >>> import jax.numpy as jnp
      >>> from optax_sam import sharpness
      >>> loss_fn = lambda w, scale: scale @ w**2
      >>> batch = jnp.array([[1.0, 3.0]])
      >>> print(sharpness.directional_sharpness(loss_fn, jnp.ones(2), batch, jnp.array([-1.0, 0.0])).value)
      2.0

    References:
      Shuche Wang, Fengzhuo Zhang, Jiaxiang Li, Dirk Bergemann, Zhuoran Yang, `Why Muon Outperforms Adam: A
      Curvature Perspective <https://arxiv.org/abs/2606.04662>`_, 2026.
    """
    problem = Problem.of(loss_fn, params, batches)
    direction, length = direction_of("updates", updates, problem.point)
    problem.finite_loss()
    unit = trees.divide(direction, length)
    found, sizes = [], []
    with shown(progress, "directional", problem.count) as steps:
        for number, batch, size in problem.numbered():
            found.append(jax.device_get(problem.program(_along)(problem.point, batch, number, unit)))
            sizes.append(size)
            steps.advance()
    curvatures, slopes = np.array(found, float).T
    value, slope = (float(np.average(x, weights=sizes)) for x in (curvatures, slopes))
    check_product(value)
    return DirectionalSharpness(value, standard_error(list(curvatures), sizes), slope, length, len(sizes))


@dataclasses.dataclass(frozen=True)
class BatchSharpness:
    """The curvature of each batch's loss along its own gradient.

    Attributes:
      value: `g_B^T H_B g_B / ||g_B||^2`, the mean over batches, weighted by their examples.
      standard_error: of that mean. NaN with one batch.
      grad_norm: `||g_B||`, the same mean.
      values: `float64[batches]`, of each batch with a gradient that is not zero.
    """

    value: float
    standard_error: float
    grad_norm: float
    values: np.ndarray = dataclasses.field(repr=False)

    def __str__(self) -> str:
        beside = f" beside a gradient of {self.grad_norm:.4g}"
        return f"{_with_error(self.value, self.standard_error)}{beside}{_n(len(self.values))}"


def batch_sharpness(
    loss_fn: Callable[[Any, Any], Any],
    params: Any,
    batches: Any,
    *,
    microbatch_size: int | None = None,
    progress: bool = False,
) -> BatchSharpness:
    """The curvature that SGD meets: the mean of `g_B^T H_B g_B / ||g_B||^2` over the batches `B`.

    While SGD trains with a small batch and a constant learning rate, this comes to rest at
    `2 / learning_rate`, above the largest eigenvalue of the mean loss. With one batch of all examples it is
    the curvature along the gradient.

    Args:
      loss_fn: see `top_eigenvalues`.
      params: the parameters.
      batches: one batch, or many, of the size of training's. See `top_eigenvalues`.
      microbatch_size: None takes the batches as they are. `m` cuts them into parts of `m` examples.
      progress: whether a bar is shown.

    Returns:
      A `BatchSharpness`, on the host.

    Raises:
      ValueError: every gradient is zero, the loss or a product is not finite, or `microbatch_size` does not
        divide a batch. Also what `hessian_vector_product` refuses.
      TypeError: `microbatch_size` is no integer.

    Cost:
      Three gradients.

    Example:
      >>> import jax.numpy as jnp
      >>> from optax_sam import sharpness
      >>> loss_fn = lambda w, scale: scale * w**2
      >>> print(sharpness.batch_sharpness(loss_fn, jnp.array(1.0), [jnp.ones(2), 2 * jnp.ones(2)]))
      3 ± 1 beside a gradient of 3 (n = 2)

    References:
      Arseniy Andreyev, Pierfrancesco Beneventano, `Edge of Stochastic Stability: Revisiting the Edge of
      Stability for SGD <https://arxiv.org/abs/2412.20553>`_, 2024.
    """
    if microbatch_size is not None:
        checks.integer("microbatch_size", microbatch_size, low=1)
    problem = Problem.of(loss_fn, params, batches)
    found, sizes = [], []
    with shown(progress, "batches", problem.count if microbatch_size is None else None) as steps:
        for part, size in problem.parts(microbatch_size):
            found.append(jax.device_get(part.mean(_along_own_gradient, numbered=True)))
            sizes.append(size)
            steps.advance()
    curvatures, norms = np.array(found, float).T
    if not np.all(np.isfinite(norms)):
        raise NotFiniteError("the gradient of a batch is not finite: measure where it is.")
    if not np.any(norms):
        raise ValueError("the gradient of every batch is zero: there is no direction to measure along.")
    values, shares = curvatures[norms > 0], np.array(sizes, float)[norms > 0]
    value = float(np.average(values, weights=shares))
    check_product(value)
    error = standard_error(list(values), list(shares))
    return BatchSharpness(value, error, float(np.average(norms, weights=sizes)), values)


def _along(loss_fn: Any, point: Point, batch: Any, number: Any, unit: Floats) -> tuple[jax.Array, jax.Array]:
    """`u^T H u` and `g^T u`."""
    (image,) = images(loss_fn, point, batch, number, [unit])
    return trees.inner(unit, image), trees.inner(gradient_at(loss_fn, point, batch), unit)


def _along_own_gradient(loss_fn: Any, point: Point, batch: Any, number: Any) -> tuple[jax.Array, jax.Array]:
    """`g^T H g / ||g||^2`, zero where `g` is, and `||g||`."""
    gradient = gradient_at(loss_fn, point, batch)
    length = trees.norm(gradient)
    unit = trees.divide(gradient, length)
    (image,) = images(loss_fn, point, batch, number, [unit])
    return trees.inner(unit, image), length


def direction_of(name: str, tree: Any, point: Point) -> tuple[Floats, float]:
    """The float leaves of a tree like the parameters, and how long they are, if they point anywhere."""
    direction = floats_of(name, tree, point)
    length = float(norm(direction))
    if not np.isfinite(length):
        raise NotFiniteError(f"{name} has the norm {length}: pass a finite direction.")
    if not length:
        raise ValueError(f"{name} is zero everywhere: there is no direction to measure along.")
    return direction, length


def _with_error(value: float, error: float) -> str:
    return f"{value:.4g}" if np.isnan(error) else f"{value:.4g} ± {error:.1g}"


def _n(count: int) -> str:
    return f" (n = {count})"
