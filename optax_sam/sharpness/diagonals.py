"""The diagonal of the Hessian, entry by entry."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

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
    zeros = [jnp.zeros_like(x) for x in products.signs(problem, seed, 0)]
    found = [_Entries(x, x, jnp.full([], _LEAST, jnp.int32)) for x in zeros]
    with shown(progress, "diagonal", problem.count and problem.count * num_products) as steps:
        for number in range(num_products):
            probe = products.signs(problem, seed, number)
            (image,) = products.times(problem, [probe], steps)
            found = _with(found, probe, image, float(number + 1))
    check_product(float(norm([x.mean for x in found])))
    errors = _errors(found, float(num_products), float(num_products - 1))
    point = problem.point
    return Diagonal(point.vector([x.mean for x in found]), point.vector(errors), num_products)


class _Entries(NamedTuple):
    """What is known of a leaf's entries.

    Attributes:
      mean: of the samples.
      squares: the sum of the squares of their deviations, in units in which they are numbers.
      exponent: `int32[]`, of the unit, a power of two.
    """

    mean: jax.Array
    squares: jax.Array
    exponent: jax.Array


_LEAST = -120
"""Of an exponent: its power and the inverse of that are numbers in float32."""


@jax.jit
def _with(found: list[_Entries], probe: Floats, image: Floats, count: Any) -> list[_Entries]:
    """The same, one sample later."""

    def on_leaf(entries, s, x):
        (m, q, before), sample = entries, s * x
        new = m + (sample - m) / jnp.asarray(count, m.dtype)
        largest = jnp.max(jnp.abs(x))
        exponent = jnp.where(largest > 0, jnp.frexp(largest)[1], before)
        exponent = jnp.clip(exponent, before, -_LEAST)
        one = jnp.ones([], m.dtype)
        smaller, inverse = jnp.ldexp(one, before - exponent), jnp.ldexp(one, -exponent)
        q = q * smaller * smaller + ((sample - m) * inverse) * ((sample - new) * inverse)
        return _Entries(new, q, exponent)

    return [on_leaf(*each) for each in zip(found, probe, image, strict=True)]


@jax.jit
def _errors(found: list[_Entries], count: Any, freedom: Any) -> Floats:
    def on_leaf(entries):
        root = jnp.sqrt(entries.squares / jnp.asarray(count * freedom, entries.squares.dtype))
        return jnp.ldexp(root, entries.exponent)

    return [on_leaf(entries) for entries in found]
