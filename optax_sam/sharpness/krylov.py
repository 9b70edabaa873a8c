"""An orthonormal basis that grows by products with a symmetric matrix (block Lanczos)."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from optax_sam.arithmetic import trees
from optax_sam.sharpness.problem import Floats, check_product, norm

TOGETHER = 8
"""Vectors of the basis that are taken out of another in one program."""

Times = Callable[[list[Floats]], list[Floats]]


class Basis:
    """Orthonormal vectors.

    Attributes:
      vectors: so far.
    """

    def __init__(self):
        self.vectors: list[Floats] = []

    def orthogonal(self, vector: Floats) -> tuple[Floats, np.ndarray]:
        """The part of a vector orthogonal to the basis, in the vector's own memory, and the coefficients."""
        coefficients = np.zeros(len(self.vectors))
        for _ in range(2):  # the second time to the precision of the entries
            found = [np.zeros(0)]
            while (first := sum(map(len, found))) < len(self.vectors):
                count = TOGETHER if first + TOGETHER <= len(self.vectors) else 1  # two programs in all
                vector, along = _less(vector, self.vectors[first : first + count])
                found.append(along)
            coefficients += np.concatenate(jax.device_get(found))
        return vector, coefficients

    def add(self, vector: Floats) -> np.ndarray:
        """Adds the direction of what is orthogonal in a vector, if anything is. Returns its coefficients."""
        length = float(norm(vector))
        rest, coefficients = self.orthogonal(vector)
        left = float(norm(rest))
        if left > 32 * _epsilon(rest) * length:
            unit, _ = self.orthogonal(_divided(rest, left))
            self.vectors.append(_divided(unit, float(norm(unit))))
            coefficients = np.append(coefficients, left)
        return coefficients


class Krylov:
    """What is known of a symmetric matrix after some products.

    Every new vector is made orthogonal to all before it, twice. Where nothing is left of it, a random one
    takes its place, so that the basis grows until it spans everything.

    Attributes:
      basis: orthonormal vectors. The last ones, `pending`, have not been multiplied yet.
      pending: how many those are.
      products: how many vectors have been multiplied.
    """

    def __init__(self, times: Times, draw: Callable[[], Floats], size: int, rounding: float, block_size: int):
        """Begins with `block_size` random vectors of `size` entries; products have this relative error."""
        self.times, self.draw, self.size, self.rounding = times, draw, size, rounding
        self.space = Basis()
        self.products, self.scale = 0, 0.0
        while len(self.basis) < min(block_size, size):
            self._add_random()
        self.pending = len(self.basis)
        self._inside = np.zeros([0, 0])
        self._beyond = np.zeros([self.pending, 0])

    @property
    def basis(self) -> list[Floats]:
        """The orthonormal vectors."""
        return self.space.vectors

    def extend(self) -> None:
        """Multiplies the pending vectors. What is new in the images becomes the next ones.

        Raises:
          NotFiniteError: a product is not finite.
        """
        old = len(self.basis)
        images = self.times(self.basis[old - self.pending :])
        inside, beyond = np.zeros([old, self.pending]), np.zeros([0, self.pending])
        for column, image in enumerate(images):
            length = float(norm(image))
            check_product(length)
            self.scale = max(self.scale, length)
            rest, coefficients = self.space.orthogonal(image)
            inside[:, column], beyond[:, column] = coefficients[:old], coefficients[old:]
            left = float(norm(rest))
            row = np.zeros([1, self.pending])
            if len(self.basis) == self.size:
                continue
            if left > 32 * _epsilon(rest) * self.scale:
                row[0, column] = left
                self.basis.append(_divided(rest, left))
            else:
                self._add_random()
            beyond = np.concatenate([beyond, row])
        entries = np.zeros([old, old])
        entries[: self.products, : self.products] = self._inside
        entries[self.products :, self.products - self._beyond.shape[1] : self.products] = self._beyond
        entries[:, self.products :] = inside
        self._inside, self._beyond = entries, beyond
        self.products, self.pending = old, len(self.basis) - old

    @property
    def is_whole(self) -> bool:
        """Whether the basis spans all vectors, and all have been multiplied."""
        return self.products == self.size

    def ritz(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The eigenvalues in the span of the basis.

        Returns:
          `(values, coefficients, residuals)`. The values ascend. The coefficients are the eigenvectors in the
          basis, a column each. The residuals are `||H x - value x||` of the products as they came, not below
          rounding. So they show products that are rounded coarsely, or that are those of no symmetric matrix.
        """
        values, coefficients = np.linalg.eigh((self._inside + self._inside.T) / 2)
        last = coefficients[self.products - self._beyond.shape[1] :]
        within = np.linalg.norm(self._inside @ coefficients - values * coefficients, axis=0)
        residuals = np.hypot(within, np.linalg.norm(self._beyond @ last, axis=0))
        return values, coefficients, np.maximum(residuals, self.rounding * self.scale)

    def combined(self, coefficients: np.ndarray) -> Floats:
        """The vector with these coefficients in the basis, of length one."""
        total = jax.tree.map(jnp.zeros_like, self.basis[0])
        for coefficient, vector in zip(coefficients, self.basis, strict=False):
            total = _plus(total, coefficient, vector)
        return _divided(total, float(norm(total)))

    def _add_random(self) -> None:
        before = len(self.basis)
        while len(self.basis) == before:
            self.space.add(self.draw())


@functools.partial(jax.jit, donate_argnums=0)
def _less(vector: Floats, units: list[Floats]) -> tuple[Floats, jax.Array]:
    along = [trees.inner(unit, vector) for unit in units]
    for factor, unit in zip(along, units, strict=True):
        vector = [x - trees.times(factor, u) for x, u in zip(vector, unit, strict=True)]
    return vector, jnp.stack(along)


@jax.jit
def _plus(vector: Floats, factor: float, other: Floats) -> Floats:
    return [x + trees.times(factor, y) for x, y in zip(vector, other, strict=True)]


@jax.jit
def _divided(vector: Floats, length: float) -> Floats:
    return trees.divide(vector, length)


def _epsilon(vector: Floats) -> float:
    """The coarsest rounding among the entries."""
    return max(float(jnp.finfo(x.dtype).eps) for x in vector)
