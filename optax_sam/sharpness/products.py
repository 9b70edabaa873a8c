"""Products with the Hessian and with the Gauss-Newton matrix, without either."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax

from optax_sam.arithmetic import keys, random_trees, trees
from optax_sam.engine import checks
from optax_sam.sharpness.curvatures import Curvature, FiniteDifferences, GaussNewton, tangent
from optax_sam.sharpness.problem import (
    Floats,
    Point,
    Problem,
    check_product,
    floats_of,
    norm,
    of_floats,
    random_vector,
)
from optax_sam.sharpness.progress import Steps, shown


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
        either with auxiliary values, `(losses, aux)`, which are not read. A `GaussNewton` loss makes this the
        product with its Gauss-Newton matrix. The function is compiled anew in each call, because what it
        closes over may have changed. A `jax.tree_util.Partial` of a function and arrays is compiled only when
        its trace is new.
      params: the parameters. Integer leaves, `None` and zero-size leaves stay as they are.
      batches: one batch, or many. A batch is a tree whose leaves have the batch axis first. Many are a list,
        or anything that can be iterated over again. The loss is the mean over all examples, however many a
        batch has. Every row counts: cut padding off.
      vector: a tree like `params`.
      progress: whether a bar is shown (with rich, `pip install rich`).

    Returns:
      A tree like `params`, in float32 or wider, split over devices as `params` is.

    Raises:
      NotFiniteError: the product is infinite or NaN.
      ValueError: `vector` differs from `params`, a leaf of `params` is complex, or the batches have no
        examples.
      TypeError: `batches` is an iterator, which ends after one pass, or `params` are traced.

    Cost:
      About two gradients, and their memory. Gauss-Newton takes one forward pass less.
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
    """`G v` with the Gauss-Newton matrix of `losses(outputs(params, batch), batch)`. See `GaussNewton`.

    The other arguments, the errors and the return value are those of `hessian_vector_product`.

    Raises:
      TypeError: `outputs` or `losses` is no function.

    Cost:
      Two forward passes and a backward pass.
    """
    checks.function("outputs", outputs, "outputs(params, batch) -> logits")
    checks.function("losses", losses, "losses(outputs, batch) -> [batch]")
    return hessian_vector_product(GaussNewton(outputs, losses), params, batches, vector, progress=progress)


def finite_difference_error(
    loss_fn: FiniteDifferences, params: Any, batches: Any, vector: Any, *, progress: bool = False
) -> float:
    """How much a product changes when its step is doubled, as a part of the product.

    `||H_2h v - H_h v|| / ||H_h v||`. Where the third derivative is what is neglected, this is three times the
    error of `H_h v`. Trust a product if this is below 0.01.

    Args:
      loss_fn: a `FiniteDifferences` loss.
      params: the parameters.
      batches: one batch, or many. See `top_eigenvalues`.
      vector: a tree like `params`, such as the gradient or the eigenvector that is asked about.
      progress: whether a bar is shown.

    Returns:
      A number of 0 or more. NaN where the product is zero.

    Raises:
      TypeError: `loss_fn` is no `FiniteDifferences`.
      ValueError: what `hessian_vector_product` refuses.

    Cost:
      Four gradients.
    """
    if not isinstance(loss_fn, FiniteDifferences):
        kind = type(loss_fn).__name__
        raise TypeError(f"loss_fn is a {kind}, which takes no differences: pass FiniteDifferences(loss_fn).")
    problem = Problem.of(loss_fn, params, batches)
    given = floats_of("vector", vector, problem.point)
    wide = dataclasses.replace(loss_fn, step=2 * loss_fn.relative_step(problem.point))
    with shown(progress, "difference", problem.count and 2 * problem.count) as steps:
        (near,) = times(problem, [given], steps)
        (far,) = times(dataclasses.replace(problem, loss_fn=wide, programs={}), [given], steps)
    length = float(norm(near))
    check_product(length)
    difference = float(norm([x - y for x, y in zip(far, near, strict=True)]))
    return difference / length if length else float("nan")


def times(problem: Problem, vectors: list[Floats], steps: Steps | None = None) -> list[Floats]:
    """The curvature matrix times each vector: every batch is read once for all of them."""
    return problem.mean(images, vectors, steps=steps, numbered=True)


def signs(problem: Problem, seed: Any, number: int) -> Floats:
    """A vector of random signs, the same for the same seed and number."""
    key = jax.random.fold_in(keys.from_seed(seed, "signs"), number)
    return random_vector(random_trees.signs, key, problem.point)


def images(loss_fn: Any, point: Point, batch: Any, number: Any, vectors: list[Floats]) -> list[Floats]:
    """The curvature matrix of one batch, of this number, times each vector."""
    own = isinstance(loss_fn, Curvature)
    one = loss_fn.product if own else functools.partial(_hessian_product, loss_fn)
    return [one(point, batch, number, vector) for vector in vectors]


def _hessian_product(loss_fn: Any, point: Point, batch: Any, number: Any, vector: Floats) -> Floats:
    del number
    gradient = jax.grad(of_floats(loss_fn, point, batch))
    return trees.widen(jax.jvp(gradient, (point.floats,), (tangent(vector, point),))[1])
