"""Losses, gradients, and gradient norms of single examples.

Each function calls `loss_fn` with batches of one example, so that a model with batch statistics sees
the statistics of that example alone.
"""

from collections.abc import Callable
from typing import Any

import jax

from optax_sam import checks, trees
from optax_sam.oracle import Oracle


def losses(
    loss_fn: Callable[[Any, Any], Any],
    params: Any,
    batch: Any,
    *,
    microbatch_size: int | None = None,
) -> jax.Array:
    """One loss per example.

    Args:
      loss_fn: `loss_fn(params, batch)` returns losses of shape `[batch]`, or their mean.
      params: the parameters.
      batch: a pytree; every leaf has the batch axis first.
      microbatch_size: how many examples are in memory at once; all of them by default. Must divide
        the batch.

    Returns:
      `float[batch]`.

    Raises:
      ValueError: `batch` has no common first axis, `microbatch_size` does not divide it, or
        `loss_fn` returns another shape.

    Cost:
      one forward pass.
    """
    return _map_examples(lambda oracle: oracle.evaluate(params).loss, loss_fn, batch, microbatch_size)


def gradients(
    loss_fn: Callable[[Any, Any], Any],
    params: Any,
    batch: Any,
    *,
    microbatch_size: int | None = None,
) -> Any:
    """The gradient of each example's loss: a tree like `params`, each leaf with a leading batch axis.

    Arguments and errors as in `losses`.

    Cost:
      one gradient, computed example by example; a parameter-sized buffer for each example.
    """
    return _map_examples(lambda oracle: oracle.evaluate(params).grads, loss_fn, batch, microbatch_size)


def gradient_norms(
    loss_fn: Callable[[Any, Any], Any],
    params: Any,
    batch: Any,
    *,
    microbatch_size: int | None = None,
) -> jax.Array:
    """The global L2 norm of the gradient of each example's loss, `float[batch]`, in float32 or wider.

    Arguments and errors as in `losses`.

    Cost:
      one gradient, computed example by example; a parameter-sized buffer for each example in memory at
      once. On dense layers this is many times slower than the gradient of the batch.

    Example:
      >>> import jax.numpy as jnp
      >>> from optax_sam import per_example
      >>> loss_fn = lambda w, x: x @ w
      >>> print(per_example.gradient_norms(loss_fn, jnp.ones(2), jnp.array([[3.0, 4.0], [0.0, 1.0]])))
      [5. 1.]
    """
    return _map_examples(
        lambda oracle: trees.norm(oracle.evaluate(params).grads), loss_fn, batch, microbatch_size
    )


def _map_examples(
    of_one: Callable[[Oracle], Any],
    loss_fn: Callable[[Any, Any], Any],
    batch: Any,
    microbatch_size: int | None,
) -> Any:
    """`of_one(oracle of one example)` for each example, in micro-batches."""
    checks.function("loss_fn", loss_fn, "loss_fn(params, batch) -> [batch]")
    size = Oracle(loss_fn, batch).size
    if size is None:
        raise ValueError("batch has no arrays: pass a pytree with the examples on the first axis.")

    def of_example(example):
        return of_one(Oracle(loss_fn, jax.tree.map(lambda x: x[None], example)))

    of_many = jax.vmap(of_example)
    if microbatch_size is None:
        return of_many(batch)
    checks.integer("microbatch_size", microbatch_size, low=1)
    if size % microbatch_size:
        raise ValueError(
            f"microbatch_size={microbatch_size} does not divide the batch of {size} examples: "
            f"choose a divisor."
        )
    return jax.lax.map(of_example, batch, batch_size=microbatch_size)
