"""The whole spectrum of the Hessian: its trace and its density, from random vectors."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import numpy as np

from optax_sam.arithmetic import keys, random_trees
from optax_sam.engine import checks
from optax_sam.sharpness import products
from optax_sam.sharpness.eigenvalues import krylov
from optax_sam.sharpness.krylov import Basis
from optax_sam.sharpness.problem import Problem, check_product, inner, random_vector
from optax_sam.sharpness.progress import shown
from optax_sam.sharpness.standard_errors import standard_error
from optax_sam.sharpness.xtrace import xtrace


@dataclasses.dataclass(frozen=True)
class Trace:
    """What `trace` found.

    Attributes:
      value: the estimate.
      standard_error: of the estimate, from the spread of its samples. NaN with fewer than two. XTrace's
        samples share their vectors. On flat spectra the error is up to 1.5 times as large as it says. From
        few products (6 are 3 samples) it is itself rough, and may be many times too small.
      products: with the matrix, that it took.
    """

    value: float
    standard_error: float
    products: int

    def __str__(self) -> str:
        return f"{self.value:.6g} ± {self.standard_error:.1g} ({self.products} products)"


def trace(
    loss_fn: Callable[[Any, Any], Any],
    params: Any,
    batches: Any,
    *,
    num_products: int = 30,
    method: Literal["xtrace", "hutch++", "hutchinson"] = "xtrace",
    seed: int = 0,
    progress: bool = False,
) -> Trace:
    """The sum of all eigenvalues of the Hessian of the mean loss.

    Hutchinson's estimate is the mean of `s^T H s` over vectors of random signs `s`. Hutch++ spends a third of
    the products to find the span `Q` of the large eigenvalues. It takes the trace there exactly, and
    estimates that of the rest: `tr(Q^T H Q) + mean(s^T (1 - QQ^T) H (1 - QQ^T) s)`. XTrace uses every vector
    for both. It estimates the rest from each normal vector outside the span of all others' images, and takes
    the mean. These two are more exact where few eigenvalues are large, as in trained networks.

    Args:
      loss_fn: see `top_eigenvalues`.
      params: the parameters.
      batches: one batch, or many. See `top_eigenvalues`.
      num_products: products with the Hessian, 3 or more for Hutch++, 2 or more for XTrace.
      method: which estimate. XTrace is the most exact with 30 products (docs/sharpness.md).
      seed: of the random signs.
      progress: whether a bar is shown.

    Returns:
      A `Trace`, on the host.

    Raises:
      ValueError: the loss or a product is not finite, or an argument is out of range. Also what
        `hessian_vector_product` refuses.
      TypeError: `num_products` is no integer.

    Cost:
      About two gradients for each product. Hutch++ keeps a vector like the parameters for each third product,
      XTrace for each second one.

    Example:
      >>> import jax.numpy as jnp
      >>> from optax_sam import sharpness
      >>> loss_fn = lambda w, scale: scale @ w**2
      >>> found = sharpness.trace(loss_fn, jnp.ones(3), jnp.array([[1.0, 2.0, -1.0]]), method="hutchinson")
      >>> print(found)
      4 ± 0 (30 products)

    References:
      Raphael A. Meyer, Cameron Musco, Christopher Musco, David P. Woodruff, `Hutch++: Optimal
      Stochastic Trace Estimation <https://arxiv.org/abs/2010.09649>`_, 2020; Ethan N. Epperly, Joel A.
      Tropp, Robert J. Webber, `XTrace: Making the Most of Every Sample in Stochastic Trace Estimation
      <https://arxiv.org/abs/2301.07825>`_, 2023.
    """
    checks.one_of("method", method, ("xtrace", "hutch++", "hutchinson"))
    checks.integer("num_products", num_products, low={"xtrace": 2, "hutch++": 3, "hutchinson": 1}[method])
    checks.seed(seed)
    problem = Problem.of(loss_fn, params, batches)
    problem.finite_loss()
    with shown(progress, "trace", problem.count and problem.count * num_products) as steps:

        def times(vector):
            return products.times(problem, [vector], steps)[0]

        def normal(number):
            key = jax.random.fold_in(keys.from_seed(seed, "trace"), number)
            return random_vector(random_trees.standard_normal, key, problem.point)

        if method == "xtrace":
            value, error, spent = xtrace(times, normal, problem.size, num_products)
        else:
            third = min(num_products // 3, problem.size) if method == "hutch++" else 0
            signs = functools.partial(products.signs, problem, seed)
            value, error, spent = _hutchinson(times, signs, problem.size, num_products, third)
    check_product(value)
    return Trace(value, error, spent)


def _hutchinson(
    times: Any, signs: Callable[[int], Any], size: int, num_products: int, third: int
) -> tuple[float, float, int]:
    """The trace in the span of so many products, exactly, and that of the rest from random signs."""
    basis, inside, outside = Basis(), 0.0, []
    for number in range(third):
        basis.add(times(signs(number)))
    for unit in basis.vectors:
        inside += float(inner(unit, times(unit)))
    is_whole = len(basis.vectors) == size
    for number in range(third, third if is_whole else num_products - third):
        rest, _ = basis.orthogonal(signs(number))
        outside.append(float(inner(rest, times(rest))))
    value, error = (inside, 0.0) if is_whole else (inside + np.mean(outside), standard_error(outside))
    return float(value), error, third + len(basis.vectors) + len(outside)


@dataclasses.dataclass(frozen=True)
class SpectralDensity:
    """What `spectral_density` found: for each random vector a quadrature of the spectrum.

    Attributes:
      nodes: `float64[num_vectors, num_steps]`, where the eigenvalues are.
      weights: `float64[num_vectors, num_steps]`, what part of them is there. Each row sums to one.
      size: how many eigenvalues there are.
      products: with the matrix, that it took.
    """

    nodes: np.ndarray = dataclasses.field(repr=False)
    weights: np.ndarray = dataclasses.field(repr=False)
    size: int
    products: int

    def __str__(self) -> str:
        low, high = self.nodes.min(), self.nodes.max()
        return f"{self.size} eigenvalues from {low:.3g} to {high:.3g} ({self.products} products)"

    def density(
        self, grid: np.ndarray | None = None, width: float | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The density of the eigenvalues, smoothed by a normal distribution.

        Args:
          grid: where, `float[points]`. 1,000 points over all nodes by default.
          width: standard deviation of the normal distribution. A hundredth of the range by default.

        Returns:
          `(grid, density)`. The density integrates to one.
        """
        checks.optional_positive("width", width)
        low, high = self.nodes.min(), self.nodes.max()
        if width is None:
            width = (high - low) / 100 or 1e-3 * max(abs(high), 1e-30)
        if grid is None:
            grid = np.linspace(low - 4 * width, high + 4 * width, 1000)
        grid = np.asarray(grid)
        bumps = np.exp(-(((grid[:, None, None] - self.nodes) / width) ** 2) / 2)
        total = (bumps * self.weights).sum(axis=(1, 2)) / len(self.nodes)
        return grid, total / (width * np.sqrt(2 * np.pi))

    def moment(self, order: int) -> float:
        """The mean of the eigenvalues' powers. Order 1 times `size` is the trace."""
        return float((self.weights * self.nodes**order).sum() / len(self.nodes))


def spectral_density(
    loss_fn: Callable[[Any, Any], Any],
    params: Any,
    batches: Any,
    *,
    num_vectors: int = 2,
    num_steps: int = 50,
    seed: int = 0,
    progress: bool = False,
) -> SpectralDensity:
    """How the eigenvalues of the Hessian of the mean loss are distributed, by stochastic Lanczos quadrature.

    For a random unit vector `v`, `v^T f(H) v` is in expectation the mean of `f` over the spectrum. Lanczos
    from `v` makes a Gauss quadrature of it. The nodes are the eigenvalues of `V^T H V`. The weights are the
    squares of its eigenvectors' first entries.

    Args:
      loss_fn: see `top_eigenvalues`.
      params: the parameters.
      batches: one batch, or many. See `top_eigenvalues`.
      num_vectors: random vectors, over which the density is averaged.
      num_steps: products for each. More products give a finer resolution.
      seed: of the random vectors.
      progress: whether a bar is shown.

    Returns:
      A `SpectralDensity`, on the host.

    Raises:
      ValueError: the loss or a product is not finite, or an argument is out of range. Also what
        `hessian_vector_product` refuses.
      TypeError: `num_vectors` or `num_steps` is no integer.

    Cost:
      `num_vectors * num_steps` products, about two gradients each. `num_steps` vectors like the parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> from optax_sam import sharpness
      >>> loss_fn = lambda w, scale: scale @ w**2
      >>> print(sharpness.spectral_density(loss_fn, jnp.ones(2), jnp.array([[1.0, 2.0]])))
      2 eigenvalues from 2 to 4 (4 products)

    References:
      Behrooz Ghorbani, Shankar Krishnan, Ying Xiao, `An Investigation into Neural Net Optimization via
      Hessian Eigenvalue Density <https://arxiv.org/abs/1901.10159>`_, 2019.
    """
    checks.integer("num_vectors", num_vectors, low=1)
    checks.integer("num_steps", num_steps, low=1)
    checks.seed(seed)
    problem = Problem.of(loss_fn, params, batches)
    problem.finite_loss()
    taken = min(num_steps, problem.size)
    seeds = np.random.SeedSequence(int(seed) % 2**64).generate_state(num_vectors)
    nodes, weights = np.zeros([num_vectors, taken]), np.zeros([num_vectors, taken])
    with shown(progress, "density", problem.count and problem.count * num_vectors * taken) as steps:
        for number, own_seed in enumerate(seeds):
            space = krylov(problem, 1, own_seed, steps)
            for _ in range(taken):
                space.extend()
            values, coefficients, _ = space.ritz()
            nodes[number], weights[number] = values, coefficients[0] ** 2
    return SpectralDensity(nodes, weights, problem.size, num_vectors * taken)
