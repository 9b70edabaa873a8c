"""The largest eigenvalue of the Hessian of the training loss, by power iteration."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

import optax_sam
from experiments.data import Split
from experiments.inputs import Examples
from experiments.training import cross_entropy

# Examples per Hessian-vector product, and the most that are used.
BATCH = 250
MAX_EXAMPLES = 5000


class TopEigenvalue(NamedTuple):
    """Result of a power iteration.

    Attributes:
      value: float32 scalar, the eigenvalue, in units of loss per squared length in weight space.
      iterations: int32 scalar, products with the Hessian spent.
      change: float32 scalar, relative change of the value in the last iteration.
    """

    value: jax.Array
    iterations: jax.Array
    change: jax.Array


def top_eigenvalue(
    times_hessian: Callable[[Any], Any],
    like: Any,
    key: jax.Array,
    tolerance: float = 1e-4,
    max_iterations: int = 1000,
) -> TopEigenvalue:
    """Finds the largest (most positive) eigenvalue of a symmetric linear map.

    Power iteration goes to the eigenvalue of largest size. Where that is negative, a second one, on
    the map shifted by it, goes to the other end of the spectrum.

    Args:
      times_hessian: the map on trees like `like`.
      like: tree of the shapes of a vector.
      key: decides the first vector.
      tolerance: stop when the Rayleigh quotient changes by less, relative to its size.
      max_iterations: stop at the latest after so many products.

    Returns:
      The value, with what it took.
    """
    start = optax.tree.random_like(key, like)

    def power_iteration(before: TopEigenvalue, _: None) -> tuple[TopEigenvalue, None]:
        shift = jnp.minimum(before.value, 0)

        def going(carry: tuple[Any, TopEigenvalue]) -> jax.Array:
            _, found = carry
            return (found.change > tolerance) & (found.iterations < max_iterations)

        def body(carry: tuple[Any, TopEigenvalue]) -> tuple[Any, TopEigenvalue]:
            vector, found = carry
            vector = optax.tree.scale(1 / optax.tree.norm(vector), vector)
            image = optax.tree.add_scale(times_hessian(vector), -shift, vector)
            value = jnp.asarray(optax.tree.vdot(vector, image)) + shift
            change = jnp.abs((value - found.value) / (value - shift))
            return image, TopEigenvalue(value, found.iterations + 1, change)

        needed = ~(before.value > 0)
        first = before._replace(change=jnp.where(needed, jnp.inf, before.change))
        return jax.lax.while_loop(going, body, (start, first))[1], None

    nothing = TopEigenvalue(jnp.float32(0), jnp.int32(0), jnp.float32(jnp.inf))
    # Two turns of one program; the second is over at once where the first found a positive value.
    return jax.lax.scan(power_iteration, nothing, length=2)[0]


@functools.partial(jax.jit, static_argnums=0)
def training_curvature(model: nn.Module, params: Any, batch_stats: Any, examples: Examples) -> TopEigenvalue:
    """Top eigenvalue for the mean loss on the training examples (at most 5,000), in float32.

    Batch norm runs as in evaluation, on its running statistics: the loss is then one fixed
    function of the weights, whatever the batches. Weight decay and augmentation stay out.
    """
    num_examples = min(MAX_EXAMPLES, len(examples.train.label))
    batches = -(-num_examples // BATCH)
    size = num_examples // batches
    cut = (array[: batches * size] for array in examples.train)
    train = Split(*(array.reshape(batches, size, *array.shape[1:]) for array in cut))

    def loss(params: Any, batch: Split) -> jax.Array:
        variables = {"params": params, "batch_stats": batch_stats}
        logits: Any = model.apply(variables, examples.standardized(batch.image), train=False)
        return cross_entropy(logits, batch.label).mean()

    @optax_sam.canonical_convolutions
    def product(vector: Any, batch: Split) -> Any:
        gradient = jax.grad(lambda params: loss(params, batch))
        return jax.jvp(gradient, (params,), (vector,))[1]

    def times_hessian(vector: Any) -> Any:
        products = jax.lax.map(lambda batch: product(vector, batch), train)
        return jax.tree.map(lambda leaf: leaf.mean(0), products)

    return top_eigenvalue(times_hessian, params, jax.random.key(0))
