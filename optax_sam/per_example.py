"""Losses, gradients, and gradient norms of single examples.

Each function calls `loss_fn` with batches of one example, so that a model with batch statistics sees
the statistics of that example alone. Inside a `jax.shard_map` each device has its own examples.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from optax_sam.arithmetic import batch_axis, ghost_norms, sharding, trees
from optax_sam.arithmetic.jaxprs import canonical_convolutions
from optax_sam.engine import checks
from optax_sam.engine.arrays import as_arrays
from optax_sam.engine.examples import Rows, check_rows, size_of
from optax_sam.engine.hyperparameters import Count
from optax_sam.engine.losses import checked
from optax_sam.engine.objective import like_params


def losses(
    loss_fn: Callable[[Any, Any], Any],
    params: Any,
    batch: Any,
    *,
    microbatch_size: Count | None = None,
) -> jax.Array:
    """One loss per example.

    Args:
      loss_fn: `loss_fn(params, batch)` returns losses of shape `[batch]`, or their mean. It must not place
        its rows on devices (`out_sharding`): it sees one at a time.
      params: the parameters.
      batch: a pytree. Every leaf has the batch axis first.
      microbatch_size: how many examples are in memory at once. All of them by default. Must divide
        the batch.

    Returns:
      `float[batch]`.

    Raises:
      ValueError: `batch` has no common first axis, `microbatch_size` does not divide it, or
        `loss_fn` returns another shape.

    Cost:
      One forward pass.
    """
    one = jax.vmap(lambda example: _loss_of_one(loss_fn, params, example))
    return _in_microbatches(one, loss_fn, batch, microbatch_size)


def gradients(
    loss_fn: Callable[[Any, Any], Any],
    params: Any,
    batch: Any,
    *,
    microbatch_size: Count | None = None,
) -> Any:
    """The gradient of each example's loss: a tree like `params`, each leaf with a leading batch axis.

    Arguments and errors as in `losses`.

    Cost:
      One gradient, computed example by example. A parameter-sized buffer for each example.
    """
    one = jax.vmap(lambda example: _gradient_of_one(loss_fn, params, example))
    return _in_microbatches(one, loss_fn, batch, microbatch_size)


def gradient_norms(
    loss_fn: Callable[[Any, Any], Any],
    params: Any,
    batch: Any,
    *,
    microbatch_size: Count | None = None,
) -> jax.Array:
    """The global L2 norm of the gradient of each example's loss, `float[batch]`, in float32 or wider.

    No norm is an estimate. The loss is walked equation by equation. Where a parameter is multiplied as a
    matrix, convolved or looked up, no gradient of an example is formed. What other equations do with
    parameters (adding a bias, scaling, a loop) is computed as `vmap` would, for those parameters alone.
    Complex parameters are left to `vmap`.

    The gradient of a matrix is a sum with a term for each position of the example. Rounding is as small as in
    that sum for up to three positions, such as the two sides of a siamese loss. With more positions, terms
    may cancel to a part `p` of the sum `s` of their norms. The norm is then right to about `1e-7 / p^2`, in
    float32. Where `p` is below 3e-4, the norm is given as `3e-4 s`: too large, and never NaN.

    Arguments and errors as in `losses`.

    Cost:
      A forward pass, a backward pass without the gradients of weights, and products of the size of the
      activations. It takes the memory of the activations.

    Example:
      >>> import jax.numpy as jnp
      >>> from optax_sam import per_example
      >>> loss_fn = lambda w, x: x @ w
      >>> print(per_example.gradient_norms(loss_fn, jnp.ones(2), jnp.array([[3.0, 4.0], [0.0, 1.0]])))
      [5. 1.]
    """
    params = as_arrays("params", trees.plain(params))
    leaves, treedef = jax.tree.flatten(params)
    floats = [n for n, x in enumerate(leaves) if trees.is_inexact(x) and x.size]

    def loss(chosen, example):
        given = dict(enumerate(leaves)) | dict(zip(floats, chosen, strict=True))
        return _loss_of_one(loss_fn, jax.tree.unflatten(treedef, given.values()), example)

    def norms(batch):
        if any(jnp.iscomplexobj(x) for x in leaves):
            return jax.vmap(lambda x: trees.norm(_gradient_of_one(loss_fn, params, x)))(batch)
        chosen = sharding.varying_over([leaves[n] for n in floats], sharding.varying_axes(batch))
        return ghost_norms.norms(loss, chosen, batch)

    return _in_microbatches(norms, loss_fn, batch, microbatch_size)


def _loss_of_one(loss_fn: Callable[[Any, Any], Any], params: Any, example: Any) -> jax.Array:
    """The loss of a batch of one example, in float32 or wider."""
    loss = checked(loss_fn(params, jax.tree.map(lambda x: x[None], example)), 1, None)
    return jnp.sum(loss.astype(trees.accumulator_dtype(loss.dtype)))


def _gradient_of_one(loss_fn: Callable[[Any, Any], Any], params: Any, example: Any) -> Any:
    """Its gradient, zeros for integer leaves."""
    params = as_arrays("params", params)
    params = sharding.varying_over(params, sharding.varying_axes(example))
    gradient = jax.grad(lambda p: _loss_of_one(loss_fn, p, example), allow_int=True)
    return like_params("gradient", canonical_convolutions(gradient)(params), params)


def _in_microbatches(
    of_many: Callable[[Any], Any],
    loss_fn: Callable[[Any, Any], Any],
    batch: Any,
    microbatch_size: int | None,
) -> Any:
    """`of_many` of all examples, or of so many at once."""
    checks.function("loss_fn", loss_fn, "loss_fn(params, batch) -> [batch]")
    batch = as_arrays("batch", batch)
    check_rows(Rows(batch))
    size = size_of(batch)
    if size is None:
        raise ValueError("batch has no arrays: pass a pytree with the examples on the first axis.")
    if microbatch_size is None:
        return of_many(batch)
    checks.integer("microbatch_size", microbatch_size, low=1)
    if size % microbatch_size:
        raise ValueError(
            f"microbatch_size={microbatch_size} does not divide the batch of {size} examples: "
            f"choose a divisor."
        )
    parts = jax.tree.map(lambda x: batch_axis.split_each_part(x, size // microbatch_size), batch)
    like = jax.tree.leaves(batch)[0]
    return jax.tree.map(lambda x: batch_axis.join_rows(x, like), jax.lax.map(of_many, parts))
