"""The diagonal of the Hessian, entry by entry."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from optax_sam.engine import checks
from optax_sam.sharpness import products
from optax_sam.sharpness.problem import Floats, Problem, check_product, norm
from optax_sam.sharpness.progress import shown


@dataclasses.dataclass(frozen=True)
class Diagonal:
    """What `diagonal` found.

    Attributes:
      values: a tree like the parameters, the estimate of each diagonal entry.
      standard_errors: a tree like the parameters, of each estimate. NaN with one product.
      products: with the matrix, that it took.
    """

    values: Any = dataclasses.field(repr=False)
    standard_errors: Any = dataclasses.field(repr=False)
    products: int


def diagonal(
    loss_fn: Callable[[Any, Any], Any],
    params: Any,
    batches: Any,
    *,
    num_products: int = 30,
    seed: int = 0,
    progress: bool = False,
) -> Diagonal:
    """The diagonal of the Hessian of the mean loss: the mean of `s * (H s)` over random signs `s`.

    The error of an entry is `sqrt(sum of the squares of the other entries of its row)`, divided by the root
    of the number of products. The estimate is exact for a diagonal matrix.

    Args:
      loss_fn: see `top_eigenvalues`.
      params: the parameters.
      batches: one batch, or many. See `top_eigenvalues`.
      num_products: products with the Hessian.
      seed: of the random signs.
      progress: whether a bar is shown.

    Returns:
      A `Diagonal`, whose trees lie on the devices as `params` do.

    Raises:
      ValueError: the loss or a product is not finite, or an argument is out of range. Also what
        `hessian_vector_product` refuses.
      TypeError: `num_products` is no integer.

    Cost:
      About two gradients for each product, and two vectors like the parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> from optax_sam import sharpness
      >>> loss_fn = lambda w, scale: scale @ w**2
      >>> print(sharpness.diagonal(loss_fn, jnp.ones(2), jnp.array([[1.0, 3.0]])).values)
      [2. 6.]

    References:
      C. Bekas, E. Kokiopoulou, Y. Saad, `An Estimator for the Diagonal of a Matrix
      <https://doi.org/10.1016/j.apnum.2007.01.003>`_, 2007.
    """
    checks.integer("num_products", num_products, low=1)
    checks.seed(seed)
    problem = Problem.of(loss_fn, params, batches)
    problem.finite_loss()
    mean = [jnp.zeros_like(x) for x in products.signs(problem, seed, 0)]
    squares = [jnp.zeros_like(x) for x in mean]
    with shown(progress, "diagonal", problem.count and problem.count * num_products) as steps:
        for number in range(num_products):
            probe = products.signs(problem, seed, number)
            (image,) = products.times(problem, [probe], steps)
            mean, squares = _with(mean, squares, probe, image, float(number + 1))
    check_product(float(norm(mean)))
    point = problem.point
    errors = _errors(squares, float(num_products), float(num_products - 1))
    return Diagonal(point.vector(mean), point.vector(errors), num_products)


@jax.jit
def _with(mean: Floats, squares: Floats, probe: Floats, image: Floats, count: Any) -> tuple[Floats, Floats]:
    """Mean and summed squares of the deviations, one sample later."""

    def on_leaf(m, q, s, x):
        sample = s * x
        new = m + (sample - m) / jnp.asarray(count, m.dtype)
        return new, q + (sample - m) * (sample - new)

    pairs = [on_leaf(*each) for each in zip(mean, squares, probe, image, strict=True)]
    return [new for new, _ in pairs], [q for _, q in pairs]


@jax.jit
def _errors(squares: Floats, count: Any, freedom: Any) -> Floats:
    return [jnp.sqrt(q / jnp.asarray(count * freedom, q.dtype)) for q in squares]
