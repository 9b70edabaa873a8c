"""Whether a function of a batch gives each example what depends on that example alone.

The jaxpr is walked: every array has its batch axis at a known position, or none, or examples meet in it.
What no rule knows counts as a meeting.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax.extend.core as jex
import numpy as np

from optax_sam.arithmetic.jaxprs import called_by, parts_of_scan

MEET = -1
"""In the place of an axis: examples meet."""

Axis = int | None

_ELEMENTWISE = frozenset(
    "abs acos acosh add add_any and asin asinh atan atan2 atanh cbrt ceil clamp complex conj "
    "convert_element_type copy copy_p cos cosh digamma div eq erf erf_inv erfc exp exp2 expm1 floor ge gt "
    "imag integer_pow is_finite le lgamma log log1p logistic lt max min mul name ne neg nextafter not or "
    "pcast population_count pow pvary random_bits random_fold_in random_seed random_split random_unwrap "
    "random_wrap real reduce_precision rem round rsqrt select_n shift_left shift_right_arithmetic "
    "shift_right_logical sharding_constraint sign sin sinh sqrt square "
    "stop_gradient sub tan tanh threefry2x32 xor".split()
)


def axes_of_outputs(jaxpr: jex.Jaxpr, axes: Sequence[Axis]) -> list[Axis]:
    """Where the batch axis stands in each output, from where it stands in each input."""
    known: dict[Any, Axis] = dict(zip(jaxpr.invars, axes, strict=True))
    numbers: dict[Any, np.ndarray] = {}

    def axis_of(atom):
        return None if isinstance(atom, jex.Literal) else known.get(atom)

    def number_of(atom):
        return atom.val if isinstance(atom, jex.Literal) else numbers.get(atom)

    for equation in jaxpr.eqns:
        found = [axis_of(atom) for atom in equation.invars]
        given = [number_of(atom) for atom in equation.invars]
        try:
            axes = _through(equation, found, given)
        except (KeyError, AttributeError):  # another version of JAX calls what a rule asks for otherwise
            axes = [MEET] * len(equation.outvars)
        known.update(zip(equation.outvars, axes, strict=True))
        if (number := _numbers(equation, given)) is not None:
            numbers[equation.outvars[0]] = number
    return [axis_of(atom) for atom in jaxpr.outvars]


def _through(equation: jex.JaxprEqn, axes: list[Axis], numbers: list[Any]) -> list[Axis]:
    """The axes of what an equation gives."""
    number = len(equation.outvars)
    if all(axis is None for axis in axes):
        return [None] * number
    name = equation.primitive.name
    rule = _RULES.get(name)
    if name == "optimization_barrier":
        return axes
    if (inner := called_by(equation)) is not None:
        return axes_of_outputs(_open(inner), axes)
    if name in _CONTROL:
        return _CONTROL[name](equation, axes)
    if MEET in axes:
        return [MEET] * number
    if name in _ELEMENTWISE:
        return [_same(axes)] * number
    if name == "gather" and _takes_own_row(equation, axes, numbers[1]):
        return [0]
    return [MEET if rule is None else rule(equation, axes)] * number


def _numbers(equation: jex.JaxprEqn, given: list[Any]) -> Any:
    """The entries of an array of row numbers on their way into an index, `x[jnp.arange(n), labels]`.

    Of a matrix of indices, in which others may stand beside them: NaN where they are not known.
    """
    name, params = equation.primitive.name, equation.params
    if name == "iota":
        return np.arange(params["shape"][0]).astype(params["dtype"]) if len(params["shape"]) == 1 else None
    if name == "concatenate" and params["dimension"] == 1 and any(x is not None for x in given):
        shapes = [_shape(atom) for atom in equation.invars]
        return np.concatenate(
            [np.full(shape, np.nan) if x is None else x for x, shape in zip(given, shapes, strict=True)], 1
        )
    if not given or any(x is None for x in given):
        return None
    if name == "broadcast_in_dim" and np.ndim(given[0]) == 1 and params["broadcast_dimensions"] == (0,):
        shape = params["shape"]
        return np.reshape(given[0], shape) if len(given[0]) == math.prod(shape) else None
    if name in ("pcast", "pvary"):
        return given[0]
    if name == "convert_element_type":  # a narrow dtype wraps around
        return given[0].astype(params["new_dtype"]) if np.all(np.isfinite(given[0])) else given[0]
    simple = {
        "lt": np.less,
        "add": np.add,
        "select_n": lambda which, *cases: np.choose(which, cases),
    }
    return simple[name](*given) if name in simple and np.ndim(given[0]) == 1 else None


def _takes_own_row(equation: jex.JaxprEqn, axes: list[Axis], numbers: Any) -> bool:
    """Whether every row of indices takes from its own row of what is indexed, and single entries."""
    (operand, indices), dimensions = axes, equation.params["dimension_numbers"]
    if numbers is None or np.ndim(numbers) != 2 or operand != 0 or indices not in (None, 0):
        return False
    column = tuple(dimensions.start_index_map).index(0) if 0 in dimensions.start_index_map else None
    own = column is not None and np.array_equal(numbers[:, column], np.arange(_shape(equation.invars[0])[0]))
    return own and 0 in dimensions.collapsed_slice_dims and 0 not in dimensions.offset_dims


def _shape(atom: Any) -> tuple[int, ...]:
    return atom.aval.shape


def _same(axes: Sequence[Axis]) -> Axis:
    """The one axis that all have which have any."""
    found = {axis for axis in axes if axis is not None}
    return found.pop() if len(found) == 1 else (MEET if found else None)


def _without(axis: Axis, removed: Sequence[int]) -> Axis:
    if axis is None or axis == MEET:
        return axis
    return MEET if axis in removed else axis - sum(other < axis for other in removed)


def _with_another(axis: Axis, place: int) -> Axis:
    return axis if axis is None or axis == MEET else axis + (place <= axis)


def _reduced(equation: jex.JaxprEqn, axes: list[Axis]) -> Axis:
    return _without(_same(axes), equation.params.get("axes", equation.params.get("dimensions")))


def _reshaped(equation: jex.JaxprEqn, axes: list[Axis]) -> Axis:
    old, new = _shape(equation.invars[0]), _shape(equation.outvars[0])
    axis: Any = axes[0]
    if equation.params.get("dimensions") is not None:  # in another order
        return MEET
    for place, size in enumerate(new):
        if size == old[axis] and math.prod(new[:place]) == math.prod(old[:axis]):
            return place
    return MEET


def _untouched(touches: Callable[[dict[str, Any], int, Any], bool]) -> Callable[..., Axis]:
    """The rule of an equation that keeps every axis, and leaves the rows alone unless it `touches` theirs."""

    def rule(equation, axes):
        axis: Any = _same(axes)
        return MEET if axis == MEET or touches(equation.params, axis, equation) else axis

    return rule


def _window(params: dict[str, Any], axis: int, equation: Any) -> bool:
    del equation
    names = ("window_dimensions", "window_strides", "base_dilation", "window_dilation")
    return tuple(params["padding"][axis]) != (0, 0) or any(params.get(n, {axis: 1})[axis] != 1 for n in names)


def _sliced(params: dict[str, Any], axis: int, equation: Any) -> bool:
    del params
    return _shape(equation.invars[0])[axis] != _shape(equation.outvars[0])[axis]


def _dot(equation: jex.JaxprEqn, axes: list[Axis]) -> Axis:
    contracted, batched = equation.params["dimension_numbers"]
    sides = []
    for side, axis in enumerate(axes):
        rank = len(_shape(equation.invars[side]))
        free = [n for n in range(rank) if n not in contracted[side] and n not in batched[side]]
        ahead = len(batched[0]) if side == 0 else len(_shape(equation.outvars[0])) - len(free)
        if axis is None:
            sides.append(None)
        elif axis in batched[side]:
            sides.append(tuple(batched[side]).index(axis))
        else:
            sides.append(ahead + free.index(axis) if axis in free else MEET)
    return _same(sides)


def _convolution(equation: jex.JaxprEqn, axes: list[Axis]) -> Axis:
    numbers = equation.params["dimension_numbers"]
    is_plain = (
        axes[0] == numbers.lhs_spec[0] and axes[1] is None and equation.params["batch_group_count"] == 1
    )
    return numbers.out_spec[0] if is_plain else MEET


def _gather(equation: jex.JaxprEqn, axes: list[Axis]) -> Axis:
    numbers = equation.params["dimension_numbers"]
    operand, indices = axes
    outer = [n for n in range(len(_shape(equation.outvars[0]))) if n not in numbers.offset_dims]
    if indices is not None:
        if operand is not None and (operand, indices) not in zip(
            numbers.operand_batching_dims, numbers.start_indices_batching_dims, strict=True
        ):
            return MEET
        return outer[indices] if indices < len(outer) else MEET
    if operand is None:
        return None
    batched = tuple(numbers.operand_batching_dims)
    if operand in batched:
        return outer[numbers.start_indices_batching_dims[batched.index(operand)]]
    taken = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    whole = equation.params["slice_sizes"][operand] == _shape(equation.invars[0])[operand]
    if operand in taken or not whole:
        return MEET
    kept = [n for n in range(len(_shape(equation.invars[0]))) if n not in taken]
    return numbers.offset_dims[kept.index(operand)]


def _scatter(equation: jex.JaxprEqn, axes: list[Axis]) -> Axis:
    """Into each row, at places of its own, or at the same places of all."""
    numbers, (operand, indices, updates) = equation.params["dimension_numbers"], axes
    if indices is None:
        return _scatter_of_windows(equation, operand, updates)
    pairs = zip(numbers.operand_batching_dims, numbers.scatter_indices_batching_dims, strict=True)
    outer = [n for n in range(len(_shape(equation.invars[2]))) if n not in numbers.update_window_dims]
    own = (operand, indices) in list(pairs) and updates in (None, outer[indices or 0])
    return operand if own else MEET


def _scatter_of_windows(equation: jex.JaxprEqn, operand: Axis, updates: Axis) -> Axis:
    """`x.at[:, columns]`: the window reaches over all rows."""
    numbers, shapes = equation.params["dimension_numbers"], [_shape(atom) for atom in equation.invars]
    taken = {*numbers.inserted_window_dims, *numbers.operand_batching_dims}
    kept = [n for n in range(len(shapes[0])) if n not in taken]
    places = dict(zip(numbers.update_window_dims, kept, strict=True))
    axis: Any = _same([operand, None if updates is None else places.get(updates, MEET)])
    if axis == MEET or axis not in kept or axis in numbers.scatter_dims_to_operand_dims:
        return MEET
    window = numbers.update_window_dims[kept.index(axis)]
    return axis if shapes[2][window] == shapes[0][axis] else MEET


def _leading(number: int) -> Callable[..., Axis]:
    """The rule of what is done with the last axes of arrays, each row for itself."""

    def rule(equation, axes):
        axis: Any = _same(axes)
        ranks = [len(_shape(atom)) for atom, a in zip(equation.invars, axes, strict=True) if a is not None]
        return axis if axis != MEET and all(axis < rank - number for rank in ranks) else MEET

    return rule


_RULES: dict[str, Callable[[Any, list[Axis]], Axis]] = {
    **dict.fromkeys(
        (
            "reduce_sum",
            "reduce_max",
            "reduce_min",
            "reduce_prod",
            "reduce_and",
            "reduce_or",
            "argmax",
            "argmin",
        ),
        _reduced,
    ),
    "squeeze": _reduced,
    "reshape": _reshaped,
    "broadcast_in_dim": lambda e, axes: e.params["broadcast_dimensions"][axes[0]],
    "transpose": lambda e, axes: tuple(e.params["permutation"]).index(axes[0]),
    **dict.fromkeys(
        ("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp", "split"),
        _untouched(lambda params, axis, e: params["axis"] == axis),
    ),
    **dict.fromkeys(("concatenate", "sort"), _untouched(lambda params, axis, e: params["dimension"] == axis)),
    "stack": lambda e, axes: _with_another(_same(axes), e.params["axis"]),
    "unstack": lambda e, axes: _without(axes[0], [e.params["axis"]]),
    "tile": _untouched(lambda params, axis, e: params["reps"][axis] != 1),
    "rev": _untouched(lambda params, axis, e: axis in params["dimensions"]),
    "pad": _untouched(lambda params, axis, e: tuple(params["padding_config"][axis]) != (0, 0, 0)),
    "slice": _untouched(_sliced),
    "dynamic_slice": _untouched(_sliced),
    "dynamic_update_slice": _untouched(
        lambda params, axis, e: _shape(e.invars[1])[axis] != _shape(e.outvars[0])[axis]
    ),
    "top_k": _untouched(lambda params, axis, e: params.get("axis", len(_shape(e.invars[0])) - 1) == axis),
    **dict.fromkeys(("reduce_window_max", "reduce_window_sum", "reduce_window_min"), _untouched(_window)),
    "dot_general": _dot,
    "conv_general_dilated": _convolution,
    "gather": _gather,
    **dict.fromkeys(("scatter", "scatter-add", "scatter_add", "scatter-mul", "scatter_mul"), _scatter),
    **dict.fromkeys(
        ("cholesky", "eigh", "geqrf", "householder_product", "lu", "qr", "svd", "triangular_solve"),
        _leading(2),
    ),
    "lu_pivots_to_permutation": _leading(1),
    "fft": lambda e, axes: _leading(len(e.params["fft_lengths"]))(e, axes),
}


def _joined(one: Sequence[Axis], other: Sequence[Axis]) -> list[Axis]:
    return [_same(pair) for pair in zip(one, other, strict=True)]


def _settled(body: Callable[[list[Axis]], list[Axis]], carry: list[Axis]) -> list[Axis]:
    """The axes of what a loop carries."""
    for _ in range(2 * len(carry) + 1):
        joined = _joined(carry, body(carry))
        if joined == carry:
            break
        carry = joined
    return carry


def _scan(equation: jex.JaxprEqn, axes: list[Axis]) -> list[Axis]:
    jaxpr = _open(equation.params["jaxpr"])
    first, number = parts_of_scan(equation)
    consts, carry, xs = axes[:first], axes[first : first + number], axes[first + number :]
    if 0 in xs:  # a loop over the examples, in which nothing may be carried
        alone = not number and all(axis in (None, 0) for axis in xs) and consts == [None] * first
        return [0 if alone else MEET] * len(equation.outvars)
    inside = [axis if axis in (None, MEET) else axis - 1 for axis in xs]

    def body(carry):
        return axes_of_outputs(jaxpr, [*consts, *carry, *inside])

    carry = _settled(lambda carry: body(carry)[:number], carry)
    ys = [axis if axis in (None, MEET) else axis + 1 for axis in body(carry)[number:]]
    return [*carry, *ys]


def _while(equation: jex.JaxprEqn, axes: list[Axis]) -> list[Axis]:
    params, start = equation.params, equation.params["cond_nconsts"]
    consts, carry = axes[start : start + params["body_nconsts"]], axes[start + params["body_nconsts"] :]
    carry = _settled(lambda carry: axes_of_outputs(_open(params["body_jaxpr"]), [*consts, *carry]), carry)
    (decided,) = axes_of_outputs(_open(params["cond_jaxpr"]), [*axes[:start], *carry])
    return carry if decided is None else [MEET] * len(carry)


def _cond(equation: jex.JaxprEqn, axes: list[Axis]) -> list[Axis]:
    index, *operands = axes
    found = [axes_of_outputs(_open(branch), operands) for branch in equation.params["branches"]]
    if index is not None:
        return [MEET] * len(found[0])
    first, *others = found
    for other in others:
        first = _joined(first, other)
    return first


_CONTROL: dict[str, Callable[[Any, list[Axis]], list[Axis]]] = {"scan": _scan, "while": _while, "cond": _cond}


def _open(jaxpr: jex.Jaxpr | jex.ClosedJaxpr) -> jex.Jaxpr:
    return jaxpr.jaxpr if isinstance(jaxpr, jex.ClosedJaxpr) else jaxpr
