"""Losses and gradients at a point, on all or on a part of the batch.

An `Oracle` is how a transformation asks for the further gradients of a training step. It knows
whether, where and for which method the first gradient of the step was taken already.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from optax_sam import checks, means, sharding, trees
from optax_sam.jaxprs import canonical_convolutions
from optax_sam.rows import Rows, check_rows, without_padding


class Evaluation(NamedTuple):
    """What one evaluation at a point gave.

    Attributes:
      grads: a tree like the parameters.
      loss: the weighted mean of the losses, `float[]`; None where only a gradient function is known.
      losses: one loss per example, `float[batch]`; None where the loss function returns their mean.
      aux: what the loss function returned beside the losses.
    """

    grads: Any
    loss: Any = None
    losses: Any = None
    aux: Any = None


class Climb(NamedTuple):
    """A perturbation that was made.

    Attributes:
      direction: what pointed uphill.
      perturbation: a tree like the parameters; None where it is no longer needed.
      state: of the ascent, after it.
      length: `float[]`, the L2 norm of the perturbation.
    """

    direction: Any
    perturbation: Any
    state: Any
    length: jax.Array


class First(NamedTuple):
    """The first evaluation of a step.

    Attributes:
      point: where it was taken; None for the parameters themselves.
      evaluation: what it gave.
      climb: the perturbation that led to the point; None where none has.
    """

    point: Any
    evaluation: Evaluation
    climb: Climb | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Oracle:
    """Losses and gradients of one training step's examples, at any parameters.

    `sam.value_and_grad(loss_fn)(...)` makes one; by hand it is needed where the method is hidden, for
    example in `optax.inject_hyperparams(optax_sam.sam)`. Not a pytree: it lives within one trace.

    Inside a `jax.shard_map` over the batch, where parameters are the same on all devices and losses
    are not, the mean is that over all devices' examples, as it is outside.

    Args:
      losses: `losses(params, batch)` returns one loss per example, shape `[batch]` (or their mean, a
        scalar, for methods that need no losses of single examples), or `(losses, aux)` with `has_aux`.
      batch: a pytree; every leaf has the batch axis first. Keys and batch statistics are closed over
        by `losses`.
      params: the full parameters; needed only inside `optax.masked` and `optax.partition`.
      has_aux: whether `losses` returns a pair.
      indices: the examples' numbers in the data set, `int[batch]`, for methods with a score per example.
      weights: `float[batch]`; 0 marks padding, whose content no result depends on, NaN included:
        the first real row takes its place, with weight 0. The loss is `sum(w l) / sum(w)`.
      whole_batch: every example is used and scored in this step.
      key: a PRNG key; `losses` is then called as `losses(params, batch, key)`, with another key for the
        gradient at the perturbed point than for the first one, whose key all other passes share. A key
        that `losses` closes over is the same in all passes.
      loss_scale: the mean of the losses is multiplied by it before, and the gradient divided by it after
        differentiation, in float32 or wider: low-precision gradients neither vanish nor overflow, and
        no result depends on it but by rounding.

    Raises:
      ValueError: a leaf of `batch`, `indices` or `weights` has another first axis than the rest.
      TypeError: `indices` that are not integers, `weights` that are not floats, a `key` that is none.

    Example:
      >>> import jax.numpy as jnp, optax, optax_sam
      >>> losses = lambda w, batch: (batch["x"] * w - batch["y"]) ** 2
      >>> batch = {"x": jnp.array([1.0, 2.0]), "y": jnp.array([0.0, 1.0])}
      >>> loss, grads = optax_sam.Oracle(losses, batch).value_and_grad(jnp.array(1.0))
      >>> print(loss, grads)
      1.0 3.0
    """

    losses: Callable[..., Any]
    batch: Any
    _: dataclasses.KW_ONLY
    params: Any = None
    has_aux: bool = False
    indices: Any = None
    weights: Any = None
    whole_batch: bool = False
    key: Any = None
    loss_scale: Any = None
    # The rest is set by the library: what a method has made of the oracle.
    structure: Any = dataclasses.field(default=None, repr=False)
    needs_losses: bool = dataclasses.field(default=False, repr=False)
    num_slices: int = dataclasses.field(default=1, repr=False)
    fraction: float = dataclasses.field(default=1.0, repr=False)
    weight_before_draw: Any = dataclasses.field(default=None, repr=False)
    method: Any = dataclasses.field(default=None, repr=False)
    slices: Any = dataclasses.field(default=None, repr=False)
    of_slice: Any = dataclasses.field(default=None, repr=False)
    first: Any = dataclasses.field(default=None, repr=False)
    opt_state: Any = dataclasses.field(default=None, repr=False)
    origin: Any = dataclasses.field(default=None, repr=False)

    def __post_init__(self):
        for name in Rows._fields:
            object.__setattr__(self, name, jax.tree.map(jnp.asarray, getattr(self, name)))
        if self.params is not None and self.structure is None:
            object.__setattr__(self, "structure", jax.tree.structure(self.params))
            object.__setattr__(self, "params", jax.tree.map(jnp.asarray, trees.plain(self.params)))
        checks.function("losses", self.losses, "losses(params, batch) -> [batch]")
        checks.boolean("has_aux", self.has_aux)
        checks.boolean("whole_batch", self.whole_batch)
        check_rows(Rows(self.batch, self.indices, self.weights))
        if self.weights is not None:  # they are summed
            object.__setattr__(self, "weights", trees.widen(self.weights))
        checks.key("key", self.key)
        checks.optional_positive("loss_scale", self.loss_scale)
        object.__setattr__(self, "loss_scale", jax.tree.map(jnp.asarray, self.loss_scale))

    @property
    def size(self) -> int | None:
        """The number of examples; None for a batch without arrays."""
        leaves = jax.tree.leaves(self.batch)
        return leaves[0].shape[0] if leaves else None

    @property
    def whole_weight(self) -> Any:
        """The sum of the weights, those not drawn included; None without weights."""
        if self.weight_before_draw is not None or self.weights is None:
            return self.weight_before_draw
        return self.weights.sum()

    @property
    def rows(self) -> Rows:
        """The examples themselves."""
        return Rows(self.batch, self.indices, self.weights)

    def losses_alone(self, params: Any, batch: Any) -> Any:
        """The loss function without auxiliary values."""
        return self._call(params, batch)[0]

    def value_and_grad(self, params: Any) -> tuple[Any, Any]:
        """The loss (or `(loss, aux)`) and its gradient at `params`, on this oracle's examples."""
        found = self.evaluate(params)
        return (found.loss, found.aux) if self.has_aux else found.loss, found.grads

    def evaluate(self, params: Any) -> Evaluation:
        """Loss, losses per example, aux and gradient at `params`; on a CPU at full speed anywhere."""
        oracle = self.without_padding()
        if self.num_slices == 1:
            return oracle._gradient(params)

        def on_slice(part):
            rows, number = part
            found = oracle.with_rows(rows).with_key(number)._gradient(params)
            return found._replace(losses=None, aux=None), (found.losses, found.aux)

        parts = oracle.split(self.num_slices)
        weights = None if parts.weights is None else parts.weights.sum(axis=1)
        shares = means.shares(weights, self.num_slices, params)
        mean, (losses, aux) = means.mean_by_scan(on_slice, shares, (parts, jnp.arange(self.num_slices)))
        if losses is not None:
            losses = sharding.join_rows(losses, like=jax.tree.leaves(self.batch)[0])
        return mean._replace(losses=losses, aux=aux)

    def evaluate_moved(self, perturbation: Any, params: Any) -> Evaluation:
        """The evaluation at the first point moved by `perturbation`, as far as `params` is visible."""
        there = self.evaluate(self.moved(perturbation, params))
        return there._replace(grads=trees.like_masked(params, there.grads))

    def moved(self, perturbation: Any, params: Any) -> Any:
        """The first point of the step, moved by `perturbation`."""
        full = params if self.params is None else self.params
        point = full if self.first is None or self.first.point is None else self.first.point
        return trees.add_perturbation(point, perturbation)

    def loss_at(self, params: Any) -> jax.Array:
        """The mean of the losses at `params`, `float[]`: one forward pass, to be differentiated."""
        losses = self._checked(self._call(self._as_given(params), self.batch)[0])
        return weighted_mean(losses, self.weights, params)

    def losses_at(self, params: Any) -> jax.Array:
        """One loss per example at `params`, `float[batch]`: one forward pass."""
        oracle = dataclasses.replace(self, needs_losses=True).without_padding()
        if self.num_slices == 1:
            return oracle._forward(params)

        def on_slice(part):
            rows, number = part
            return oracle.with_rows(rows).with_key(number)._forward(params)

        losses = lax.map(on_slice, (oracle.split(self.num_slices), jnp.arange(self.num_slices)))
        return sharding.join_rows(losses, like=jax.tree.leaves(self.batch)[0])

    def _forward(self, params: Any) -> jax.Array:
        def losses_of(params):
            return self._checked(self._call(self._as_given(params), self.batch)[0])

        losses = canonical_convolutions(losses_of)(params)
        return losses.astype(trees.accumulator_dtype(losses.dtype))

    def _as_given(self, params: Any) -> Any:
        """`params` with the structure of those that the user's function takes."""
        leaves, structure = jax.tree.flatten(params)  # new containers: a loss may write into a Flax module
        return jax.tree.unflatten(structure if self.structure is None else self.structure, leaves)

    def without_padding(self) -> "Oracle":
        """The oracle with a real row in the place of each row of padding."""
        if self.weights is None:
            return self
        return dataclasses.replace(self, batch=without_padding(self.batch, self.weights))

    def _gradient(self, params: Any) -> Evaluation:
        """The evaluation on all examples at once, whatever the content of padding."""
        leaves, treedef = jax.tree.flatten(jax.tree.map(jnp.asarray, params))
        differentiable = [trees.is_inexact(leaf) for leaf in leaves]
        floats = [x for x, inexact in zip(leaves, differentiable, strict=True) if inexact]

        def scaled_loss(floats):
            supply = iter(floats)
            point = [next(supply) if d else x for x, d in zip(leaves, differentiable, strict=True)]
            losses, aux = self._call(self._as_given(jax.tree.unflatten(treedef, point)), self.batch)
            losses = self._checked(losses)
            loss = weighted_mean(losses, self.weights, floats)
            scaled = loss if self.loss_scale is None else trees.times(self.loss_scale, loss)
            return scaled, (loss, losses, aux)

        gradient = canonical_convolutions(jax.grad(scaled_loss, has_aux=True))
        float_grads, (loss, losses, aux) = gradient(floats)
        if self.loss_scale is not None:
            float_grads = trees.divide(trees.widen(float_grads), self.loss_scale)
        supply = iter(float_grads)
        grads = [
            next(supply) if d else jnp.zeros_like(x) for x, d in zip(leaves, differentiable, strict=True)
        ]
        losses = losses if losses.ndim else None
        return Evaluation(jax.tree.unflatten(treedef, grads), loss, losses, aux)

    def _call(self, params: Any, batch: Any) -> tuple[Any, Any]:
        """What the loss function returns, as a pair."""
        returned = self.losses(params, batch) if self.key is None else self.losses(params, batch, self.key)
        return _pair(returned) if self.has_aux else (returned, None)

    def with_key(self, number: Any) -> "Oracle":
        """The oracle of another pass, draw or slice: its own key, where `losses` takes one."""
        if self.key is None:
            return self
        return dataclasses.replace(self, key=jax.random.fold_in(self.key, number))

    def with_rows(self, rows: Rows) -> "Oracle":
        """The same losses on other examples."""
        return dataclasses.replace(self, **rows._asdict())

    def take(self, positions: jax.Array) -> "Oracle":
        """The oracle of the drawn examples only.

        Args:
          positions: `int[strata, drawn]`, positions inside each of `strata` contiguous parts.
        """
        rows = jax.tree.map(lambda x: sharding.take_rows(x, positions), self.rows)
        fraction = self.fraction * positions.size / len(jax.tree.leaves(self.batch)[0])
        return dataclasses.replace(
            self.with_rows(rows), fraction=fraction, weight_before_draw=self.whole_weight
        )

    def split(self, num_slices: int) -> Rows:
        """The examples with a leading axis of `num_slices` contiguous slices."""
        if self.size is None or self.size % num_slices:
            raise ValueError(
                f"num_microbatches={num_slices} does not divide the batch of {self.size} examples: "
                f"choose a divisor, or pad the batch with examples of weight 0."
            )
        return jax.tree.map(lambda x: sharding.split_rows(x, num_slices), self.rows)

    def _checked(self, losses: Any) -> jax.Array:
        """The losses as an array of floats, one per example or their mean."""
        kind = type(losses).__name__
        if not isinstance(losses, jax.Array | np.ndarray | float | np.floating):
            repair = "pass has_aux=True, or return" if isinstance(losses, tuple) else "return"
            raise ValueError(f"losses returned a {kind}, no array: {repair} the losses alone, shape [batch].")
        losses = jnp.asarray(losses)
        if not jnp.issubdtype(losses.dtype, jnp.floating):
            raise ValueError(f"losses returned dtype {losses.dtype}: return real floats, shape [batch].")
        shape = jnp.shape(losses)
        if shape == () and not self.needs_losses and self.weights is None:
            return losses
        if shape == ():
            reason = "weights are given" if not self.needs_losses else "this method needs them"
            raise ValueError(
                f"losses returned a scalar where one loss per example is needed, because {reason}: "
                "return the losses of shape [batch] without taking their mean."
            )
        if len(shape) != 1 or (self.size is not None and shape[0] != self.size):
            raise ValueError(
                f"losses returned shape {list(shape)} for a batch of {self.size} examples: return "
                f"one loss per example, shape [{self.size}]; reduce further axes inside the "
                f"function, for example losses.mean(axis=-1), or over the valid positions alone, "
                f"losses.mean(axis=-1, where=mask)."
            )
        return losses


def weighted_mean(losses: jax.Array, weights: jax.Array | None, params: Any) -> jax.Array:
    """The mean over the examples; inside a `shard_map`, over those of all devices with these `params`."""
    losses = losses.astype(trees.accumulator_dtype(losses.dtype))
    weights = jnp.ones_like(losses) if weights is None else weights.astype(losses.dtype)
    kept = jnp.where(weights != 0, weights * losses, jnp.zeros_like(losses))
    sums = sharding.psum_over_replicas((jnp.sum(kept), jnp.sum(weights)), params)
    return sums[0] / jnp.where(sums[1] != 0, sums[1], jnp.ones_like(sums[1]))


def _pair(returned: Any) -> tuple[Any, Any]:
    if not isinstance(returned, tuple) or len(returned) != 2:
        raise ValueError(
            f"has_aux=True, but losses returned {type(returned).__name__}: return (losses, aux)."
        )
    return returned
