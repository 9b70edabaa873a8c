"""The user's loss function, as a step differentiates it: traced once, run again as it was."""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.interpreters import partial_eval as pe

from optax_sam.arithmetic import rowwise, sharding, trees
from optax_sam.engine import padding
from optax_sam.engine.aliases import Grads, Params
from optax_sam.engine.arrays import like_arrays
from optax_sam.engine.examples import Examples, Rows, size_of
from optax_sam.engine.gradient_function import check_own_parameters
from optax_sam.engine.held import Held, Traced
from optax_sam.engine.meter import unmetered
from optax_sam.engine.objective import Arguments, Evaluation, Layout, Objective
from optax_sam.engine.through_outputs import ThroughOutputs


class Inputs(NamedTuple):
    """All arrays that a loss depends on beside the parameters that are differentiated."""

    others: list[jax.Array]
    rows: Rows
    key: Any
    on_surrogate: Any
    arguments: Arguments


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

    @property
    def _kind(self) -> tuple[Any, ...]:
        """What tells traces apart beside shapes: the structure, and functions that `through` has put in."""
        functions = (
            (self.losses.outputs, self.losses.losses) if isinstance(self.losses, ThroughOutputs) else ()
        )
        return self.structure, *map(id, functions)  # a trace keeps them alive

    def evaluate(self, point: Params, examples: Examples, arguments: Arguments) -> Evaluation:
        layout, floats, inputs = self._inputs(point, examples, arguments)
        key, gradient = self._gradient(layout, examples)
        traced = self.held.trace(key, gradient, floats, inputs)
        inputs, axes = self._as_seen(traced, len(floats) + 1, point, inputs, examples)
        if sharding.is_inside_shard_map():
            outputs = len(traced.jaxpr.jaxpr.outvars)
            is_used = [n <= len(floats) for n in range(outputs)]  # the gradient and the loss
            check_own_parameters(pe.dce_jaxpr(traced.jaxpr.jaxpr, is_used)[0], point)
        grads, (loss, losses, aux) = self.held.call(key, gradient, floats, inputs)
        if inputs.rows.weights is not None:
            of_many, twice = self._longer(2, layout, examples, floats, inputs)
            axes = padding.with_axes_of_lengths(
                axes, aux, examples.size, lambda: jax.eval_shape(of_many, twice)[1]
            )
            aux = padding.cleared(aux, axes, inputs.rows.weights)
        if examples.is_part and not losses.ndim:
            self._check_reads_batch(traced, layout, examples, floats, inputs)
        grads = layout.merged(grads, [jnp.zeros_like(x) for x in inputs.others])
        return Evaluation(grads, loss, losses if losses.ndim else None, aux)

    def losses_at(self, point: Params, examples: Examples, arguments: Arguments) -> jax.Array:
        examples = examples.but(needs_losses=True)
        layout, floats, inputs = self._inputs(point, examples, arguments)

        def losses(floats, inputs):
            found = self._losses(layout, examples, floats, inputs)[0]
            return found.astype(trees.accumulator_dtype(found.dtype))

        key = ("losses", *self._kind, layout, examples.surrogate)
        traced = self.held.trace(key, losses, floats, inputs)
        inputs, _ = self._as_seen(traced, 0, point, inputs, examples)
        return self.held.call(key, losses, floats, inputs)

    def hessian_product(
        self, point: Params, vector: Params, examples: Examples, arguments: Arguments
    ) -> Grads:
        layout, floats, inputs = self._inputs(point, examples, arguments)
        key, gradient = self._gradient(layout, examples)
        traced = self.held.trace(key, gradient, floats, inputs)
        inputs, _ = self._as_seen(traced, len(floats) + 1, point, inputs, examples)

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
        """The loss function of parameters and one of the `Rows`, for what looks inside it.

        With a key, each has its number as `indices`, and a key of its own.
        """

        def losses(params, row):
            only = Examples(Rows(row.batch), key=examples.key, surrogate=examples.surrogate)
            only = only if row.indices is None else only.with_key_of_one(row.indices[0])
            layout, floats, inputs = self._inputs(params, only, arguments)

            def found(floats, inputs):
                return self._losses(layout, only, floats, inputs)[0]

            return self.held.call(("alone", *self._kind, layout, examples.surrogate), found, floats, inputs)

        return losses

    def through(
        self, outputs: ThroughOutputs, clean: Params, arguments: Arguments
    ) -> tuple["Losses", Arguments]:
        """The objective whose losses are `outputs`, with `clean` in front of the user's arguments."""
        leaves = jax.tree.leaves(clean)

        def rest(arrays):
            first = jax.tree.unflatten(self.structure, arrays[: len(leaves)])
            return first, *self.rest(arrays[len(leaves) :])

        given = arguments._replace(args=[*leaves, *arguments.args])
        return dataclasses.replace(self, losses=outputs, has_aux=False, rest=rest), given

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
    ) -> tuple[Layout, list[jax.Array], Inputs]:
        layout, rows = Layout.of(point), examples.without_padding(point).rows._replace(indices=None)
        inputs = Inputs(layout.others(point), rows, examples.key, examples.on_surrogate, arguments)
        return layout, layout.floats(point), inputs

    def _as_seen(
        self, traced: Traced, losses: int, point: Params, inputs: Inputs, examples: Examples
    ) -> tuple[Inputs, list[rowwise.Axis]]:
        """The inputs, in which padding stays as it is if examples meet, in the losses or in aux.

        Such a loss has a mask of its own, which copies of a real row would undo. That mask may be infinite or
        NaN. `losses` is their number among what was traced. Aux stands behind them. With the inputs come the
        axes of the examples in losses and aux, where there may be padding.
        """
        if inputs.rows.weights is None:
            return inputs, []
        floats, jaxpr = Layout.of(point).floats(point), traced.jaxpr.jaxpr
        is_row = _is_of_batch(floats, inputs)
        axes = rowwise.axes_of_outputs(jaxpr, [0 if row else None for row in is_row])[losses:]
        if rowwise.MEET not in axes:
            return inputs, axes
        forward = pe.dce_jaxpr(jaxpr, [n >= losses for n in range(len(jaxpr.outvars))], instantiate=True)[0]
        finite = examples.without_padding(point, they_meet=True).rows.batch
        batch = padding.with_signs(examples.rows.batch, finite, forward, len(floats), is_row)
        return inputs._replace(rows=inputs.rows._replace(batch=batch)), axes

    def _gradient(self, layout: Layout, examples: Examples) -> tuple[Any, Callable[..., Any]]:
        """`(floats, inputs) -> grads, (loss, losses, aux)`, and what it depends on beside their types."""

        def scaled_loss(floats, inputs):
            losses, aux = self._losses(layout, examples, floats, inputs)
            weights, emphasis = inputs.rows.weights, inputs.rows.emphasis
            mean = functools.partial(weighted_mean, params=floats, by_size=examples.by_size)
            loss = emphasized = mean(losses, weights)
            if emphasis is not None:
                chances = emphasis if weights is None else emphasis * weights.astype(emphasis.dtype)
                emphasized = mean(losses, chances)
            scale = inputs.arguments.loss_scale
            return emphasized if scale is None else trees.times(scale, emphasized), (loss, losses, aux)

        def gradient(floats, inputs):
            grads, found = jax.grad(scaled_loss, has_aux=True)(floats, inputs)
            scale = inputs.arguments.loss_scale
            return grads if scale is None else trees.divide(trees.widen(grads), scale), found

        kind = examples.surrogate, examples.needs_losses, examples.by_size
        return ("gradient", *self._kind, layout, *kind), gradient

    def _losses(self, layout: Layout, examples: Examples, floats: Any, inputs: Inputs) -> tuple[Any, Any]:
        """The losses as floats, and aux."""
        params = layout.merged(floats, inputs.others)
        batch, args = inputs.rows.batch, self.rest(inputs.arguments.args)
        args = args if inputs.key is None else (*args, inputs.key)

        def called(losses):
            # New containers: a loss may write into a Flax module, or into its batch.
            given = jax.tree.unflatten(self.structure, jax.tree.leaves(params))
            own, rest = trees.anew((batch, args))
            check_signature(losses, given, own, rest, has_key=inputs.key is not None)
            try:
                with unmetered():
                    return self._pair(losses(given, own, *rest))
            except Exception as error:
                if examples.is_part:
                    error.add_note(
                        f"optax_sam: this step calls losses with parts of the batch, here {size_of(batch)} "
                        f"examples. What stands behind the batch, or is closed over, comes whole each time. "
                        f"Pass all arrays of examples as one batch: train_step(params, opt_state, (x, y))."
                    )
                raise

        if examples.surrogate is None:
            losses, aux = called(self.losses)
        elif inputs.on_surrogate is None:
            losses, aux = called(examples.surrogate.function)
        else:
            losses, aux = lax.cond(
                inputs.on_surrogate, lambda: called(examples.surrogate.function), lambda: called(self.losses)
            )
        needed = "weights are given" if inputs.rows.weights is not None else None
        needed = "this method needs them" if examples.needs_losses else needed
        return checked(losses, size_of(batch), needed), aux

    def _check_reads_batch(
        self, traced: Traced, layout: Layout, examples: Examples, floats: Any, inputs: Inputs
    ) -> None:
        """Refuses a scalar loss that looks at no example, where only a part of the examples is asked for."""
        is_loss = [n == len(floats) for n in range(len(traced.jaxpr.jaxpr.outvars))]  # behind the gradient
        used = pe.dce_jaxpr(traced.jaxpr.jaxpr, is_loss)[1]
        if any(u and b for u, b in zip(used, _is_of_batch(floats, inputs), strict=True)):
            return
        if any(traced is seen for seen in self.held.looked_at):
            return
        self.held.looked_at.append(traced)

        def equations(times):
            """What a loss of so many times the examples computes."""
            of_many, batch = self._longer(times, layout, examples, floats, inputs)
            closed = jax.make_jaxpr(lambda batch: of_many(batch)[0])(batch)
            return str(pe.dce_jaxpr(closed.jaxpr, [True])[0])

        if equations(1) == equations(2):  # else the loss looks at the number of examples
            raise ValueError(
                "losses reads nothing of batch, but this step takes gradients of parts of it. Every part "
                "would be the same: take the examples from the argument batch, not from what losses closes "
                "over."
            )

    def _longer(
        self, times: int, layout: Layout, examples: Examples, floats: Any, inputs: Inputs
    ) -> tuple[Callable[[Any], tuple[Any, Any]], Any]:
        """Losses and aux of a batch, and the shapes of so many times the examples."""

        def losses(batch):
            return self._losses(layout, examples, floats, inputs._replace(rows=Rows(batch)))

        def longer(x):
            return jax.ShapeDtypeStruct((times * x.shape[0], *x.shape[1:]), x.dtype)

        return losses, jax.tree.map(longer, inputs.rows.batch)

    def _pair(self, returned: Any) -> tuple[Any, Any]:
        if not self.has_aux:
            return returned, None
        if not isinstance(returned, tuple) or len(returned) != 2:
            raise ValueError(
                f"has_aux=True, but losses returned {type(returned).__name__}: return (losses, aux)."
            )
        like_arrays("aux", returned[1])
        return returned


def check_signature(
    losses: Callable[..., Any], params: Params, batch: Any, args: tuple[Any, ...], has_key: bool
) -> None:
    """Refuses a loss function that takes other arguments than it is given, or its key elsewhere."""
    try:
        signature = inspect.signature(losses)
    except (TypeError, ValueError):  # it tells none
        return
    try:
        signature.bind(params, batch, *args)
    except TypeError as error:
        called = ", ".join(("params", "batch", *(f"args[{n}]" for n in range(len(args)))))
        raise TypeError(
            f"losses is called as losses({called}), but has the arguments {signature}: {error}. "
            "Put all arrays of the batch into one pytree. With the batch (x, y), pass "
            "lambda params, batch: losses(params, *batch). What has no batch axis goes behind the batch. "
            "For a loss of the parameters alone, pass the batch ()."
        ) from None
    names = list(signature.parameters)
    place = names[len(args) + 1] if has_key and len(args) + 1 < len(names) else ""
    of_keys = [name for name in names if "key" in name.lower() or "rng" in name.lower()]
    if not place or place in of_keys:
        return
    others, default = set(of_keys) & set(names[len(args) + 2 :]), signature.parameters[place].default
    if others or not (default is None or default is inspect.Parameter.empty):
        raise ValueError(
            f"key= comes behind the further arguments, and would be {place} of the losses{signature}: pass "
            f"what stands before {of_keys[0] if others else 'the key'} too, step(params, opt_state, batch, "
            f"{place}, ..., key=key)."
        )


def _is_of_batch(floats: Any, inputs: Inputs) -> list[bool]:
    """Of all leaves of what a trace is given, which are the batch's."""
    neither, rest = jax.tree.map(lambda _: False, (floats, inputs))
    batch = jax.tree.map(lambda _: True, inputs.rows.batch)
    return jax.tree.leaves((neither, rest._replace(rows=rest.rows._replace(batch=batch))))


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
            "return the losses of shape [batch] without taking their mean, for example "
            "return jnp.square(predictions - targets), not jnp.mean(jnp.square(predictions - targets))."
        )
    if len(shape) != 1 or (size is not None and shape[0] != size):
        raise ValueError(
            f"losses returned shape {list(shape)} for a batch of {size} examples: return "
            f"one loss per example, shape [{size}]. Reduce further axes inside the "
            f"function, for example losses.mean(axis=-1), or over the valid positions alone, "
            f"losses.mean(axis=-1, where=mask)."
        )
    return losses


def weighted_mean(
    losses: jax.Array, weights: jax.Array | None, params: Any, by_size: bool = False
) -> jax.Array:
    """The mean over the examples; inside a `shard_map`, over those of all devices with these `params`.

    With `by_size`, the sum is divided by that of the weights' sizes.
    """
    losses = losses.astype(trees.accumulator_dtype(losses.dtype))
    if weights is None:  # ones would be added up, and sent
        total, number = sharding.psum_over_replicas((jnp.sum(losses), float(losses.size)), params)
        return total / number
    weights = sharding.split_like(weights.astype(losses.dtype), losses)
    kept = jnp.where(weights != 0, weights * losses, jnp.zeros_like(losses))
    sizes = jnp.abs(weights) if by_size else weights
    sums = sharding.psum_over_replicas((jnp.sum(kept), jnp.sum(sizes)), params)
    return sums[0] / jnp.where(sums[1] != 0, sums[1], jnp.ones_like(sums[1]))


def mean_loss(losses: Callable[[Params, Any], Any], params: Params, batch: Any) -> jax.Array:
    """The mean of the losses of a batch, `float[]`: one forward pass, to be differentiated by the caller."""
    return weighted_mean(checked(losses(params, batch), size_of(batch), None), None, params)
