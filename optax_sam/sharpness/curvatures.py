"""Loss functions that say which matrix their curvature is: every measurement takes them."""

import abc
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optax_sam.arithmetic import keys, trees
from optax_sam.engine import checks
from optax_sam.engine.examples import size_of
from optax_sam.engine.losses import checked, mean_loss
from optax_sam.sharpness.problem import Floats, Point, alone, gradient_at


class Curvature(abc.ABC):
    """A loss function that brings a matrix of its own in place of the Hessian."""

    @abc.abstractmethod
    def product(self, point: Point, batch: Any, number: Any, vector: Floats) -> Floats:
        """The matrix of a batch times a vector; `number` is that of the batch."""

    @abc.abstractmethod
    def wrapped(self, wrap: Callable[[Any], Any]) -> Any:
        """The same with its function of the parameters wrapped."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class GaussNewton(Curvature):
    """A loss function in two parts, whose curvature is that of the Gauss-Newton matrix.

    `G = mean(J^T H_l J)` with `J` the derivative of the model's outputs by the parameters and `H_l` the
    Hessian of the loss by the outputs. It has no negative eigenvalues where the loss is convex in the
    outputs, and for cross entropy it is the Fisher information matrix.

    Pass it in place of a `loss_fn` to any measurement here. The measurement is then that of `G`.

    Args:
      outputs: `outputs(params, batch)`, a tree of float arrays, such as logits.
      losses: `losses(outputs, batch)`, one loss per example, shape `[batch]`, or their mean.

    Example:
      >>> import jax.numpy as jnp
      >>> from optax_sam import sharpness
      >>> line = sharpness.GaussNewton(lambda w, x: x @ w, lambda y, x: y**2)
      >>> batch = jnp.array([[1.0, 0.0], [0.0, 2.0]])
      >>> print(sharpness.hessian_vector_product(line, jnp.ones(2), batch, jnp.ones(2)))
      [1. 4.]
    """

    outputs: Callable[[Any, Any], Any]
    losses: Callable[[Any, Any], Any]

    def __call__(self, params: Any, batch: Any) -> Any:
        """The losses of a batch."""
        return self.losses(self.outputs(params, batch), batch)

    def wrapped(self, wrap: Callable[[Any], Any]) -> "GaussNewton":
        return dataclasses.replace(self, outputs=wrap(self.outputs))

    def product(self, point: Point, batch: Any, number: Any, vector: Floats) -> Floats:
        del number

        outputs_at = OutputsAt(self.outputs, point, batch)
        outputs, change = jax.jvp(outputs_at, (point.floats,), (tangent(vector, point),))
        losses, seen = functools.partial(alone, self.losses), outputs_at.seen
        gradient = jax.grad(lambda outputs: mean_loss(losses, outputs, seen))
        bent = jax.jvp(gradient, (outputs,), (change,))[1]
        return trees.widen(jax.vjp(outputs_at, point.floats)[1](bent)[0])


class OutputsAt:
    """A network's outputs as a function of the float leaves.

    Attributes:
      seen: the batch as the last call has left it: what the outputs write into it, the losses may read.
    """

    def __init__(self, outputs: Callable[[Any, Any], Any], point: Point, batch: Any):
        self.outputs, self.point, self.batch = outputs, point, batch
        self.seen = batch

    def __call__(self, floats: Floats) -> Any:
        self.seen = trees.anew(self.batch)
        return self.outputs(self.point.params(floats), self.seen)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class EmpiricalFisher(Curvature):
    """A loss function whose curvature is the second moment of the examples' gradients.

    `F = mean(g_i g_i^T)` over the examples, at the labels that they have. It has no negative eigenvalues, and
    its trace is the mean of `||g_i||^2`. Near a good fit it goes to zero with the gradients, but the Hessian
    does not. It is no approximation of the Hessian.

    Pass it in place of a `loss_fn` to any measurement here.

    Args:
      loss_fn: `loss_fn(params, batch)`, one loss per example, shape `[batch]`. No example's loss may depend
        on the others.

    Example:
      >>> import jax.numpy as jnp
      >>> from optax_sam import sharpness
      >>> fisher = sharpness.EmpiricalFisher(lambda w, x: x @ w)
      >>> batch = jnp.array([[1.0, 0.0], [0.0, 2.0]])
      >>> print(sharpness.trace(fisher, jnp.ones(2), batch))
      2.5 ± 0 (4 products)
    """

    loss_fn: Callable[[Any, Any], Any]

    def __call__(self, params: Any, batch: Any) -> Any:
        """The losses of a batch."""
        return self.loss_fn(params, batch)

    def wrapped(self, wrap: Callable[[Any], Any]) -> "EmpiricalFisher":
        return EmpiricalFisher(wrap(self.loss_fn))

    def product(self, point: Point, batch: Any, number: Any, vector: Floats) -> Floats:
        del number
        size = size_of(batch) or 0

        def losses_at(floats):
            losses = alone(self.loss_fn, point.params(floats), batch)
            return checked(losses, size, "EmpiricalFisher is made of single examples' gradients")

        _, along = jax.jvp(losses_at, (point.floats,), (tangent(vector, point),))
        return pulled_back(losses_at, point, along, size)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Fisher(Curvature):
    """A loss function in two parts, whose curvature is the Fisher information matrix with drawn labels.

    `F = mean(E_y[g_i(y) g_i(y)^T])` over the examples, with labels `y` drawn from what the model predicts,
    `num_draws` for each example. For cross entropy, and for squares with unit variance, the expectation is
    the Gauss-Newton matrix. Take `GaussNewton` there, which needs no draws. This class is for other
    likelihoods.

    Pass it in place of a `loss_fn` to any measurement here. Each batch draws its own labels, by its number.
    The labels are the same in all products. Each pass must therefore give the same batches in the same order.

    Args:
      outputs: `outputs(params, batch)`, a tree of float arrays with the examples first, such as logits. No
        example's outputs may depend on the others.
      losses: `losses(outputs, batch)`, minus the logarithm of each example's likelihood, shape `[batch]`.
      draw: `draw(key, outputs, batch)`, the batch with labels drawn from the model, such as
        `batch | {"label": jax.random.categorical(key, outputs)}`.
      num_draws: labels for each example.
      seed: of the labels.
    """

    outputs: Callable[[Any, Any], Any]
    losses: Callable[[Any, Any], Any]
    draw: Callable[[jax.Array, Any, Any], Any]
    num_draws: int = dataclasses.field(default=1, metadata={"static": True})
    seed: int = dataclasses.field(default=0, metadata={"static": True})

    def __call__(self, params: Any, batch: Any) -> Any:
        """The losses of a batch, at its own labels."""
        return self.losses(self.outputs(params, batch), batch)

    def wrapped(self, wrap: Callable[[Any], Any]) -> "Fisher":
        return dataclasses.replace(self, outputs=wrap(self.outputs))

    def product(self, point: Point, batch: Any, number: Any, vector: Floats) -> Floats:
        checks.integer("num_draws", self.num_draws, low=1)
        checks.seed(self.seed)
        size = size_of(batch) or 0

        outputs_at = OutputsAt(self.outputs, point, batch)
        outputs, change = jax.jvp(outputs_at, (point.floats,), (tangent(vector, point),))
        seen = outputs_at.seen
        if any(x.ndim < 1 or x.shape[0] != size for x in jax.tree.leaves(outputs)):
            shapes = jax.tree.map(jnp.shape, outputs)
            raise ValueError(
                f"outputs returned the shapes {shapes} for {size} examples: return the examples on the first "
                f"axis."
            )
        key = jax.random.fold_in(keys.from_seed(self.seed, "Fisher"), number)

        def one_more(nth, bent):
            drawn = self.draw(jax.random.fold_in(key, nth), *trees.anew((outputs, seen)))
            return jax.tree.map(jnp.add, bent, self._bent(outputs, change, drawn, size))

        bent = jax.tree.map(jnp.zeros_like, trees.widen(outputs))
        bent = jax.lax.fori_loop(0, self.num_draws, one_more, bent)
        return pulled_back(outputs_at, point, bent, size * self.num_draws)

    def _bent(self, outputs: Any, change: Any, drawn: Any, size: int) -> Any:
        """Each example's gradient by its outputs, times its inner product with their change."""

        def total(outputs):
            losses = alone(self.losses, outputs, drawn)
            losses = checked(losses, size, "Fisher is made of single examples' gradients")
            return jnp.sum(trees.widen(losses))

        gradient, change = trees.widen((jax.grad(total)(outputs), change))

        def along(g, c):
            return jnp.sum((g * c).reshape(g.shape[0], -1), axis=1)

        inner = functools.reduce(jnp.add, jax.tree.leaves(jax.tree.map(along, gradient, change)))
        return jax.tree.map(lambda g: g * inner.reshape([-1] + [1] * (g.ndim - 1)), gradient)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FiniteDifferences(Curvature):
    """A loss function whose Hessian products are differences of gradients.

    `H v = (g(w + h v) - g(w - h v)) / (2 h)` with `h = step (1 + ||w||) / ||v||`. It is for losses that have
    a gradient and no second derivative. These are kernels with a derivative rule of their own, whose gradient
    JAX cannot differentiate. They are also straight-through estimators, whose gradient JAX differentiates to
    something else.

    Pass it in place of a `loss_fn` to any measurement here. Trust it where `finite_difference_error` is below
    0.01. The error is larger where the loss has kinks within `h` (a network of ReLUs), and in bfloat16 and
    float16. Eigenvalues are known no better than to this error, whatever their residuals say. Ask for a
    `tolerance` above it.

    Args:
      loss_fn: `loss_fn(params, batch)`. See `hessian_vector_product`.
      step: length of `h v` as a part of `1 + ||w||`. By default the third root of the rounding, 0.005 in
        float32.

    Example:
      >>> import jax.numpy as jnp
      >>> from optax_sam import sharpness
      >>> loss_fn = sharpness.FiniteDifferences(lambda w, scale: scale @ w**2)
      >>> found = sharpness.hessian_vector_product(loss_fn, jnp.ones(2), jnp.array([[1.0, 2.0]]), jnp.ones(2))
      >>> print(found.round(2))
      [2. 4.]
    """

    loss_fn: Callable[[Any, Any], Any]
    step: float | None = dataclasses.field(default=None, metadata={"static": True})

    def __call__(self, params: Any, batch: Any) -> Any:
        """The losses of a batch."""
        return self.loss_fn(params, batch)

    def wrapped(self, wrap: Callable[[Any], Any]) -> "FiniteDifferences":
        return dataclasses.replace(self, loss_fn=wrap(self.loss_fn))

    def product(self, point: Point, batch: Any, number: Any, vector: Floats) -> Floats:
        del number
        checks.optional_positive("step", self.step)
        length = trees.norm(vector)
        distance = self.relative_step(point) * (1 + trees.norm(point.floats))
        unit = trees.divide(vector, length)

        def gradient(sign):
            moved = point.moved([trees.times(sign * distance, u) for u in unit])
            return gradient_at(self.loss_fn, moved, batch)

        return [
            trees.times(length / (2 * distance), x - y)
            for x, y in zip(gradient(1.0), gradient(-1.0), strict=True)
        ]

    def relative_step(self, point: Point) -> float:
        """The step, or the default for these parameters."""
        rounding = max(float(jnp.finfo(x.dtype).eps) for x in point.floats)
        return float(np.cbrt(rounding)) if self.step is None else float(self.step)


def pulled_back(function: Callable[[Floats], Any], point: Point, cotangent: Any, count: int) -> Floats:
    """`J^T c / count`, `J` the derivative of a function of the floats.

    The outputs may be in half precision, where `c / count` vanishes or a sum of `c` overflows. So `c` comes
    in units in which its entries add up to a few thousand at most.
    """
    wide = trees.widen(cotangent)
    sizes = [jnp.abs(x) for x in jax.tree.leaves(wide)]
    largest = functools.reduce(jnp.maximum, [jnp.max(x, initial=0) for x in sizes])
    safe = jnp.where(largest > 0, largest, jnp.ones_like(largest))
    unit = safe * jnp.maximum(1, sum(jnp.sum(x / safe) for x in sizes) / 4096)
    outputs, pull = jax.vjp(function, point.floats)
    given = jax.tree.map(lambda x, like: (x / unit.astype(x.dtype)).astype(like.dtype), wide, outputs)
    found = trees.widen(pull(given)[0])
    return [trees.times(unit / count, x) for x in found]


def tangent(vector: Floats, point: Point) -> Floats:
    """A vector in the dtypes of the parameters."""
    return [v.astype(w.dtype) for v, w in zip(vector, point.floats, strict=True)]
