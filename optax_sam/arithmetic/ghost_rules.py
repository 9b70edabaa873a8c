"""The gradient of a parameter in one equation, as a sum of outer products: what `ghost_norms` knows.

Each rule tells which axes of the parameter the left factors stand for, and makes the factors from what
else the equation reads and the cotangent of what it gives.
"""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from optax_sam.arithmetic import trees


class Picked(NamedTuple):
    """Rows that are 1 at one place each: `one_hot(positions, size)`, not written out.

    Attributes:
      positions: `int[rows]`.
      size: of a row.
    """

    positions: jax.Array
    size: int


class Windows(NamedTuple):
    """Rows seen from each place of a kernel: parts of the left side, of which one is written out at a time.

    Attributes:
      image: `float[batch, space..., channels]`, padded.
      starts: `int[places, space]`, where a window begins.
      sizes: of a window, from its first to its last entry.
      strides: between its entries.
      groups: of channels: blocks.
    """

    image: jax.Array
    starts: jax.Array
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    groups: int

    def at(self, place: Any) -> jax.Array:
        """`float[blocks, rows, m]`."""
        image, start = self.image, self.starts[place]
        zero = jnp.zeros_like(start[0])
        seen = lax.dynamic_slice(image, (zero, *start, zero), (image.shape[0], *self.sizes, image.shape[-1]))
        return _in_groups(lax.slice(seen, (0,) * seen.ndim, seen.shape, (1, *self.strides, 1)), self.groups)


class Rows(NamedTuple):
    """The gradient `sum_r a_r d_r^T`, in independent blocks.

    Attributes:
      inputs: `float[blocks, rows, m]`, or what stands for it.
      cotangents: `float[blocks, rows, n]`.
    """

    inputs: jax.Array | Picked | Windows
    cotangents: jax.Array


class Sides(NamedTuple):
    """How a parameter is seen as a matrix.

    Attributes:
      left: its axes that the left factors stand for, in ascending order.
      right: the others.
      whole: whether that is one block and one part, so that rows of several uses can be joined.
    """

    left: tuple[int, ...]
    right: tuple[int, ...]
    whole: bool


class Rule(NamedTuple):
    """What is known of a primitive.

    Attributes:
      sides: `(equation, position)`: how the parameter there is seen. None where the rule does not hold.
      rows: `(equation, position, other, d)`: of what else it reads, and the cotangent of what it gives.
    """

    sides: Callable[[Any, int], Sides | None]
    rows: Callable[[Any, int, Any, Any], Rows]


FEW_ROWS = 3
"""So many rows at most are made orthogonal before they are multiplied: pairs and triplets.

One by one in the program: each more makes it longer, and slower to compile.
"""


def norm_of(rows: Rows) -> jax.Array:
    """`||sum_r a_r d_r^T||`, by whichever products are smaller.

    They are taken in units of the largest one, row by row: squares then neither overflow nor vanish, even
    where a large `a_r` goes with a small `d_r`. (An image that a kernel slides over has one unit.) The
    derivative at zero is zero.

    Rounding is a part of `s = sum_r ||a_r|| ||d_r||`, as in the sum written out. Only where more than
    `FEW_ROWS` rows are multiplied with each other, it is in the square a part of `s^2`. What cancels below
    that is given that size.
    """
    inputs, d = rows.inputs, trees.widen(rows.cotangents)
    sizes = _largest(d, 2)
    if isinstance(inputs, Picked):
        unit = _largest(sizes)
        same = inputs.positions[:, None] == inputs.positions[None, :]
        is_first = jnp.argmax(same, axis=1) == jnp.arange(len(same))
        together = (same & is_first[:, None]).astype(d.dtype)
        summed = jnp.einsum("rs,bsn->brn", together, trees.divide(d, unit))
        return unit * _root(jnp.sum(jnp.square(summed)))
    is_seen = isinstance(inputs, Windows)
    places = len(inputs.starts) if is_seen else 1
    input_sizes = _largest(trees.widen(inputs.image)) if is_seen else _largest(trees.widen(inputs), 2)
    unit = _largest(input_sizes * sizes)

    def at(place):
        return trees.widen(inputs.at(place) if is_seen else inputs)

    def over_places(of_one):
        def one_more(total, place):
            return total + of_one(at(place)), None

        first = of_one(at(0))
        return lax.scan(one_more, first, jnp.arange(1, places))[0] if places > 1 else first

    num_rows, n = d.shape[1:]
    m = places * jax.eval_shape(at, 0).shape[2]
    if num_rows * (m + n) > 2 * m * n:  # there are fewer cotangents to divide than inputs
        d = trees.divide(d, unit)
        return unit * _root(over_places(lambda x: jnp.sum(jnp.square(jnp.einsum("brm,brn->bmn", x, d)))))
    d, part = trees.divide(d, sizes), trees.divide(input_sizes * sizes, unit)
    among_inputs = over_places(lambda x: _among_rows(trees.divide(x, input_sizes)))
    products = among_inputs * _among_rows(d * part)
    squared = jnp.sum(products)
    if num_rows == 1:
        return unit * _root(squared)
    if num_rows > FEW_ROWS:
        return unit * _with_slope(_root(jnp.maximum(squared, _rounding(products))), squared)
    if is_seen or n <= m:
        triangle = _triangle(d)
        small = over_places(lambda x: _square_of_product(triangle, trees.divide(x, input_sizes) * part))
    else:
        small = _square_of_product(_triangle(trees.divide(at(0), input_sizes)), d * part)
    return unit * _with_slope(_root(small), squared)


def _among_rows(x: jax.Array) -> jax.Array:
    return jnp.einsum("brm,bsm->brs", x, x)


def _triangle(rows: jax.Array) -> list[jax.Array]:
    """The rows of `R`, from the diagonal on, of `rows^T = Q R`, by modified Gram-Schmidt.

    `||rows^T x||` is `||R x||`, with as little rounding as if it were written out.
    """
    found = []
    while rows.shape[1]:
        first = rows[:, 0]
        size = _root(jnp.sum(jnp.square(first), axis=1, keepdims=True))
        direction = first / jnp.where(size == 0, jnp.ones_like(size), size)
        found.append(jnp.einsum("bm,brm->br", direction, rows))
        rows = rows[:, 1:] - found[-1][:, 1:, None] * direction[:, None]
    return found


def _square_of_product(triangle: list[jax.Array], rows: jax.Array) -> jax.Array:
    products = [jnp.einsum("br,brm->bm", x, rows[:, n:]) for n, x in enumerate(triangle)]
    return jnp.sum(jnp.square(jnp.concatenate(products)))


def _rounding(products: jax.Array) -> jax.Array:
    """The size of what rounding may leave of a sum of products among rows, `[blocks, rows, rows]`."""
    own = jnp.where(jnp.eye(products.shape[1], dtype=bool), products, jnp.zeros_like(products))
    sizes = jnp.sum(_root(jnp.sum(own, axis=2)), axis=1)
    return jnp.finfo(products.dtype).eps * jnp.sum(jnp.square(sizes))


@jax.custom_jvp
def _with_slope(norm: jax.Array, squared: jax.Array) -> jax.Array:
    """The norm, with the derivative of its square: that of the rows made orthogonal is mere rounding."""
    del squared
    return norm


@_with_slope.defjvp
def _slope(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    norm = _with_slope(*primals)
    return norm, trees.divide(tangents[1] / 2, norm)


def norm_of_arrays(arrays: list[jax.Array]) -> jax.Array:
    """`sqrt(sum x^2)`, in units of the largest entry; without a branch, on which devices would agree."""
    arrays = [trees.widen(x) for x in arrays if x.size]
    if not arrays:
        return jnp.zeros([], jnp.float32)
    wide = jnp.result_type(*arrays)
    unit = functools.reduce(jnp.maximum, [_largest(x).astype(wide) for x in arrays])
    squared = sum(jnp.sum(jnp.square(trees.divide(x, unit))).astype(wide) for x in arrays)
    return unit * _root(jnp.asarray(squared))


def _largest(x: jax.Array, axis: int | None = None) -> jax.Array:
    """The largest size, of all or along an axis that is kept: a unit, on which no result depends."""
    return lax.stop_gradient(jnp.max(jnp.abs(x), axis=axis, keepdims=axis is not None, initial=0))


def _root(x: jax.Array) -> jax.Array:
    return jnp.where(x != 0, jnp.sqrt(jnp.where(x != 0, x, jnp.ones_like(x))), jnp.zeros_like(x))


def joined(rows: list[Rows], sides: list[Sides]) -> Rows:
    """The rows of several uses of one parameter: those of all."""
    written = [(_written(r.inputs), r.cotangents) for r in rows]
    turned = [
        pair if side.left == sides[0].left else pair[::-1] for pair, side in zip(written, sides, strict=True)
    ]
    inputs, cotangents = (
        jnp.concatenate([trees.widen(x) for x in xs], axis=1) for xs in zip(*turned, strict=True)
    )
    return Rows(inputs, cotangents)


def _seen(parameter: Any, left: Any, whole: bool) -> Sides:
    left = tuple(sorted(left))
    return Sides(left, tuple(n for n in range(parameter.aval.ndim) if n not in left), whole)


def _written(inputs: Any) -> jax.Array:
    if isinstance(inputs, Picked):
        return jax.nn.one_hot(inputs.positions, inputs.size, dtype=jnp.float32)[None]
    return inputs


def _as_floats(other: jax.Array, d: jax.Array) -> jax.Array:
    """What stands beside the parameter: integers and booleans too are multiplied with floats."""
    return other if trees.is_inexact(other) else other.astype(trees.accumulator_dtype(d.dtype))


def _sides_of_dot(equation: Any, position: int) -> Sides:
    contracted, batch = (axes[position] for axes in equation.params["dimension_numbers"])
    return _seen(equation.invars[position], contracted, not batch)


def _rows_of_dot(equation: Any, position: int, other: jax.Array, d: jax.Array) -> Rows:
    contracted, batch = equation.params["dimension_numbers"]
    own, others = contracted[position], contracted[1 - position]
    summed = [others[n] for n in sorted(range(len(own)), key=lambda n: own[n])]
    shared = list(batch[1 - position])
    free = [n for n in range(other.ndim) if n not in (*summed, *shared)]
    blocks, num_rows, m = (math.prod(other.shape[n] for n in axes) for axes in (shared, free, summed))
    inputs = lax.transpose(_as_floats(other, d), (*shared, *free, *summed)).reshape(blocks, num_rows, m)
    if position == 1:
        return Rows(inputs, d.reshape(blocks, num_rows, -1))
    return Rows(inputs, jnp.swapaxes(d.reshape(blocks, -1, num_rows), 1, 2))


def _sides_of_convolution(equation: Any, position: int) -> Sides | None:
    params = equation.params
    plain = params["batch_group_count"] == 1 and set(params["lhs_dilation"]) <= {1}
    padded = all(low >= 0 and high >= 0 for low, high in params["padding"])
    if position != 1 or not plain or not padded:
        return None
    out = params["dimension_numbers"].rhs_spec[0]
    kernel = equation.invars[1]
    return _seen(kernel, [n for n in range(kernel.aval.ndim) if n != out], False)


def _rows_of_convolution(equation: Any, position: int, other: jax.Array, d: jax.Array) -> Rows:
    del position
    params, groups = equation.params, equation.params["feature_group_count"]
    numbers, kernel = params["dimension_numbers"], equation.invars[1].aval
    image = lax.transpose(
        _as_floats(other, d), (numbers.lhs_spec[0], *numbers.lhs_spec[2:], numbers.lhs_spec[1])
    )
    image = jnp.pad(image, [(0, 0), *params["padding"], (0, 0)])
    d = lax.transpose(d, (numbers.out_spec[0], *numbers.out_spec[2:], numbers.out_spec[1]))
    space, strides = [kernel.shape[n] for n in numbers.rhs_spec[2:]], tuple(params["window_strides"])
    starts = np.array(list(itertools.product(*map(range, space))), np.int32) * np.int32(
        params["rhs_dilation"]
    )
    sizes = tuple((size - 1) * stride + 1 for size, stride in zip(d.shape[1:-1], strides, strict=True))
    return Rows(Windows(image, jnp.asarray(starts), sizes, strides, groups), _in_groups(d, groups))


def _in_groups(x: jax.Array, groups: int) -> jax.Array:
    """`[batch, space..., channels]` as `[groups, rows, channels of one]`."""
    rows = x.reshape(-1, x.shape[-1])  # in two steps: explicit axes know no reshape that merges and splits
    return jnp.moveaxis(rows.reshape(-1, groups, x.shape[-1] // groups), 1, 0)


def _sides_of_gather(equation: Any, position: int) -> Sides | None:
    numbers, table = equation.params["dimension_numbers"], equation.invars[0].aval
    (given,) = [v.aval for v in equation.invars[1:]]
    plain = (
        position == 0
        and numbers.collapsed_slice_dims == (0,)
        and numbers.start_index_map == (0,)
        and not numbers.operand_batching_dims
        and tuple(equation.params["slice_sizes"]) == (1, *table.shape[1:])
        and numbers.offset_dims == tuple(range(given.ndim - 1, given.ndim - 1 + table.ndim - 1))
    )
    return _seen(equation.invars[0], (0,), True) if plain else None


def _rows_of_gather(equation: Any, position: int, other: jax.Array, d: jax.Array) -> Rows:
    del position
    size, at = equation.invars[0].aval.shape[0], other.reshape(-1)
    at = at.astype(jnp.promote_types(at.dtype, jnp.int32))  # bytes cannot hold the size of a table
    d = d.reshape(1, at.size, -1)
    if equation.params["mode"] == lax.GatherScatterMode.CLIP:
        at = jnp.clip(at, 0, size - 1)
    inside = (at >= 0) & (at < size)
    return Rows(Picked(at, size), jnp.where(inside[None, :, None], d, jnp.zeros_like(d)))


RULES = {
    "dot_general": Rule(_sides_of_dot, _rows_of_dot),
    "conv_general_dilated": Rule(_sides_of_convolution, _rows_of_convolution),
    "gather": Rule(_sides_of_gather, _rows_of_gather),
}
"""By the name of the equation's primitive."""
