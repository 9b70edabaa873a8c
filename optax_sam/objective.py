"""What a step differentiates: the user's losses of examples, or the user's own gradient function."""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.interpreters import partial_eval as pe

from optax_sam import sharding, trees
from optax_sam.aliases import Grads, Params
from optax_sam.examples import Examples, Rows, size_of
from optax_sam.held import Held
from optax_sam.jaxprs import canonical_convolutions


class Evaluation(NamedTuple):
    """What one evaluation at a point gave.

    Attributes:
      grads: a tree like the parameters.
      loss: the weighted mean of the losses, `float[]`; None where only a gradient function is known.
      losses: one loss per example, `float[batch]`; None where the loss function returns their mean.
      aux: what the loss function returned beside the losses.
      norm: `float[]`, the L2 norm of `grads`; None before it is judged.
    """

    grads: Grads
    loss: Any = None
    losses: Any = None
    aux: Any = None
    norm: Any = None


class Arguments(NamedTuple):
    """What every pass of a step is given, whole.

    Attributes:
      args: the arrays of the user's further arguments.
      loss_scale: `float[]`, or None.
    """

    args: list[jax.Array]
    loss_scale: Any = None


class Inputs(NamedTuple):
    """All arrays that a loss depends on beside the parameters that are differentiated."""

    others: list[jax.Array]
    rows: Rows
    key: Any
    on_surrogate: Any
    arguments: Arguments


class Objective(abc.ABC):
    """What can be asked at a point; a step asks through `StepOracle`, which counts and judges."""

    @abc.abstractmethod
    def evaluate(self, point: Params, examples: Examples, arguments: Arguments) -> Evaluation:
        """The gradient at `point`, of all examples at once."""

    @abc.abstractmethod
    def losses_at(self, point: Params, examples: Examples, arguments: Arguments) -> jax.Array:
        """One loss per example, `float[batch]`."""

    @abc.abstractmethod
    def hessian_product(
        self, point: Params, vector: Params, examples: Examples, arguments: Arguments
    ) -> Grads:
        """The derivative of the gradient at `point` along `vector`."""


@dataclasses.dataclass(eq=False)
class Losses(Objective):
    """A loss function, traced once for all arguments of the same types.

    Attributes:
      losses: `losses(params, batch, *args)` or `losses(params, batch, *args, key)`.
      has_aux: whether it returns a pair.
      rest: rebuilds `args` from their arrays.
      structure: of the parameters as the user has them.
      held: the traces.
    """

    losses: Callable[..., Any]
    has_aux: bool
    rest: Callable[[list[jax.Array]], tuple[Any, ...]]
    structure: Any = None
    held: Held = dataclasses.field(default_factory=Held)

    def evaluate(self, point: Params, examples: Examples, arguments: Arguments) -> Evaluation:
        layout, floats, inputs = self._inputs(point, examples, arguments)
        key, gradient = self._gradient(layout, examples)
        grads, (loss, losses, aux) = self.held.call(key, gradient, floats, inputs)
        if examples.is_part and not losses.ndim:
            self._check_reads_batch(layout, examples, floats, inputs)
        grads = layout.merged(grads, [jnp.zeros_like(x) for x in inputs.others])
        return Evaluation(grads, loss, losses if losses.ndim else None, aux)

    def losses_at(self, point: Params, examples: Examples, arguments: Arguments) -> jax.Array:
        examples = examples.but(needs_losses=True)
        layout, floats, inputs = self._inputs(point, examples, arguments)

        def losses(floats, inputs):
            found = self._losses(layout, examples, floats, inputs)[0]
            return found.astype(trees.accumulator_dtype(found.dtype))

        return self.held.call(("losses", self.structure, layout, examples.surrogate), losses, floats, inputs)

    def hessian_product(
        self, point: Params, vector: Params, examples: Examples, arguments: Arguments
    ) -> Grads:
        layout, floats, inputs = self._inputs(point, examples, arguments)
        key, gradient = self._gradient(layout, examples)
        traced = self.held.trace(key, gradient, floats, inputs)

        def product(constants, floats, tangents, inputs):
            run = jex.jaxpr_as_fun(jex.ClosedJaxpr(traced.jaxpr.jaxpr, constants))

            def again(floats):
                return jax.tree.unflatten(traced.treedef, run(*jax.tree.leaves((floats, inputs))))[0]

            return jax.jvp(again, (floats,), (tangents,))[1]

        constants = list(traced.jaxpr.consts)
        tangents = [v.astype(x.dtype) for v, x in zip(layout.floats(vector), floats, strict=True)]
        found = self.held.call(("product", *key), product, constants, floats, tangents, inputs)
        return layout.merged(found, [jnp.zeros_like(x) for x in inputs.others])

    def alone(self, examples: Examples, arguments: Arguments) -> Callable[[Params, Any], jax.Array]:
        """The loss function of parameters and a batch, for what looks inside it."""

        def losses(params, batch):
            only = Examples(Rows(batch), key=examples.key, surrogate=examples.surrogate)
            layout, floats, inputs = self._inputs(params, only, arguments)

            def found(floats, inputs):
                return self._losses(layout, only, floats, inputs)[0]

            return self.held.call(
                ("alone", self.structure, layout, examples.surrogate), found, floats, inputs
            )

        return losses

    def closed_over(
        self, point: Params, examples: Examples, arguments: Arguments, num_slices: int
    ) -> list[Any]:
        """The arrays that the loss function closes over, with the shapes of one slice of the examples."""

        def of_slice(x):
            return jax.ShapeDtypeStruct((x.shape[0] // num_slices, *x.shape[1:]), x.dtype)

        layout, rows = Layout.of(point), jax.tree.map(of_slice, examples.rows._replace(indices=None))
        whole = layout.others(point), examples.key, None, arguments
        others, key, _, arguments = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), whole)
        floats = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in layout.floats(point)]

        def losses(floats, inputs):
            return self._losses(layout, examples, floats, inputs)[0]

        return jax.make_jaxpr(losses)(floats, Inputs(others, rows, key, None, arguments)).consts

    def _inputs(
        self, point: Params, examples: Examples, arguments: Arguments
    ) -> tuple["Layout", list[jax.Array], Inputs]:
        layout, rows = Layout.of(point), examples.without_padding().rows._replace(indices=None)
        inputs = Inputs(layout.others(point), rows, examples.key, examples.on_surrogate, arguments)
        return layout, layout.floats(point), inputs

    def _gradient(self, layout: "Layout", examples: Examples) -> tuple[Any, Callable[..., Any]]:
        """`(floats, inputs) -> grads, (loss, losses, aux)`, and what it depends on beside their types."""

        def scaled_loss(floats, inputs):
            losses, aux = self._losses(layout, examples, floats, inputs)
            weights, emphasis = inputs.rows.weights, inputs.rows.emphasis
            loss = emphasized = weighted_mean(losses, weights, floats)
            if emphasis is not None:
                chances = emphasis if weights is None else emphasis * weights.astype(emphasis.dtype)
                emphasized = weighted_mean(losses, chances, floats)
            scale = inputs.arguments.loss_scale
            return emphasized if scale is None else trees.times(scale, emphasized), (loss, losses, aux)

        def gradient(floats, inputs):
            grads, found = jax.grad(scaled_loss, has_aux=True)(floats, inputs)
            scale = inputs.arguments.loss_scale
            return grads if scale is None else trees.divide(trees.widen(grads), scale), found

        return ("gradient", self.structure, layout, examples.surrogate, examples.needs_losses), gradient

    def _losses(self, layout: "Layout", examples: Examples, floats: Any, inputs: Inputs) -> tuple[Any, Any]:
        """The losses as floats, and aux."""
        params = layout.merged(floats, inputs.others)
        batch, args = inputs.rows.batch, self.rest(inputs.arguments.args)
        args = args if inputs.key is None else (*args, inputs.key)

        def called(losses):
            # New containers: a loss may write into a Flax module.
            given = jax.tree.unflatten(self.structure, jax.tree.leaves(params))
            return self._pair(losses(given, batch, *args))

        if examples.surrogate is None:
            losses, aux = called(self.losses)
        elif inputs.on_surrogate is None:
            losses, aux = called(examples.surrogate)
        else:
            losses, aux = lax.cond(
                inputs.on_surrogate, lambda: called(examples.surrogate), lambda: called(self.losses)
            )
        needed = "weights are given" if inputs.rows.weights is not None else None
        needed = "this method needs them" if examples.needs_losses else needed
        return checked(losses, size_of(batch), needed), aux

    def _check_reads_batch(self, layout: "Layout", examples: Examples, floats: Any, inputs: Inputs) -> None:
        """Refuses a scalar loss that looks at no example, where only a part of the examples is asked for."""

        def needed(times):
            """The equations that a loss of so many times the examples needs, and whether of the batch."""

            def loss(batch):
                return self._losses(layout, examples, floats, inputs._replace(rows=Rows(batch)))[0]

            def longer(x):
                return jax.ShapeDtypeStruct((times * x.shape[0], *x.shape[1:]), x.dtype)

            closed = jax.make_jaxpr(loss)(jax.tree.map(longer, inputs.rows.batch))
            jaxpr, reads = pe.dce_jaxpr(closed.jaxpr, [True])
            return str(jaxpr), any(reads)

        equations, reads = needed(1)
        if not reads and needed(2)[0] == equations:  # else the loss looks at the number of examples
            raise ValueError(
                "losses reads nothing of batch, but this step takes gradients of parts of it, and every part "
                "would be the same: take the examples from the argument batch, not from what losses closes "
                "over."
            )

    def _pair(self, returned: Any) -> tuple[Any, Any]:
        if not self.has_aux:
            return returned, None
        if not isinstance(returned, tuple) or len(returned) != 2:
            raise ValueError(
                f"has_aux=True, but losses returned {type(returned).__name__}: return (losses, aux)."
            )
        return returned


@dataclasses.dataclass(eq=False)
class GradientFunction(Objective):
    """The narrower door: a gradient function of the parameters, without losses or examples."""

    grad_fn: Callable[[Params], Grads]
    structure: Any

    def evaluate(self, point: Params, examples: Examples, arguments: Arguments) -> Evaluation:
        del examples, arguments
        return Evaluation(canonical_convolutions(self._gradient)(point))

    def losses_at(self, point: Params, examples: Examples, arguments: Arguments) -> jax.Array:
        del point, examples, arguments
        raise ValueError(ONLY_GRAD_FN)

    def hessian_product(
        self, point: Params, vector: Params, examples: Examples, arguments: Arguments
    ) -> Grads:
        del examples, arguments
        layout = Layout.of(point)
        floats = layout.floats(point)

        def along(floats, tangents):
            def again(floats):
                return layout.floats(self._gradient(layout.merged(floats, layout.others(point))))

            return jax.jvp(again, (floats,), (tangents,))[1]

        tangents = [v.astype(x.dtype) for v, x in zip(layout.floats(vector), floats, strict=True)]
        found = canonical_convolutions(along)(floats, tangents)
        return layout.merged(found, [jnp.zeros_like(x) for x in layout.others(point)])

    def _gradient(self, point: Params) -> Grads:
        params = jax.tree.unflatten(self.structure, jax.tree.leaves(point))
        return like_params("grad_fn(params)", self.grad_fn(params), params)


ONLY_GRAD_FN = (
    "grad_fn is given, but this method needs examples, losses or a start of its own: "
    "pass the oracle of value_and_grad, or oracle=optax_sam.Oracle(losses, batch)."
)


class Layout(NamedTuple):
    """Which leaves of the parameters are differentiated.

    Attributes:
      treedef: of the parameters.
      is_float: of each leaf.
    """

    treedef: Any
    is_float: tuple[bool, ...]

    @classmethod
    def of(cls, params: Params) -> "Layout":
        leaves, treedef = jax.tree.flatten(params)
        return cls(treedef, tuple(bool(trees.is_inexact(x)) for x in leaves))

    def floats(self, tree: Any) -> list[jax.Array]:
        """The leaves that are differentiated."""
        return [x for x, is_float in zip(jax.tree.leaves(tree), self.is_float, strict=True) if is_float]

    def others(self, tree: Any) -> list[jax.Array]:
        """All other leaves."""
        return [x for x, is_float in zip(jax.tree.leaves(tree), self.is_float, strict=True) if not is_float]

    def merged(self, floats: list[Any], others: list[Any]) -> Any:
        """The tree of both."""
        supply, rest = iter(floats), iter(others)
        return self.treedef.unflatten([next(supply if f else rest) for f in self.is_float])


def checked(losses: Any, size: int | None, needed: str | None) -> jax.Array:
    """The losses as an array of floats, one per example or their mean; refuses all else.

    Args:
      losses: what the loss function returned.
      size: the number of examples, or None.
      needed: why one loss per example is needed, or None.
    """
    kind = type(losses).__name__
    if not isinstance(losses, jax.Array | np.ndarray | float | np.floating):
        repair = "pass has_aux=True, or return" if isinstance(losses, tuple) else "return"
        raise ValueError(f"losses returned a {kind}, no array: {repair} the losses alone, shape [batch].")
    losses = jnp.asarray(losses)
    if not jnp.issubdtype(losses.dtype, jnp.floating):
        raise ValueError(f"losses returned dtype {losses.dtype}: return real floats, shape [batch].")
    shape = jnp.shape(losses)
    if shape == () and needed is None:
        return losses
    if shape == ():
        raise ValueError(
            f"losses returned a scalar where one loss per example is needed, because {needed}: "
            "return the losses of shape [batch] without taking their mean."
        )
    if len(shape) != 1 or (size is not None and shape[0] != size):
        raise ValueError(
            f"losses returned shape {list(shape)} for a batch of {size} examples: return "
            f"one loss per example, shape [{size}]; reduce further axes inside the "
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


def mean_loss(losses: Callable[[Params, Any], Any], params: Params, batch: Any) -> jax.Array:
    """The mean of the losses of a batch, `float[]`: one forward pass, to be differentiated by the caller."""
    return weighted_mean(checked(losses(params, batch), size_of(batch), None), None, params)


def like_params(name: str, grads: Any, params: Params) -> Grads:
    """The gradient as arrays, zeros for integer leaves; refuses what is no tree like the parameters."""
    grads, params = trees.plain(grads), trees.plain(params)
    if (got := jax.tree.structure(grads)) != (wanted := jax.tree.structure(params)):
        raise ValueError(
            f"{name} has the tree structure {got}, the parameters have {wanted}: pass a gradient "
            f"tree like params, without auxiliary values."
        )
    for (path, g), p in zip(jax.tree.leaves_with_path(grads), jax.tree.leaves(params), strict=True):
        if jnp.shape(g) != jnp.shape(p):
            raise ValueError(
                f"{name}{jax.tree_util.keystr(path)} has shape {jnp.shape(g)}, the parameter has "
                f"{jnp.shape(p)}: pass the gradient with respect to params."
            )
    # The gradient of an integer leaf has no arithmetic in JAX (float0).
    return jax.tree.map(
        lambda g, p: jnp.asarray(g) if trees.is_inexact(p) else jnp.zeros_like(p), grads, params
    )
