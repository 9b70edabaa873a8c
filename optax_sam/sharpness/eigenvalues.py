"""The ends of the Hessian's spectrum."""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from optax_sam.arithmetic import keys, random_trees
from optax_sam.engine import checks
from optax_sam.sharpness import products
from optax_sam.sharpness.krylov import Krylov
from optax_sam.sharpness.problem import Floats, Problem, random_vector
from optax_sam.sharpness.progress import shown

PRODUCTS = 25
"""At most so many products for each eigenvalue, by default."""

LEAST = 5
"""Blocks of products before which nothing counts as found. Where most eigenvalues are alike, a random vector
is nearly an eigenvector of theirs: its residual hides the others."""


@dataclasses.dataclass(frozen=True)
class Eigenvalues:
    """What `top_eigenvalues` found.

    Attributes:
      values: `float64[k]`, descending.
      residuals: `float64[k]`, `||H x - value x||` for the unit vectors `x`, of the products as they came. An
        eigenvalue lies within the residual of each value. Where the loss computes in half precision, or is
        differentiated by a rule that is no derivative, the residuals stay large.
      vectors: trees like the parameters, one for each value. None unless asked for.
      products: with the matrix, that it took.
      converged: whether the residuals are as small as was asked for.
    """

    values: np.ndarray
    residuals: np.ndarray
    vectors: tuple[Any, ...] | None = dataclasses.field(repr=False)
    products: int
    converged: bool

    def __str__(self) -> str:
        pairs = zip(self.values, self.residuals, strict=True)
        found = ", ".join(f"{value:.6g} ± {residual:.1g}" for value, residual in pairs)
        return f"{found} ({self.products} products{'' if self.converged else ', not converged'})"


def top_eigenvalues(
    loss_fn: Callable[[Any, Any], Any],
    params: Any,
    batches: Any,
    k: int = 1,
    *,
    which: Literal["largest", "smallest", "both"] = "largest",
    tolerance: float = 1e-3,
    max_products: int | None = None,
    block_size: int | None = None,
    with_vectors: bool = False,
    seed: int = 0,
    progress: bool = False,
) -> Eigenvalues:
    """The largest (or most negative) eigenvalues of the Hessian of the mean loss.

    The method is block Lanczos with full reorthogonalization. The basis grows by products `H v` with the
    Hessian, and the eigenvalues of `V^T H V` come close to the outer ones of `H`, from inside. If a residual
    is `r`, and the next eigenvalue is `gap` away, a value is off by `r^2 / gap` at most.

    Args:
      loss_fn: `loss_fn(params, batch)` returns one loss per example, shape `[batch]`, or their mean, or
        either with auxiliary values that are not read. `GaussNewton(outputs, losses)` for the
        Gauss-Newton matrix in place of the Hessian. See `hessian_vector_product`.
      params: the parameters.
      batches: one batch, or a list or other iterable of batches, read once for each block of products.
      k: how many.
      which: "largest", "smallest" (the most negative), or "both": `k` of each end, all descending.
      tolerance: residuals at which to stop, as a part of the largest absolute value of the `k` at their end;
        after five blocks at the earliest.
      max_products: when to stop at the latest, `25 k` by default.
      block_size: vectors that are multiplied at once, `k` by default. A multiple eigenvalue may be found at
        most so often. A smaller block takes fewer products where the eigenvalues differ.
      with_vectors: whether the eigenvectors are returned.
      seed: of the first vectors.
      progress: whether a bar is shown.

    Returns:
      `Eigenvalues`, on the host.

    Raises:
      ValueError: `k` is larger than the number of float parameters (half of it for "both"), the loss or a
        product is not finite, or an argument is out of range. Also what `hessian_vector_product` refuses.
      TypeError: `k`, `max_products` or `block_size` is no integer.

    Cost:
      About two gradients for each product. A vector like the parameters, in float32 or wider, for each.

    Example:
      >>> import jax.numpy as jnp
      >>> from optax_sam import sharpness
      >>> loss_fn = lambda w, scale: scale @ w**2
      >>> found = sharpness.top_eigenvalues(loss_fn, jnp.ones(3), jnp.array([[1.0, 2.0, -3.0]]), which="both")
      >>> print(found.values.round(3))
      [ 4. -6.]

    References:
      Gene H. Golub, Richard Underwood, `The Block Lanczos Method for Computing Eigenvalues
      <https://doi.org/10.1016/B978-0-12-587260-7.50018-2>`_, 1977.
    """
    checks.integer("k", k, low=1)
    checks.one_of("which", which, ("largest", "smallest", "both"))
    checks.positive("tolerance", tolerance)
    checks.seed(seed)
    problem = Problem.of(loss_fn, params, batches)
    ends = 2 if which == "both" else 1
    if ends * k > problem.size:
        raise ValueError(
            f"k={k} with which={which!r} asks for more than the {problem.size} eigenvalues: lower k."
        )
    most = PRODUCTS * k if max_products is None else max_products
    checks.integer("max_products", most, low=ends * k)
    block = k if block_size is None else block_size
    checks.integer("block_size", block, low=1, high=most)
    whole_blocks = min(block * -(-ends * k // block), problem.size)
    checks.integer("max_products", most, low=whole_blocks)
    problem.finite_loss()
    with shown(progress, "eigenvalues", problem.count and problem.count * -(-most // block)) as steps:
        space = krylov(problem, block, seed, steps)
        found, coefficients = searched(space, k, which, tolerance, most)
    if not with_vectors:
        return found
    vectors = tuple(problem.point.vector(space.combined(column)) for column in coefficients.T)
    return dataclasses.replace(found, vectors=vectors)


def searched(
    space: Krylov, k: int, which: str, tolerance: float, most: int
) -> tuple[Eigenvalues, np.ndarray]:
    """The eigenvalues, from a basis that grows until they are found, and their vectors in it."""
    for number in itertools.count(1):
        space.extend()
        values, coefficients, residuals = space.ritz()
        if len(values) < (2 if which == "both" else 1) * k:
            continue
        ends = _chosen(len(values), k, which)
        # In a whole space nothing is hidden: what is left is the precision of the products.
        sizes = [np.abs(values if space.is_whole else values[end]).max() for end in ends]
        limits = [max(tolerance, 4 * space.rounding) * size for size in sizes]
        small = all(np.all(residuals[end] <= limit) for end, limit in zip(ends, limits, strict=True))
        converged = small and (number >= LEAST or space.is_whole)
        if converged or space.is_whole or space.products + space.pending > most:
            break
    chosen = list(itertools.chain(*ends))
    found = Eigenvalues(values[chosen], residuals[chosen], None, space.products, converged)
    return found, coefficients[:, chosen]


def krylov(
    problem: Problem, block_size: int, seed: Any, steps: Any, kept: tuple[bool, ...] | None = None
) -> Krylov:
    """A basis of random vectors for the curvature of a problem, or for its block of the leaves kept."""
    numbers = itertools.count()
    floats = problem.point.floats
    shown = (True,) * len(floats) if kept is None else kept

    def draw():
        key = jax.random.fold_in(keys.from_seed(seed, "eigenvalues"), next(numbers))
        return _only(random_vector(random_trees.standard_normal, key, problem.point), shown)

    rounding = max(float(jnp.finfo(x.dtype).eps) for x in floats)

    def times(vectors):
        return [_only(image, shown) for image in products.times(problem, vectors, steps)]

    size = sum(x.size for x, k in zip(floats, shown, strict=True) if k)
    return Krylov(times, draw, size, rounding, block_size)


def _only(vector: Floats, kept: tuple[bool, ...]) -> Floats:
    return [x if k else jnp.zeros_like(x) for x, k in zip(vector, kept, strict=True)]


def _chosen(count: int, k: int, which: str) -> list[list[int]]:
    """Positions of each end among ascending values, in descending order."""
    descending = list(range(count))[::-1]
    largest, smallest = descending[:k], descending[-k:]
    return {"largest": [largest], "smallest": [smallest]}.get(which, [largest, smallest])
