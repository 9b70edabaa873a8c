"""A part of the parameters: any measurement, for one layer or group of leaves."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import optax

from optax_sam.arithmetic import trees
from optax_sam.engine.arrays import as_arrays
from optax_sam.sharpness.curvatures import Curvature


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class OnPart:
    """A function of a part of the parameters, the others held.

    Attributes:
      loss_fn: the function of all parameters, such as a loss.
      others: the parameters, hidden where the part is.
    """

    loss_fn: Any
    others: Any

    def __call__(self, part: Any, *args: Any) -> Any:
        """What the function returns: for a batch, or for what else it takes."""
        return self.loss_fn(trees.filled(part, self.others), *args)


def of_part(
    loss_fn: Callable[[Any, Any], Any], params: Any, mask: Any
) -> tuple[Callable[[Any, Any], Any], Any]:
    """A loss function and the parameters of one layer or group of leaves, for any measurement.

    `top_eigenvalues(*of_part(losses, params, mask), batches)` measures the block of the Hessian that belongs
    to the part. The rises of the loss are those where the part alone is perturbed. All other leaves stay as
    they are.

    Args:
      loss_fn: see `top_eigenvalues`. `GaussNewton` and its like too.
      params: the parameters.
      mask: `mask(path, leaf) -> bool`, with the keys of the leaf's path, such as
        `optax_sam.is_normalization`. Or a tree of bools like `params`, or a prefix of it, as for
        `optax.masked`.

    Returns:
      `(loss_fn, part)`: a function of the part and a batch, and `params` with `optax.MaskedNode()` in place
      of what is left out. Vectors that measurements return are trees like `part`.

    Raises:
      ValueError: the mask chooses no float leaf, or is no tree like `params`.
      TypeError: a leaf of the mask is no bool.

    Cost:
      That of the measurement. A product with a block costs about what one with the whole matrix does.

    Example:
      >>> import jax.numpy as jnp
      >>> from optax_sam import sharpness
      >>> loss_fn = lambda params, x: x * params["a"] ** 2 + x * params["b"] ** 2 * params["a"]
      >>> params, batch = {"a": jnp.array(1.0), "b": jnp.array(3.0)}, jnp.array([1.0])
      >>> part = sharpness.of_part(loss_fn, params, {"a": True, "b": False})
      >>> print(sharpness.top_eigenvalues(*part, batch).values)
      [2.]
    """
    params = as_arrays("params", trees.plain(params))
    chosen = _chosen(params, mask)
    pairs = zip(jax.tree.leaves(chosen), jax.tree.leaves(params), strict=True)
    if not any(c and trees.is_inexact(x) and x.size for c, x in pairs):
        raise ValueError("mask chooses no float leaf of params: choose one or more.")

    def shown(which):
        return jax.tree.map(lambda x, c: x if c is which else optax.MaskedNode(), params, chosen)

    others = shown(False)
    if isinstance(loss_fn, Curvature):
        return loss_fn.wrapped(lambda function: OnPart(function, others)), shown(True)
    return OnPart(loss_fn, others), shown(True)


def _chosen(params: Any, mask: Any) -> Any:
    """One bool for each leaf."""
    if callable(mask):
        return jax.tree.map_with_path(lambda path, leaf: bool(mask(path, leaf)), params)
    for path, x in jax.tree.leaves_with_path(mask):
        if not isinstance(x, bool):
            place = jax.tree_util.keystr(path)
            raise TypeError(f"mask{place}={x!r} is no bool: pass True for what is measured.")
    try:
        return jax.tree.map(lambda c, part: jax.tree.map(lambda _: c, part), mask, params)
    except ValueError as error:
        raise ValueError(f"mask is no tree like params, nor a prefix of it: {error}") from error
