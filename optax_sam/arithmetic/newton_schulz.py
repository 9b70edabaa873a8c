"""The orthogonal factor of a matrix, as Muon finds it."""

from typing import Any

import jax
import jax.numpy as jnp
import optax.contrib

from optax_sam.arithmetic import trees


def orthogonalized(matrix: jax.Array) -> jax.Array:
    """`U V^T` of a matrix `U S V^T`, roughly: five Newton-Schulz steps of `optax.contrib`; zero for zero."""
    if jnp.iscomplexobj(matrix):
        # Not all versions of Optax conjugate. The factor of a complex matrix is that of its real form.
        real, imaginary = matrix.real, matrix.imag
        found = orthogonalized(jnp.block([[real, -imaginary], [imaginary, real]]))
        rows, columns = matrix.shape
        return jax.lax.complex(found[:rows, :columns], found[rows:, :columns])
    norm = trees.norm(matrix)
    # A matrix of zeros has no factor, and the derivative of its norm none: another one goes through.
    unit = jnp.where(norm == 0, jnp.ones_like(matrix), trees.divide(matrix, norm))
    is_wide = matrix.shape[0] < matrix.shape[1]  # which some versions of Optax lengthen
    found = _muon(unit.T).T if is_wide else _muon(unit)
    return jnp.where(norm == 0, jnp.zeros_like(matrix), found)


def _muon(matrix: jax.Array) -> jax.Array:
    """Muon's step along a tall matrix, without momentum."""
    muon = optax.contrib.scale_by_muon(beta=0.0, eps=0.0, nesterov=False)
    with jax.numpy_dtype_promotion("standard"):  # Optax counts in integers
        found: Any = muon.update(matrix, muon.init(matrix))[0]
    return found
