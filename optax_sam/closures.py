"""What a function closes over: held as it is now, or handed to it as arguments.

A loss function closes over batch statistics and keys. Its later passes must not see what is assigned
to those names after the first one; and inside `jax.shard_map` it may not use arrays from outside on
explicit mesh axes.
"""

import dis
import functools
import types
from collections.abc import Callable
from typing import Any

import jax


def as_of_now(function: Callable[..., Any], parents: tuple[Any, ...] = ()) -> Callable[..., Any]:
    """`function` with the variables that it closes over as they are now."""
    if isinstance(function, functools.partial):
        now = as_of_now(function.func, parents)
        return functools.partial(now, *function.args, **function.keywords)
    if not isinstance(function, types.FunctionType) or any(function is parent for parent in parents):
        return function
    parents = (*parents, function)
    cells, read = function.__closure__ or (), set(map(id, _read_alone(function)))
    held = [types.CellType(as_of_now(c.cell_contents, parents)) if id(c) in read else c for c in cells]
    return _with_cells(function, held, function.__defaults__, function.__kwdefaults__)


def closed_over(function: Callable[..., Any]) -> tuple[list[jax.Array], Callable[..., Any]]:
    """The arrays that a function closes over, and how to make the function anew with others.

    Found are arrays in pytrees, partial arguments and defaults, and in the functions among them.
    What hides elsewhere (a module's variable, an object's attribute) stays where it is, and what holds
    no array stays the same object.

    Returns:
      `(arrays, rebuild)` with `rebuild(arrays)` a function like `function`.
    """
    arrays: list[jax.Array] = []
    rebuild = _collect(function, arrays, ())
    return arrays, lambda new: rebuild(iter(new))


def _collect(value: Any, arrays: list[jax.Array], parents: tuple[Any, ...]) -> Callable[[Any], Any]:
    """Appends the arrays in `value`; returns a function that takes as many from an iterator."""
    if isinstance(value, jax.Array):
        arrays.append(value)
        return next
    if any(value is parent for parent in parents):  # a function that calls itself
        return lambda supply: value
    already = len(arrays)
    rebuild = _collect_inside(value, arrays, (*parents, value))
    return rebuild if len(arrays) > already else lambda supply: value


def _collect_inside(value: Any, arrays: list[jax.Array], parents: tuple[Any, ...]) -> Callable[[Any], Any]:
    def each(values):
        parts = [_collect(v, arrays, parents) for v in values]
        return lambda supply: [part(supply) for part in parts]

    if isinstance(value, types.FunctionType):
        cells = value.__closure__ or ()
        read = _read_alone(value)
        contents, read = each([cell.cell_contents for cell in read]), set(map(id, read))
        defaults = each(value.__defaults__ or ())
        keyword_defaults = each((value.__kwdefaults__ or {}).values())

        def function(supply):
            fresh = map(types.CellType, contents(supply))
            new_cells = tuple(next(fresh) if id(cell) in read else cell for cell in cells)
            keywords = dict(zip(value.__kwdefaults__ or {}, keyword_defaults(supply), strict=True))
            return _with_cells(value, new_cells, tuple(defaults(supply)), keywords)

        return function
    if isinstance(value, functools.partial):
        parts = each((value.func, *value.args, *value.keywords.values()))

        def partial(supply):
            function, *rest = parts(supply)
            args, keywords = rest[: len(value.args)], rest[len(value.args) :]
            return functools.partial(function, *args, **dict(zip(value.keywords, keywords, strict=True)))

        return partial
    if isinstance(value, types.MethodType):
        parts = each((value.__func__, value.__self__))
        return lambda supply: types.MethodType(*parts(supply))
    leaves, treedef = jax.tree.flatten(value)
    if len(leaves) == 1 and leaves[0] is value:
        return lambda supply: value
    parts = each(leaves)
    return lambda supply: jax.tree.unflatten(treedef, parts(supply))


def _with_cells(function: Any, cells: Any, defaults: Any, keyword_defaults: Any) -> Any:
    """The same function with other variables and defaults."""
    new = types.FunctionType(
        function.__code__, function.__globals__, function.__name__, defaults, tuple(cells) or None
    )
    new.__kwdefaults__ = keyword_defaults
    return functools.update_wrapper(new, function)


def _read_alone(function: types.FunctionType) -> list[types.CellType]:
    """The variables that a function closes over, but those without a value and those it assigns itself."""
    assigned = _assigned(function.__code__)
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    return [cell for name, cell in cells if name not in assigned and not _is_empty(cell)]


def _assigned(code: types.CodeType) -> set[str]:
    """The names from outside to which a function, or one inside it, assigns (`nonlocal`)."""
    stored = {i.argval for i in dis.get_instructions(code) if i.opname == "STORE_DEREF"}
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            stored |= _assigned(inner)
    return stored & set(code.co_freevars)


def _is_empty(cell: types.CellType) -> bool:
    """Whether the variable of the cell has no value yet."""
    try:
        _ = cell.cell_contents
    except ValueError:
        return True
    return False
