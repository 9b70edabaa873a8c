"""The arrays that a function closes over, to be handed to it as arguments.

Inside `jax.shard_map` a function may not use arrays from outside on explicit mesh axes; but a loss
function closes over batch statistics and keys.
"""

import functools
import types
from collections.abc import Callable
from typing import Any

import jax


def closed_over(function: Callable[..., Any]) -> tuple[list[jax.Array], Callable[..., Any]]:
    """The arrays that a function closes over, and how to make the function anew with others.

    Found are arrays in pytrees, partial arguments and defaults, and in the functions among them.
    What hides elsewhere (a module's variable, an object's attribute) stays where it is.

    Returns:
      `(arrays, rebuild)` with `rebuild(arrays)` a function like `function`.
    """
    arrays: list[jax.Array] = []
    treedef = _collect(function, arrays, ())
    return arrays, lambda new: treedef(iter(new))


def _collect(value: Any, arrays: list[jax.Array], parents: tuple[Any, ...]) -> Callable[[Any], Any]:
    """Appends the arrays in `value`; returns a function that takes as many from an iterator."""
    if isinstance(value, jax.Array):
        arrays.append(value)
        return next
    if any(value is parent for parent in parents):  # a function that calls itself
        return lambda supply: value
    parents = (*parents, value)
    if isinstance(value, types.FunctionType):
        cells = value.__closure__ or ()
        full = [cell for cell in cells if not _is_empty(cell)]
        if not any((full, value.__defaults__, value.__kwdefaults__)):
            return lambda supply: value
        inside = [cell.cell_contents for cell in full], value.__defaults__, value.__kwdefaults__
        rebuild = _collect_all(inside, arrays, parents)

        def function(supply):
            contents, defaults, keyword_defaults = rebuild(supply)
            fresh = iter(map(types.CellType, contents))
            new_cells = tuple(cell if _is_empty(cell) else next(fresh) for cell in cells)
            new = types.FunctionType(
                value.__code__, value.__globals__, value.__name__, defaults, new_cells or None
            )
            new.__kwdefaults__ = keyword_defaults
            return new

        return function
    if isinstance(value, functools.partial):
        rebuild = _collect_all((value.func, value.args, value.keywords), arrays, parents)

        def partial(supply):
            function, args, keywords = rebuild(supply)
            return functools.partial(function, *args, **keywords)

        return partial
    if isinstance(value, types.MethodType):
        rebuild = _collect_all((value.__func__, value.__self__), arrays, parents)
        return lambda supply: types.MethodType(*rebuild(supply))
    return _collect_all(value, arrays, parents)


def _collect_all(tree: Any, arrays: list[jax.Array], parents: tuple[Any, ...]) -> Callable[[Any], Any]:
    leaves, treedef = jax.tree.flatten(tree)
    if len(leaves) == 1 and leaves[0] is tree:
        return lambda supply: tree
    parts = [_collect(leaf, arrays, parents) for leaf in leaves]
    return lambda supply: jax.tree.unflatten(treedef, [part(supply) for part in parts])


def _is_empty(cell: types.CellType) -> bool:
    """Whether the variable of the cell has no value yet."""
    return cell == types.CellType()
