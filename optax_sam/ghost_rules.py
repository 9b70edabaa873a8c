"""The gradient of a parameter in one equation, as a sum of outer products: what `ghost_norms` knows.

Each rule tells which axes of the parameter the left factors stand for, and makes the factors from what
else the equation reads and the cotangent of what it gives.
"""

import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from optax_sam import trees


class Picked(NamedTuple):
    """Rows that are 1 at one place each: `one_hot(positions, size)`, not written out.

    Attributes:
      positions: `int[rows]`.
      size: of a row.
    """

    positions: jax.Array
    size: int


class Rows(NamedTuple):
    """The gradient `sum_r a_r d_r^T`, in independent blocks.

    Attributes:
      inputs: some `float[blocks, rows, m]`, one for each part of the left side (places in a kernel).
      cotangents: `float[blocks, rows, n]`.
    """

    inputs: tuple[Any, ...]
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
      sides: `(equation, position)`: how the parameter there is seen; None where the rule does not hold.
      rows: `(equation, position, other, d)`: of what else it reads, and the cotangent of what it gives.
    """

    sides: Callable[[Any, int], Sides | None]
    rows: Callable[[Any, int, Any, Any], Rows]


def squared_norm(rows: Rows) -> jax.Array:
    """`||sum_r a_r d_r^T||^2`, by whichever products are smaller."""
    d = trees.widen(rows.cotangents)
    if isinstance(rows.inputs[0], Picked):
        at = rows.inputs[0].positions
        return jnp.sum(jnp.where(at[:, None] == at[None, :], jnp.einsum("brn,bsn->rs", d, d), 0))
    inputs = [trees.widen(x) for x in rows.inputs]
    num_rows, m, n = d.shape[1], inputs[0].shape[2] * len(inputs), d.shape[2]
    if num_rows * (m + n) <= 2 * m * n:
        among = sum(jnp.einsum("brm,bsm->brs", x, x) for x in inputs)
        return jnp.sum(among * jnp.einsum("brn,bsn->brs", d, d))
    parts = [jnp.sum(jnp.square(jnp.einsum("brm,brn->bmn", x, d))) for x in inputs]
    return jnp.sum(jnp.stack(parts))


def joined(rows: list[Rows], sides: list[Sides]) -> Rows:
    """The rows of several uses of one parameter: those of all."""
    written = [r._replace(inputs=(_written(r.inputs[0]),)) for r in rows]
    turned = [
        (r.inputs[0], r.cotangents) if side.left == sides[0].left else (r.cotangents, r.inputs[0])
        for r, side in zip(written, sides, strict=True)
    ]
    inputs, cotangents = (
        jnp.concatenate([trees.widen(x) for x in xs], axis=1) for xs in zip(*turned, strict=True)
    )
    return Rows((inputs,), cotangents)


def _seen(parameter: Any, left: Any, whole: bool) -> Sides:
    left = tuple(sorted(left))
    return Sides(left, tuple(n for n in range(parameter.aval.ndim) if n not in left), whole)


def _written(inputs: Any) -> jax.Array:
    if isinstance(inputs, Picked):
        return jax.nn.one_hot(inputs.positions, inputs.size, dtype=jnp.float32)[None]
    return inputs


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
    inputs = lax.transpose(other, (*shared, *free, *summed)).reshape(blocks, num_rows, m)
    if position == 1:
        return Rows((inputs,), d.reshape(blocks, num_rows, -1))
    return Rows((inputs,), jnp.swapaxes(d.reshape(blocks, -1, num_rows), 1, 2))


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
    space = [kernel.shape[n] for n in numbers.rhs_spec[2:]]
    image = lax.transpose(other, (numbers.lhs_spec[0], *numbers.lhs_spec[2:], numbers.lhs_spec[1]))
    image = jnp.pad(image, [(0, 0), *params["padding"], (0, 0)])
    d = lax.transpose(d, (numbers.out_spec[0], *numbers.out_spec[2:], numbers.out_spec[1]))

    def in_groups(x):
        return jnp.moveaxis(x.reshape(-1, groups, x.shape[-1] // groups), 1, 0)

    def seen_from(place):
        steps = zip(place, params["rhs_dilation"], d.shape[1:-1], params["window_strides"], strict=True)
        ranges = [
            (p * dilation, p * dilation + (size - 1) * stride + 1, stride)
            for p, dilation, size, stride in steps
        ]
        starts, limits, strides = zip((0, image.shape[0], 1), *ranges, (0, image.shape[-1], 1), strict=True)
        return in_groups(lax.slice(image, starts, limits, strides))

    return Rows(tuple(map(seen_from, itertools.product(*map(range, space)))), in_groups(d))


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
    d = d.reshape(1, at.size, -1)
    if equation.params["mode"] == lax.GatherScatterMode.CLIP:
        at = jnp.clip(at, 0, size - 1)
    inside = (at >= 0) & (at < size)
    return Rows((Picked(at, size),), jnp.where(inside[None, :, None], d, jnp.zeros_like(d)))


RULES = {
    "dot_general": Rule(_sides_of_dot, _rows_of_dot),
    "conv_general_dilated": Rule(_sides_of_convolution, _rows_of_convolution),
    "gather": Rule(_sides_of_gather, _rows_of_gather),
}
"""By the name of the equation's primitive."""
