"""Products with the Hessian and with the Gauss-Newton matrix, without either."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax

from optax_sam.arithmetic import trees
from optax_sam.engine import checks
from optax_sam.engine.losses import mean_loss
from optax_sam.sharpness.problem import (
    Floats,
    Point,
    Problem,
    alone,
    check_product,
    floats_of,
    norm,
    of_floats,
)
from optax_sam.sharpness.progress import Steps, shown


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class GaussNewton:
    """A loss function in two parts, whose curvature is that of the Gauss-Newton matrix.

    `G = mean(J^T H_l J)` with `J` the derivative of the model's outputs by the parameters and `H_l` the
    Hessian of the loss by the outputs. It has no negative eigenvalues where the loss is convex in the
    outputs, and for cross entropy it is the Fisher information matrix.

    Every measurement here that takes a `loss_fn` takes this in its place, and then measures `G`.

    Args:
      outputs: `outputs(params, batch)`, a tree of float arrays, such as logits.
      losses: `losses(outputs, batch)`, one loss per example, shape `[batch]`, or their mean.

    Example:
      >>> import jax.numpy as jnp
      >>> from optax_sam import sharpness
      >>> line = sharpness.GaussNewton(lambda w, x: x @ w, lambda y, x: y**2)
      >>> batch = jnp.array([[1.0, 0.0], [0.0, 2.0]])
      >>> print(sharpness.hessian_vector_product(line, jnp.ones(2), batch, jnp.ones(2)))
      [1. 4.]
    """

    outputs: Callable[[Any, Any], Any]
    losses: Callable[[Any, Any], Any]

    def __call__(self, params: Any, batch: Any) -> Any:
        """The losses of a batch."""
        return self.losses(self.outputs(params, batch), batch)


def hessian_vector_product(
    loss_fn: Callable[[Any, Any], Any],
    params: Any,
    batches: Any,
    vector: Any,
    *,
    progress: bool = False,
) -> Any:
    """`H v`, the derivative of the gradient along `v`: a tree like `params`.

    Args:
      loss_fn: `loss_fn(params, batch)` returns one loss per example, shape `[batch]`, or their mean, or
        either with auxiliary values, `(losses, aux)`, which are not read. A `GaussNewton` loss makes this
        the product with its Gauss-Newton matrix. It is compiled anew in each call, because what it closes
        over may have changed; a `jax.tree_util.Partial` of a function and arrays is compiled
        where its trace is a new one.
      params: the parameters. Integer leaves, `None` and zero-size leaves stay as they are.
      batches: one batch, a tree whose leaves have the batch axis first; or many: a list, or anything that
        can be iterated over again. The loss is the mean over all examples, however many a batch has.
      vector: a tree like `params`.
      progress: whether a bar is shown (with rich, `pip install rich`).

    Returns:
      A tree like `params`, in float32 or wider, split over devices as `params` is.

    Raises:
      NotFiniteError: the product is infinite or NaN.
      ValueError: `vector` differs from `params`, a leaf of `params` is complex, batches without examples.
      TypeError: `batches` is an iterator, which ends after one pass; `params` are traced.

    Cost:
      about two gradients, and their memory; for Gauss-Newton a forward pass less.
    """
    problem = Problem.of(loss_fn, params, batches)
    vector = floats_of("vector", vector, problem.point)
    with shown(progress, "product", problem.count) as steps:
        (image,) = times(problem, [vector], steps)
    check_product(float(norm(image)))
    return problem.point.vector(image)


def gauss_newton_vector_product(
    outputs: Callable[[Any, Any], Any],
    losses: Callable[[Any, Any], Any],
    params: Any,
    batches: Any,
    vector: Any,
    *,
    progress: bool = False,
) -> Any:
    """`G v` with the Gauss-Newton matrix of `losses(outputs(params, batch), batch)`; see `GaussNewton`.

    The other arguments, errors and what is returned: as `hessian_vector_product`.

    Raises:
      TypeError: `outputs` or `losses` is no function.

    Cost:
      two forward passes and a backward pass.
    """
    checks.function("outputs", outputs, "outputs(params, batch) -> logits")
    checks.function("losses", losses, "losses(outputs, batch) -> [batch]")
    return hessian_vector_product(GaussNewton(outputs, losses), params, batches, vector, progress=progress)


def times(problem: Problem, vectors: list[Floats], steps: Steps | None = None) -> list[Floats]:
    """The curvature matrix times each vector: every batch is read once for all of them."""
    return problem.mean(_products, vectors, steps=steps)


def _products(loss_fn: Any, point: Point, batch: Any, vectors: list[Floats]) -> list[Floats]:
    one = _gauss_newton_product if isinstance(loss_fn, GaussNewton) else _hessian_product
    return [one(loss_fn, point, batch, vector) for vector in vectors]


def _hessian_product(loss_fn: Any, point: Point, batch: Any, vector: Floats) -> Floats:
    gradient = jax.grad(of_floats(loss_fn, point, batch))
    return trees.widen(jax.jvp(gradient, (point.floats,), (_tangent(vector, point),))[1])


def _gauss_newton_product(loss_fn: GaussNewton, point: Point, batch: Any, vector: Floats) -> Floats:
    def outputs_at(floats):
        return loss_fn.outputs(point.params(floats), batch)

    outputs, change = jax.jvp(outputs_at, (point.floats,), (_tangent(vector, point),))
    losses = functools.partial(alone, loss_fn.losses)
    gradient = jax.grad(lambda outputs: mean_loss(losses, outputs, batch))
    bent = jax.jvp(gradient, (outputs,), (change,))[1]
    return trees.widen(jax.vjp(outputs_at, point.floats)[1](bent)[0])


def _tangent(vector: Floats, point: Point) -> Floats:
    return [v.astype(w.dtype) for v, w in zip(vector, point.floats, strict=True)]
