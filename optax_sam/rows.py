"""The examples of a batch, and what padding among them is worth: nothing."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Rows(NamedTuple):
    """The examples of a batch: every leaf has the batch axis first."""

    batch: Any
    indices: jax.Array | None
    weights: jax.Array | None


def without_padding(batch: Any, weights: jax.Array) -> Any:
    """The batch with every padding row replaced by the first real one.

    A mask on the losses alone is not enough: a NaN inside a padding row makes the derivative
    `0 * NaN`. The first real row is found by a masked sum, which keeps a sharded batch in place.
    """
    real = weights != 0
    chosen = real & (jnp.arange(real.size) == jnp.argmax(real))

    def on_leaf(x):
        if jnp.issubdtype(x.dtype, jax.dtypes.extended):
            return x
        column = (-1,) + (1,) * (x.ndim - 1)
        zeros = jnp.zeros_like(x)
        row = jnp.sum(jnp.where(chosen.reshape(column), x, zeros), axis=0, keepdims=True)
        return jnp.where(real.reshape(column), x, row.astype(x.dtype))

    return jax.tree.map(on_leaf, batch)


def check_rows(rows: Rows) -> None:
    """Refuses leaves, indices or weights whose first axis is not that of the batch."""
    size = None
    for path, leaf in jax.tree.leaves_with_path(rows.batch):
        name = "batch" + jax.tree_util.keystr(path)
        if not leaf.shape:
            raise ValueError(
                f"{name} has dtype {leaf.dtype} and no batch axis: every leaf of batch has the "
                f"batch axis first; close over scalars, keys and batch statistics in the loss function."
            )
        size = leaf.shape[0] if size is None else size
        if leaf.shape[0] != size:
            raise ValueError(
                f"{name} has shape {leaf.shape}, but the batch has {size} examples: every leaf of "
                f"batch has the batch axis first."
            )
    if size == 0:
        raise ValueError("batch has 0 examples: pass at least one.")
    for name, array, kind in (
        ("indices", rows.indices, jnp.integer),
        ("weights", rows.weights, jnp.floating),
    ):
        if array is None:
            continue
        if not jnp.issubdtype(array.dtype, kind):
            raise TypeError(
                f"{name} has dtype {array.dtype}: pass an array "
                f"of {'integers' if kind is jnp.integer else 'floats'}, one per example."
            )
        if array.shape != (size,):
            raise ValueError(
                f"{name} has shape {array.shape}, but the batch has {size} examples: pass one "
                f"entry per example, shape ({size},)."
            )
