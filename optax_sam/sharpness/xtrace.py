"""XTrace: the trace of a matrix from products, with every random vector used in full."""

from collections.abc import Callable

import numpy as np

from optax_sam.sharpness.krylov import Basis
from optax_sam.sharpness.problem import Floats, check_product, inner

Times = Callable[[Floats], Floats]


def xtrace(
    times: Times, draw: Callable[[int], Floats], size: int, num_products: int
) -> tuple[float, float, int]:
    """The trace, its standard error, and the products that it took.

    `draw(n)` gives the same normal vector for the same number. The standard error is the paper's: that of a
    mean of independent samples, though these share their vectors (docs/sharpness.md has the consequence).
    """
    space, along, columns = Basis(), [], []
    for number in range(min(num_products // 2, size)):
        probe = draw(number)
        image = times(probe)
        along.append(float(inner(probe, image)))
        check_product(along[-1])
        columns.append(space.add(image))
    rank, count = len(space.vectors), len(columns)
    seen, lengths = [], []
    for probe in map(draw, range(count)):
        lengths.append(float(inner(probe, probe)))
        seen.append(space.orthogonal(probe)[1])
    inside = [space.orthogonal(times(unit))[1] for unit in space.vectors]
    products = count + rank
    matrix = np.reshape(inside, [rank, rank])
    matrix = (matrix + matrix.T) / 2
    if rank == size:
        return float(np.trace(matrix)), 0.0, products
    images = np.array([np.pad(column, [0, rank - len(column)]) for column in columns]).reshape(count, rank).T
    found = estimates(matrix, images, np.reshape(seen, [count, rank]).T, along, lengths, size)
    error = np.std(found, ddof=1) / np.sqrt(count) if count > 1 else np.nan
    return float(np.mean(found)), float(error), products


def estimates(
    matrix: np.ndarray,
    images: np.ndarray,
    seen: np.ndarray,
    along: list[float],
    lengths: list[float],
    size: int,
) -> np.ndarray:
    """The estimate of each random vector, in the span of all others' images.

    With `Q` an orthonormal basis of all images `Y = A W`, and `P_i` the projection onto the images of all
    vectors but `w_i`, the estimate is `tr(P_i A) + c w_i^T (1 - P_i) A (1 - P_i) w_i`, in which `c` gives
    `(1 - P_i) w_i` the length that it has in expectation.

    Args:
      matrix: `Q^T A Q`, `[rank, rank]`.
      images: `Q^T Y`, `[rank, count]`.
      seen: `Q^T W`, `[rank, count]`.
      along: `w_i^T A w_i` for each.
      lengths: `||w_i||^2` for each.
      size: of `A`.
    """
    found = []
    for number, (quadratic, square) in enumerate(zip(along, lengths, strict=True)):
        left_out = _left_out(images, number)
        inside = np.trace(matrix) - np.trace(left_out.T @ matrix @ left_out)
        part = seen[:, number] - left_out @ (left_out.T @ seen[:, number])
        rest = quadratic - 2 * part @ images[:, number] + part @ matrix @ part
        dimensions = size - len(matrix) + left_out.shape[1]
        found.append(inside + dimensions / (square - part @ part) * rest)
    return np.array(found)


def _left_out(images: np.ndarray, number: int) -> np.ndarray:
    """Directions that no other image has: one where the images are independent, `[rank, 0 or 1]`."""
    others = np.delete(images, number, axis=1)
    left, values, _ = np.linalg.svd(others, full_matrices=True)
    if images.shape[0] == images.shape[1]:  # as many directions as images: the others have one less
        return left[:, -1:]
    kept = int(np.sum(values > 1e-6 * values.max(initial=0)))
    return left[:, kept:]
