"""How the size of a perturbation is measured: a norm and its steepest direction, in one record.

A perturbation is `rho * dual / norm`. Both come from one method, so that no flag can change one without the
other.
"""

import abc
import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optax_sam.arithmetic import sharding, trees
from optax_sam.arithmetic.newton_schulz import orthogonalized
from optax_sam.arithmetic.paths import names_on
from optax_sam.engine import checks
from optax_sam.engine.aliases import Grads, Params
from optax_sam.engine.hyperparameters import FixedAboveOne, FixedNotNegative, Scalar

__all__ = [
    "elementwise",
    "euclidean",
    "fan_scaled",
    "fisher",
    "layerwise",
    "magnitude",
    "p_norm",
    "signs",
    "spectral",
]


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

    The radius is measured as `||T^-1 e||`, which does not change when weights are rescaled. A leaf is a bias
    if its name is "b", as in Haiku, or contains "bias". Its name is the last one on the path that is no index
    and no `value` of a box (`nn.Partitioned`). All other leaves are weights, `offset` and `beta` too.

    Args:
      eta: 0 or more, in the units of the weights.
      biases: whether biases too have `T = |w| + eta`.
    """
    checks.number("eta", eta, low=0)
    checks.boolean("biases", biases)
    return Elementwise(eta, bool(biases))


def magnitude() -> Magnitude:
    """`e = rho |w| d / || |w| d ||`: larger weights move further, and the size is the L2 norm (PUGD)."""
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
      eta: 0 (the Euclidean ball) or more. Its effect depends on the scale of the gradient.
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


@dataclasses.dataclass(frozen=True)
class PNorm(Geometry):
    """See `p_norm`."""

    p: Scalar

    def steepest(self, direction: Grads, params: Params) -> Steepest:
        del params
        wide = trees.widen(direction)
        largest = _largest_entry(wide)
        power = 1 / (jnp.asarray(self.p).astype(largest.dtype) - 1)  # q - 1, of the dual norm

        def on_leaf(d):
            return trees.times(_power_of_ratio(jnp.abs(d), largest, power), _sign(d))

        dual = trees.map_inexact(on_leaf, wide)
        # `|d|^q`, in units of the largest entry.
        parts = trees.map_inexact(lambda d, x: jnp.abs(x) * trees.divide(jnp.abs(d), largest), wide, dual)
        total = _sum_of(parts, largest.dtype)
        norm = jnp.where(total > 0, jnp.where(total > 0, total, 1) ** (power / (1 + power)), 0)
        return Steepest(dual, norm, trees.norm(dual))


def p_norm(p: FixedAboveOne) -> PNorm:
    """`e = rho sign(d) |d|^(q - 1) / ||d||_q^(q - 1)`: the ball of the norm of order `p`, `1/p + 1/q = 1`.

    The larger `p` is, the more alike all entries move. At 2 the ball is Euclidean. At infinity each entry
    moves by `rho`. Below 2 only the few entries with the largest gradients move. The norm is over all
    parameters. It takes the absolute value of complex entries.

    Args:
      p: above 1. Infinity is permitted.
    """
    checks.above_one("p", p)
    return PNorm(p)


@dataclasses.dataclass(frozen=True)
class FanScaled(Geometry):
    """See `fan_scaled`."""

    outputs_first: bool

    def steepest(self, direction: Grads, params: Params) -> Steepest:
        del params

        def on_leaf(d):
            return trees.times(root_of_fans(d, self.outputs_first), trees.divide(d, trees.norm(d)))

        return _of_size_one(trees.map_inexact(on_leaf, trees.widen(direction)))


def fan_scaled(outputs_first: bool = False) -> FanScaled:
    """`e = rho sqrt(fan_out / fan_in) d / ||d||` in each leaf: the radius does not depend on the width.

    One axis of a leaf is `fan_out`, and the product of all others is `fan_in`. A leaf of one axis, a bias or
    a scale, has `fan_in = 1`. The input of a bias is one number, and each of its `n` entries should move by
    `rho`. So its norm is `rho sqrt(n)`. The same holds for a scale, which multiplies entries of size one. A
    number moves by `rho`.

    With a gradient of rank one, a layer then moves the entries of its output by `rho` times those of its
    input, whatever its width. Gradients of few examples are nearly of rank one. With other gradients they
    move at most as far.

    Kernels with several output axes (the heads of `nn.MultiHeadDotProductAttention`), transposed convolutions
    that keep the outputs before the inputs (`hk.Conv2DTranspose`, `nn.ConvTranspose(transpose_kernel=True)`),
    layers stacked along a first axis, and look-up tables, whose input is one row, have other fans than their
    shapes say. Their radius is wrong by a factor. Give them a radius of their own with `optax.partition`.

    Args:
      outputs_first: whether the first axis of a kernel is `fan_out`, as in Equinox. Otherwise the last axis
        is, as in Flax and Haiku. An array does not tell which it is.

    Raises:
      TypeError: `outputs_first` is no Python bool.
    """
    checks.boolean("outputs_first", outputs_first)
    return FanScaled(bool(outputs_first))


@dataclasses.dataclass(frozen=True)
class Spectral(Geometry):
    """See `spectral`."""

    outputs_first: bool

    def steepest(self, direction: Grads, params: Params) -> Steepest:
        del params

        def on_leaf(d):
            if d.ndim < 2 or not d.size:
                return trees.times(root_of_fans(d, self.outputs_first), trees.divide(d, trees.norm(d)))
            whole = sharding.replicated(d)
            matrix = whole.reshape(d.shape[0], -1) if self.outputs_first else whole.reshape(-1, d.shape[-1])
            found = orthogonalized(matrix).reshape(d.shape)
            return trees.times(root_of_fans(d, self.outputs_first), found)

        return _of_size_one(trees.map_inexact(on_leaf, trees.widen(direction)))


def spectral(outputs_first: bool = False) -> Spectral:
    """`e = rho sqrt(fan_out / fan_in) U V^T` in each leaf, `d = U S V^T`: the spectral ball.

    This is the steepest perturbation of each matrix whose largest singular value is
    `rho sqrt(fan_out / fan_in)`. No layer moves its output by more than `rho` times its input, entry for
    entry. `U V^T` is found as in Muon, by five Newton-Schulz steps of `optax.contrib`. Its singular values
    are about one, between 0.6 and 1.2. They are smaller where those of `d` are below a few hundredths of
    `||d||`.

    Fans and leaves of one axis are treated as in `fan_scaled`. A vector is a matrix of one row, of rank one,
    and its norm is `rho sqrt(n)`.

    Args:
      outputs_first: as in `fan_scaled`.

    Raises:
      TypeError: `outputs_first` is no Python bool.
    """
    checks.boolean("outputs_first", outputs_first)
    return Spectral(bool(outputs_first))


def root_of_fans(leaf: jax.Array, outputs_first: bool) -> float:
    """`sqrt(fan_out / fan_in)`: one axis, and the product of all others. A vector is one row."""
    if leaf.ndim < 2:
        return math.sqrt(leaf.size)
    fan_out = leaf.shape[0 if outputs_first else -1]
    return math.sqrt(fan_out / max(leaf.size // max(fan_out, 1), 1))


def _of_size_one(dual: Grads) -> Steepest:
    """A perturbation whose layers have size one, each in its own norm."""
    length = trees.norm(dual)
    return Steepest(dual, jnp.ones([], length.dtype), length)


def _largest_entry(tree: Grads) -> jax.Array:
    """The largest absolute value of all inexact leaves."""
    found = [jnp.max(jnp.abs(x)) for x in jax.tree.leaves(tree) if trees.is_inexact(x) and x.size]
    return functools.reduce(jnp.maximum, found, jnp.zeros([], jnp.float32))


def _sum_of(tree: Grads, dtype: Any) -> jax.Array:
    """The sum of all entries of the inexact leaves."""
    parts = [jnp.sum(x).astype(dtype) for x in jax.tree.leaves(tree) if trees.is_inexact(x)]
    return sum(parts, jnp.zeros([], dtype))


def _sign(leaf: jax.Array) -> jax.Array:
    """`x / |x|`, and 0 at 0."""
    return trees.divide(leaf, jnp.abs(leaf)) if jnp.iscomplexobj(leaf) else jnp.sign(leaf)


def _power_of_ratio(size: jax.Array, largest: jax.Array, power: jax.Array) -> jax.Array:
    """`(size / largest)^power` of numbers whose ratio may underflow where its root does not; 0 at 0."""
    low = jnp.minimum(power, 1).astype(size.dtype)
    is_zero = size == 0
    root = jnp.where(is_zero, jnp.ones_like(size), size) ** low
    ratio = trees.divide(root, jnp.where(largest > 0, largest, 1) ** low)
    return jnp.where(is_zero, jnp.zeros_like(size), ratio ** jnp.maximum(power, 1).astype(size.dtype))


def filter_norms(leaf: jax.Array) -> jax.Array:
    """The L2 norm of each output filter (the last axis), or of the leaf, shaped to multiply the leaf."""
    if leaf.ndim < 2:
        return trees.norm(leaf)
    wide = trees.widen(leaf)
    return jnp.sqrt(filter_sums(jnp.real(wide * jnp.conj(wide))))


def filter_sums(leaf: jax.Array) -> jax.Array:
    """Sums over each output filter (the last axis), or the leaf itself with one axis or none."""
    return leaf if leaf.ndim < 2 else jnp.sum(leaf, axis=tuple(range(leaf.ndim - 1)), keepdims=True)


def _is_bias(path: tuple[Any, ...]) -> bool:
    """Whether the last name on a path is that of a bias."""
    names = names_on(path)
    return bool(names) and (names[-1] == "b" or "bias" in names[-1].lower())
