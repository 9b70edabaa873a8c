"""Arithmetic on trees of parameters that Optax lacks: careful norms, float leaves only, masked trees.

Integer leaves, `None`, and zero-size leaves pass through every function here untouched: only
inexact (float or complex) leaves are read or written.
"""

import contextlib
import contextvars
import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax


def is_inexact(leaf: Any) -> bool:
    """Whether a leaf is a float or complex array: the only ones that are differentiated."""
    return jnp.issubdtype(leaf.dtype, jnp.inexact)


def is_key(dtype: Any) -> bool:
    """Whether this is the dtype of typed keys, as `jax.random.key` makes them."""
    return jnp.issubdtype(dtype, jax.dtypes.prng_key)


def is_masked(leaf: Any) -> bool:
    """Whether a leaf stands for a part of the tree hidden by `optax.masked` or `optax.partition`."""
    return isinstance(leaf, optax.MaskedNode)


def plain(tree: Any) -> Any:
    """The tree with the raw value of each of Flax NNX's variables in its place.

    Other nodes stay as they are: what they compute from their leaves, `__jax_array__` for one, is part of
    the loss.
    """
    variable = getattr(sys.modules.get("flax.nnx"), "Variable", ())
    if not variable:
        return tree

    def is_variable(part):
        return isinstance(part, variable)

    return jax.tree.map(lambda x: x.get_raw_value() if is_variable(x) else x, tree, is_leaf=is_variable)


def accumulator_dtype(dtype: Any) -> Any:
    """The dtype in which values of `dtype` are summed: float32 or wider."""
    return jnp.float32 if jnp.finfo(dtype).bits < 32 else dtype


def map_inexact(function: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    """`jax.tree.map` over the inexact leaves of `tree`; the others are returned as they are."""
    return jax.tree.map(lambda x, *xs: function(x, *xs) if is_inexact(x) else x, tree, *rest)


def widen(tree: Any) -> Any:
    """The tree with its inexact leaves in float32 or wider."""
    return map_inexact(lambda x: x.astype(accumulator_dtype(x.dtype)), tree)


def map_wide(function: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    """`map_inexact` with the arithmetic in float32 or wider, and the results in the leaf's dtype."""

    def on_leaf(x, *xs):
        wide = accumulator_dtype(x.dtype)
        return function(x.astype(wide), *(y.astype(wide) for y in xs)).astype(x.dtype)

    return map_inexact(on_leaf, tree, *rest)


def anew(tree: Any) -> Any:
    """The same leaves in new containers: a function of the user's may write into those that it is given."""
    return jax.tree.map(lambda x: x, tree)


def memory_like(params: Any) -> Any:
    """Zeros in which gradients like `params` are remembered: float16 leaves become float32.

    Sums and differences of float16 gradients overflow in float16, and those under a loss scale
    underflow.
    """

    def zeros(x):
        dtype = jnp.result_type(x)
        return zeros_like(x, jnp.float32 if dtype == jnp.float16 else dtype)

    return jax.tree.map(zeros, params)


def zeros_like(leaf: Any, dtype: Any) -> jax.Array:
    """Zeros of the shape and sharding of a leaf; the key of zeros for a typed key."""
    if is_key(dtype):  # whose dtype cannot be named
        return jnp.zeros_like(leaf)
    # With its dtype named, the zero of a weakly typed leaf keeps the leaf's sharding.
    return jnp.zeros_like(leaf, dtype=dtype)


def saturated(tree: Any) -> Any:
    """The tree with the largest finite number in the place of what overflowed, and 0 for NaN."""
    return map_inexact(jnp.nan_to_num, tree)


def times(scalar: Any, leaf: jax.Array) -> jax.Array:
    """`scalar * leaf`, the scalar real, in the leaf's dtype, under strict promotion too."""
    scalar = jnp.asarray(scalar)
    if jnp.iscomplexobj(leaf):  # complex arithmetic overflows before the result does
        return lax.complex(times(scalar, leaf.real), times(scalar, leaf.imag))
    return scalar.astype(leaf.dtype) * leaf


def conjugate(tree: Any) -> Any:
    """The complex conjugate; real leaves are the same arrays, whose norm may be known."""
    return jax.tree.map(lambda x: jnp.conj(x) if jnp.iscomplexobj(x) else x, tree)


def norm(tree: Any) -> jax.Array:
    """Global L2 norm, `sqrt(sum |x|^2)` over all inexact leaves, in float32 or wider.

    Entries scaled by powers of two are summed too where the sum of squares overflows or underflows, so that
    float32 entries of 1e30 or 1e-30 have the right norm. Infinite or NaN entries give an infinite or NaN
    norm. The derivative at zero is zero.
    """
    leaves = _summed(tree)
    if not leaves:
        return jnp.zeros([], jnp.float32)
    known, norm = _KNOWN.get()
    if len(known) == len(leaves) and all(x is y for x, y in zip(known, leaves, strict=True)):
        return norm
    # Where nothing is traced, the loop would be compiled anew in each call.
    return _norm(leaves) if is_traced(leaves) else _compiled_norm(leaves)


@contextlib.contextmanager
def known_norm(tree: Any, norm: jax.Array) -> Iterator[None]:
    """Inside, the norm of these very arrays is not computed again: in a conditional, XLA would do so."""
    token = _KNOWN.set((_summed(tree), norm))
    try:
        yield
    finally:
        _KNOWN.reset(token)


_KNOWN: contextvars.ContextVar[tuple[list[jax.Array], Any]] = contextvars.ContextVar("known", default=([], 0))


def _summed(tree: Any) -> list[jax.Array]:
    """The leaves of which there is a norm."""
    return [x for x in jax.tree.leaves(tree) if is_inexact(x) and x.size]


def is_traced(tree: Any) -> bool:
    """Whether a leaf of the tree is no value yet: inside `jit`, `vmap`, a loop."""
    return any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(tree))


@jax.custom_jvp
def _norm(leaves: list[jax.Array]) -> jax.Array:
    # A GPU and a TPU wait at every branch. The one adds up four columns in one kernel, the other three sums.
    return lax.platform_dependent(
        leaves, cpu=_norm_in_two_passes, tpu=_norm_of_three_sums, default=_norm_of_columns
    )


def _norm_in_two_passes(leaves: list[jax.Array]) -> jax.Array:
    """A second pass, over scaled entries, if the sum of squares is none of the ordinary ones."""

    def sum_of_squares(leaves, scale=None):
        parts = (x if scale is None else times(scale, x) for x in _real_and_wide(leaves))
        return functools.reduce(jnp.add, (jnp.sum(jnp.square(x)) for x in parts))

    def rescaled(_):
        # Else XLA turns the square of a scaled constant into (x x) (s s): zero times infinity.
        hidden = lax.optimization_barrier(leaves)
        up, down = _scales(square.dtype)
        scale = jnp.where(square > 1, down, up)
        return ordinary | True, jnp.sqrt(sum_of_squares(hidden, scale)) / scale

    square = sum_of_squares(leaves)
    ordinary = _is_ordinary(square)
    # A loop of one turn at most: under `vmap`, a conditional would select between whole leaves.
    return lax.while_loop(lambda found: ~found[0], rescaled, (ordinary, jnp.sqrt(square)))[1]


def _norm_of_three_sums(leaves: list[jax.Array]) -> jax.Array:
    """The squares as they are, scaled up, and scaled down, in one pass."""
    parts = _real_and_wide(leaves)
    scales = lax.optimization_barrier(_scales(parts[0].dtype))

    def sums(x):
        return jnp.stack([jnp.sum(jnp.square(y)) for y in (x, *(times(scale, x) for scale in scales))])

    return _chosen(functools.reduce(jnp.add, map(sums, parts)), scales)


def _norm_of_columns(leaves: list[jax.Array]) -> jax.Array:
    """The same sums as four columns (GPUs add up powers of two) of an array that is never written."""
    parts = _real_and_wide(leaves)
    up, down = _scales(parts[0].dtype)
    scales = lax.optimization_barrier(jnp.stack([jnp.ones_like(up), up, down, jnp.zeros_like(up)]))

    def sums(x):
        columns = lax.expand_dims(x, [x.ndim]) * jnp.expand_dims(scales, range(x.ndim))
        return jnp.sum(jnp.square(columns), axis=range(x.ndim))

    return _chosen(functools.reduce(jnp.add, map(sums, parts)), scales[1:3])


def _chosen(sums: jax.Array, scales: Any) -> jax.Array:
    """The norm from three sums of squares: as they are, scaled up, scaled down."""
    square, large, small = sums[0], sums[1], sums[2]
    rescaled = jnp.where(square > 1, jnp.sqrt(small) / scales[1], jnp.sqrt(large) / scales[0])
    return jnp.where(_is_ordinary(square), jnp.sqrt(square), rescaled)


def _real_and_wide(leaves: list[jax.Array]) -> list[jax.Array]:
    """Real and imaginary parts, all in float32, or all in float64."""
    is_double = any(jnp.finfo(x.dtype).bits > 32 for x in leaves)
    parts = [part for x in leaves for part in ((x.real, x.imag) if jnp.iscomplexobj(x) else (x,))]
    return [x.astype(jnp.float64 if is_double else jnp.float32) for x in parts]


def _is_ordinary(square: jax.Array) -> jax.Array:
    """Whether a sum of squares has neither overflowed nor lost digits to underflow, `bool[]`."""
    kind = jnp.finfo(square.dtype)
    return jnp.isfinite(square) & (square > kind.tiny / kind.eps)


def _scales(dtype: Any) -> tuple[jax.Array, jax.Array]:
    """Powers of two for small and for large entries; the square of the first one is finite."""
    low = -jnp.finfo(dtype).minexp
    return jnp.asarray(2.0 ** (low // 2), dtype), jnp.asarray(2.0 ** -(low * 5 // 8), dtype)


@_norm.defjvp
def _norm_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    (leaves,), (changes,) = primals, tangents
    norm = _norm(leaves)
    units = divide(widen(leaves), norm)
    along = [jnp.sum((jnp.conj(u) * dx.astype(u.dtype)).real) for u, dx in zip(units, changes, strict=True)]
    return norm, jnp.sum(jnp.stack([x.astype(norm.dtype) for x in along]))


_compiled_norm = jax.jit(_norm)


def inner(tree: Any, other: Any) -> jax.Array:
    """`Re <x, y>` over all inexact leaves, in float32 or wider."""
    pairs = zip(jax.tree.leaves(widen(tree)), jax.tree.leaves(other), strict=True)
    parts = [jnp.sum((jnp.conj(x) * y.astype(x.dtype)).real) for x, y in pairs if is_inexact(x)]
    wide = jnp.float64 if any(x.dtype == jnp.float64 for x in parts) else jnp.float32
    return sum((x.astype(wide) for x in parts), jnp.zeros([], wide))


def all_finite(tree: Any) -> jax.Array:
    """Whether every entry of every inexact leaf is finite, `bool[]`."""
    # The largest entry is NaN where one is: a maximum is summed up on the way, flags would be written first.
    found = [jnp.max(jnp.abs(x)) for x in jax.tree.leaves(tree) if is_inexact(x) and x.size]
    return functools.reduce(jnp.logical_and, map(jnp.isfinite, found), jnp.ones([], bool))


def perpendicular(tree: Any, to: Any) -> Any:
    """`x - (<x, y> / <y, y>) y`: the part of `tree` orthogonal to `to`, in float32 or wider.

    Exactly zero where the two are the same.
    """
    size = norm(to)
    x, y = divide(widen(tree), size), divide(widen(to), size)
    square = inner(y, y)
    along = inner(y, x) / jnp.where(square == 0, jnp.ones_like(square), square)
    return map_inexact(lambda x, y: x - times(along, y.astype(x.dtype)), widen(tree), widen(to))


def divide(tree: Any, divisor: Any) -> Any:
    """`tree / divisor`, and zeros where the divisor is zero.

    XLA may multiply by the reciprocal, which vanishes for the largest divisors: these are brought down,
    and the dividends with them.
    """
    divisor = jnp.asarray(divisor)
    zero = divisor == 0
    safe = jnp.where(zero, jnp.ones_like(divisor), divisor)

    def on_leaf(x):
        if jnp.iscomplexobj(x):
            return lax.complex(on_leaf(x.real), on_leaf(x.imag))
        small = jnp.asarray(2.0 ** (-jnp.finfo(x.dtype).maxexp // 2), x.dtype)
        of_kind = safe.astype(x.dtype)
        factor = jnp.maximum(small, (of_kind * small <= 1).astype(x.dtype))  # 1, or `small`
        return jnp.where(zero, jnp.zeros_like(x), (x * factor) / (of_kind * factor))

    return map_wide(on_leaf, tree)


def where(condition: jax.Array, tree: Any, other: Any) -> Any:
    """`tree` if `condition` (a `bool[]`) else `other`, leaf by leaf."""
    return jax.tree.map(lambda x, y: x if x is y else jnp.where(condition, x, y), tree, other)


def add_perturbation(params: Any, perturbation: Any) -> Any:
    """`params + perturbation` in the dtype of `params`; parts masked in `perturbation` stay put."""

    def on_leaf(e, p):
        if is_masked(e):
            return p
        if not is_inexact(p):
            return p
        wide = accumulator_dtype(p.dtype)
        return (p.astype(wide) + e.astype(wide)).astype(p.dtype)

    return jax.tree.map(on_leaf, perturbation, params, is_leaf=is_masked)


def like_masked(visible: Any, tree: Any) -> Any:
    """`tree` with the parts hidden that are hidden in `visible`, where `()` may stand for any other part."""

    def is_leaf(part):
        return isinstance(part, tuple) and not part  # `MaskedNode` is one

    return jax.tree.map(lambda v, x: v if is_masked(v) else x, visible, tree, is_leaf=is_leaf)


def filled(tree: Any, others: Any) -> Any:
    """A tree of which parts are hidden, with those of `others` in their place."""
    return jax.tree.map(lambda x, y: y if is_masked(x) else x, tree, others, is_leaf=is_masked)


def which_are_hidden(tree: Any) -> Any:
    """What of a tree is hidden, as a tree without arrays, for `hidden_as_in`; `()` where nothing is."""
    if not has_masked(tree):
        return ()
    return jax.tree.map(lambda x: x if is_masked(x) else (), tree, is_leaf=is_masked)


def hidden_is_finite(visible: Any, tree: Any) -> jax.Array:
    """Whether every entry of `tree` is finite where `visible` hides it, `bool[]`."""
    parts = jax.tree.map(lambda v, x: x if is_masked(v) else (), visible, tree, is_leaf=is_masked)
    return all_finite(parts)


def hidden_as_in(state: Any, params: Any) -> Any:
    """`params` with the parts hidden that are hidden in a tree like them somewhere inside `state`."""
    if not has_masked(state):
        return params
    try:
        return like_masked(state, params)
    except (ValueError, TypeError):  # it is no tree like the parameters: one of its parts may be
        parts = jax.tree.leaves(state, is_leaf=lambda part: part is not state)
        return next((x for x in (hidden_as_in(part, params) for part in parts) if has_masked(x)), params)


def cast_like(tree: Any, like: Any) -> Any:
    """The leaves of `tree` in the dtypes of those of `like`."""

    def on_leaf(x, y):  # typed keys know no cast, not even to their own dtype
        return x if is_key(x.dtype) else x.astype(y.dtype)

    return jax.tree.map(on_leaf, tree, like)


def without_keys_of(params: Any, tree: Any) -> Any:
    """`tree` without typed keys if `params` have some, which then stand in what is like the parameters."""
    if not any(is_key(jnp.result_type(x)) for x in jax.tree.leaves(params)):
        return tree
    return jax.tree.map(lambda x: None if hasattr(x, "dtype") and is_key(x.dtype) else x, tree)


def has_masked(tree: Any) -> bool:
    """Whether any part of `tree` is hidden by `optax.masked` or `optax.partition`."""
    return any(is_masked(leaf) for leaf in jax.tree.leaves(tree, is_leaf=is_masked))
