"""How the size of a perturbation is measured: a norm and its steepest direction, in one record.

A perturbation is `rho * dual / norm`. Both come from one method, so that no flag can change one and
forget the other.
"""

import dataclasses
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from optax_sam import checks, trees
from optax_sam.hyperparameters import Scalar


class Steepest(NamedTuple):
    """`dual / norm` is the steepest perturbation of size one.

    Attributes:
      dual: a tree like the direction, in float32 or wider where it was computed.
      norm: `float[]`.
      length: `float[]`, the L2 norm of `dual`.
    """

    dual: Any
    norm: jax.Array
    length: jax.Array


class Geometry(Protocol):
    """A norm on perturbations."""

    def steepest(self, direction: Any, params: Any) -> Steepest:
        """The steepest perturbation of size one, as a fraction."""


@dataclasses.dataclass(frozen=True)
class Euclidean:
    """See `euclidean`."""

    def steepest(self, direction: Any, params: Any) -> Steepest:
        del params
        norm = trees.norm(direction)
        return Steepest(direction, norm, norm)


@dataclasses.dataclass(frozen=True)
class Elementwise:
    """See `elementwise`."""

    eta: Scalar

    def steepest(self, direction: Any, params: Any) -> Steepest:
        def size(path, d, w):
            return jnp.ones_like(d) if _is_bias(path) else jnp.abs(w).astype(d.dtype) + eta.astype(d.dtype)

        direction, eta = trees.widen(direction), jnp.asarray(self.eta)
        sizes = jax.tree.map_with_path(size, direction, params)
        scaled = trees.map_inexact(jnp.multiply, direction, sizes)
        dual = trees.map_inexact(jnp.multiply, scaled, sizes)
        return Steepest(dual, trees.norm(scaled), trees.norm(dual))


@dataclasses.dataclass(frozen=True)
class Magnitude:
    """See `magnitude`."""

    def steepest(self, direction: Any, params: Any) -> Steepest:
        wide = trees.widen(direction)
        scaled = trees.map_inexact(lambda d, w: jnp.abs(w).astype(d.dtype) * d, wide, params)
        norm = trees.norm(scaled)
        return Steepest(scaled, norm, norm)


def euclidean() -> Euclidean:
    """`e = rho d / ||d||`: the global L2 norm."""
    return Euclidean()


def elementwise(eta: Scalar = 0.0) -> Elementwise:
    """`e = rho T^2 d / ||T d||` with `T = |w| + eta`, and `T = 1` for biases (ASAM).

    The radius is measured as `||T^-1 e||`, which does not change when weights are rescaled. Biases
    are the leaves whose last key contains "bias".

    Args:
      eta: 0 or more, in the units of the weights.
    """
    checks.number("eta", eta, low=0)
    return Elementwise(eta)


def magnitude() -> Magnitude:
    """`e = rho |w| d / || |w| d ||`: larger weights move further; the size is the L2 norm (PUGD)."""
    return Magnitude()


def _is_bias(path: tuple[Any, ...]) -> bool:
    return bool(path) and "bias" in jax.tree_util.keystr(path[-1:], simple=True).lower()
