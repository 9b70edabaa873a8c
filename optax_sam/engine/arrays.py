"""What a user hands in as arrays: parameters, gradients, batches."""

import numbers
from typing import Any

import jax
import jax.numpy as jnp

OF_EQUINOX = (
    " Of an Equinox model the parameters are params, static = eqx.partition(model, eqx.is_inexact_array), "
    "and the loss calls eqx.combine(params, static)."
)


def as_arrays(name: str, tree: Any) -> Any:
    """The tree as arrays; refuses a leaf that is none, by its place."""

    def on_leaf(path, x):
        try:
            return jnp.asarray(x)
        except TypeError as error:
            raise _refused(name, path, x) from error

    return jax.tree.map_with_path(on_leaf, tree)


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
