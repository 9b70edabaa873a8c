"""What a user hands in as arrays: parameters, gradients, batches."""

import numbers
import sys
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

OF_EQUINOX = (
    " Of an Equinox model the parameters are params, static = eqx.partition(model, eqx.is_inexact_array), "
    "and the loss calls eqx.combine(params, static)."
)


def as_arrays(name: str, tree: Any) -> Any:
    """The tree as arrays; refuses a leaf that is none, by its place.

    A weak type of a parameter becomes a strong one, as it does in an update: else the first pass of the first
    step would compute in other dtypes than all later ones.
    """
    if name != "params":
        _refuse_sparse(name, tree)

    def on_leaf(path, x):
        try:
            array = jnp.asarray(x)
        except TypeError as error:
            raise _refused(name, path, x) from error
        is_weak = name == "params" and jax.typeof(array).weak_type
        return lax.convert_element_type(array, array.dtype) if is_weak else array

    return jax.tree.map_with_path(on_leaf, tree)


def _refuse_sparse(name: str, tree: Any) -> None:
    """The first axis of what a sparse array holds is that of its entries, not of its rows."""
    sparse = sys.modules.get("jax.experimental.sparse")
    if sparse is None:  # nobody can have made one
        return
    is_sparse = lambda x: isinstance(x, sparse.JAXSparse)  # noqa: E731
    for path, x in jax.tree.leaves_with_path(tree, is_leaf=is_sparse):
        if is_sparse(x):
            raise TypeError(
                f"{name}{jax.tree_util.keystr(path)} is a sparse array, a {type(x).__name__}, whose rows "
                f"cannot be told apart: pass x.todense(), or x behind the batch, where it stays whole."
            )


def like_arrays(name: str, tree: Any) -> Any:
    """The same for an initial state, which looks at shapes and dtypes alone, and leaves the leaves be."""
    for path, x in jax.tree.leaves_with_path(tree):
        if not hasattr(x, "dtype") and not isinstance(x, numbers.Number):
            raise _refused(name, path, x)
    return tree


def _refused(name: str, path: Any, leaf: Any) -> TypeError:
    place, kind = jax.tree_util.keystr(path), getattr(leaf, "dtype", type(leaf).__name__)
    return TypeError(
        f"{name}{place} is no array of numbers ({kind}): leave it out, or close over it."
        f"{OF_EQUINOX if name == 'params' else ''}"
    )
