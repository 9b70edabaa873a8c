"""How the size of a perturbation is measured: a norm and its steepest direction, in one record.

A perturbation is `rho * dual / norm`. Both come from one method, so that no flag can change one and
forget the other.
"""

import abc
import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optax_sam.arithmetic import trees
from optax_sam.engine import checks
from optax_sam.engine.aliases import Grads, Params
from optax_sam.engine.hyperparameters import FixedNotNegative, Scalar

__all__ = ["elementwise", "euclidean", "fisher", "layerwise", "magnitude", "signs"]


class Steepest(NamedTuple):
    """`dual / norm` is the steepest perturbation of size one.

    Attributes:
      dual: a tree like the direction, in float32 or wider where it was computed.
      norm: `float[]`.
      length: `float[]`, the L2 norm of `dual`.
    """

    dual: Grads
    norm: jax.Array
    length: jax.Array


class Geometry(abc.ABC):
    """A norm on perturbations."""

    @abc.abstractmethod
    def steepest(self, direction: Grads, params: Params) -> Steepest:
        """The steepest perturbation of size one, as a fraction."""


@dataclasses.dataclass(frozen=True)
class Euclidean(Geometry):
    """See `euclidean`."""

    def steepest(self, direction: Grads, params: Params) -> Steepest:
        del params
        norm = trees.norm(direction)
        return Steepest(direction, norm, norm)


@dataclasses.dataclass(frozen=True)
class Elementwise(Geometry):
    """See `elementwise`."""

    eta: Scalar
    biases: bool

    def steepest(self, direction: Grads, params: Params) -> Steepest:
        def size(path, d, w):
            if not trees.is_inexact(d):
                return d
            unscaled = not self.biases and _is_bias(path)
            return jnp.ones_like(d) if unscaled else jnp.abs(w).astype(d.dtype) + eta.astype(d.dtype)

        direction, eta = trees.widen(direction), jnp.asarray(self.eta)
        sizes = jax.tree.map_with_path(size, direction, params)
        scaled = trees.map_inexact(jnp.multiply, direction, sizes)
        dual = trees.map_inexact(jnp.multiply, scaled, sizes)
        return Steepest(dual, trees.norm(scaled), trees.norm(dual))


@dataclasses.dataclass(frozen=True)
class Magnitude(Geometry):
    """See `magnitude`."""

    def steepest(self, direction: Grads, params: Params) -> Steepest:
        wide = trees.widen(direction)
        scaled = trees.map_inexact(lambda d, w: jnp.abs(w).astype(d.dtype) * d, wide, params)
        norm = trees.norm(scaled)
        return Steepest(scaled, norm, norm)


def euclidean() -> Euclidean:
    """`e = rho d / ||d||`: the global L2 norm."""
    return Euclidean()


def elementwise(eta: FixedNotNegative = 0.0, biases: bool = False) -> Elementwise:
    """`e = rho T^2 d / ||T d||` with `T = |w| + eta`, and `T = 1` for biases (ASAM).

    The radius is measured as `||T^-1 e||`, which does not change when weights are rescaled. Biases
    are the leaves whose name is "b", as Haiku has it, or contains "bias": the last name on the path that
    is no index and no `value` of a box (`nn.Partitioned`). All others, `offset` and `beta` too, are weights.

    Args:
      eta: 0 or more, in the units of the weights.
      biases: whether biases too have `T = |w| + eta`.
    """
    checks.number("eta", eta, low=0)
    checks.boolean("biases", biases)
    return Elementwise(eta, bool(biases))


def magnitude() -> Magnitude:
    """`e = rho |w| d / || |w| d ||`: larger weights move further; the size is the L2 norm (PUGD)."""
    return Magnitude()


@dataclasses.dataclass(frozen=True)
class Layerwise(Geometry):
    """See `layerwise`."""

    def steepest(self, direction: Grads, params: Params) -> Steepest:
        def on_leaf(d, w):
            return trees.times(trees.norm(w), trees.divide(d, trees.norm(d)))

        dual = trees.map_inexact(on_leaf, trees.widen(direction), params)
        return Steepest(dual, jnp.ones([], trees.norm(dual).dtype), trees.norm(dual))


def layerwise() -> Layerwise:
    """`e = rho (||w|| / ||d||) d` in each leaf: every layer moves by the same part of its size.

    The radius is a part of the norm of each leaf, as the learning rate of LAMB is (Look-LayerSAM).
    """
    return Layerwise()


@dataclasses.dataclass(frozen=True)
class Fisher(Geometry):
    """See `fisher`."""

    eta: Scalar

    def steepest(self, direction: Grads, params: Params) -> Steepest:
        del params

        def damped(d, w):
            size = trees.times(jnp.sqrt(self.eta), jnp.abs(w))
            return d / jnp.hypot(jnp.ones_like(size), size).astype(d.dtype)

        wide = trees.widen(direction)
        root = trees.map_inexact(damped, wide, wide)
        dual = trees.map_inexact(damped, root, wide)
        return Steepest(dual, trees.norm(root), trees.norm(dual))


def fisher(eta: FixedNotNegative = 1.0) -> Fisher:
    """`e = rho u / sqrt(<d, u>)`, `u = d / (1 + eta d^2)`: the ball of the Fisher information.

    `d^2`, the square of the batch's mean gradient, stands for the diagonal of the Fisher matrix.

    Args:
      eta: 0 (the Euclidean ball) or more; its effect depends on the scale of the gradient.
    """
    checks.number("eta", eta, low=0)
    return Fisher(eta)


@dataclasses.dataclass(frozen=True)
class Signs(Geometry):
    """See `signs`."""

    eta: Scalar

    def steepest(self, direction: Grads, params: Params) -> Steepest:
        def on_leaf(d, w):
            return (jnp.abs(w).astype(d.dtype) + jnp.asarray(self.eta).astype(d.dtype)) * jnp.sign(d)

        dual = trees.map_inexact(on_leaf, trees.widen(direction), params)
        length = trees.norm(dual)
        return Steepest(dual, jnp.ones([], length.dtype), length)


def signs(eta: FixedNotNegative = 0.0) -> Signs:
    """`e = rho T sign(d)`, `T = |w| + eta`: every weight moves by the same part of its size.

    The radius is measured in the largest entry of `T^-1 e` (ASAM with the norm of order infinity).

    Args:
      eta: 0 or more, in the units of the weights.
    """
    checks.number("eta", eta, low=0)
    return Signs(eta)


def filter_norms(leaf: jax.Array) -> jax.Array:
    """The L2 norm of each output filter (the last axis), shaped to multiply the leaf; else of the leaf."""
    if leaf.ndim < 2:
        return trees.norm(leaf)
    wide = trees.widen(leaf)
    return jnp.sqrt(filter_sums(jnp.real(wide * jnp.conj(wide))))


def filter_sums(leaf: jax.Array) -> jax.Array:
    """Sums over each output filter (the last axis); the leaf itself with one axis or none."""
    return leaf if leaf.ndim < 2 else jnp.sum(leaf, axis=tuple(range(leaf.ndim - 1)), keepdims=True)


def _is_bias(path: tuple[Any, ...]) -> bool:
    """Whether the last name on a path is that of a bias."""
    names = [name for name in map(_name_of, path) if isinstance(name, str)]
    return bool(names) and (names[-1] == "b" or "bias" in names[-1].lower())


def _name_of(key: Any) -> Any:
    """What a key says of a parameter: an index no name, nor the `value` of a box or variable of Flax."""
    if isinstance(key, jax.tree_util.GetAttrKey):
        return None if key.name == "value" else key.name
    return getattr(key, "key", None)
