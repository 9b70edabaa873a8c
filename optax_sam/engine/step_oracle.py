"""How a step asks: gradients, losses and Hessian products of its examples, counted and judged."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from optax_sam import per_example
from optax_sam.arithmetic import batch_axis, means, sharding, trees
from optax_sam.engine import meter
from optax_sam.engine.aliases import Grads, OptState, Params
from optax_sam.engine.examples import ById, Examples, Rows
from optax_sam.engine.gradient_function import ONLY_GRAD_FN
from optax_sam.engine.losses import Losses, weighted_mean
from optax_sam.engine.objective import Arguments, Evaluation, Objective
from optax_sam.engine.through_outputs import ThroughOutputs


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Given:
    """What a step is given.

    Attributes:
      objective: what is differentiated.
      examples: all examples of the step, or of one slice of it.
      arguments: what every pass is given.
      params: the full parameters, as arrays. None inside `optax.masked`, with a gradient function.
      opt_state: the state of the whole optimizer. None where it is not known.
    """

    objective: Objective = dataclasses.field(metadata={"static": True})
    examples: Examples
    arguments: Arguments
    params: Params
    opt_state: OptState = None

    def but(self, **changes: Any) -> "Given":
        """The same with some fields changed."""
        return dataclasses.replace(self, **changes)


@dataclasses.dataclass(frozen=True, eq=False)
class StepOracle:
    """Gradients of a step's examples at any point.

    Every gradient is counted, and `finite` judged, here, where it is taken. Write loops and conditionals
    around one with `scan` and `cond`.

    Attributes:
      given: what the step was given.
      examples: those that this oracle sees.
      point: of the step's first gradient.
      visible: the parameters as they are seen, with the parts hidden that `optax.masked` hides.
    """

    given: Given
    examples: Examples
    point: Params
    visible: Params

    # Examples.

    @property
    def size(self) -> int | None:
        """The number of examples, or None for a batch without arrays."""
        return self.examples.size

    @property
    def batch(self) -> Any:
        """The examples, as the loss function takes them, in containers that may be written into."""
        return trees.anew(self.examples.rows.batch)

    @property
    def weights(self) -> Any:
        """`float[batch]`, 0 for padding. None where all count alike."""
        return self.examples.rows.weights

    @property
    def indices(self) -> Any:
        """`int[batch]`, the examples' numbers in the data set, or None."""
        return self.examples.rows.indices

    @property
    def whole_batch(self) -> bool:
        """Whether every example is to be used in this step."""
        return self.examples.whole_batch

    @property
    def has_examples(self) -> Any:
        """`bool[]`, whether an example is no padding; True where that cannot be known.

        Devices that differ in this without a type that says so would remember different things.
        """
        return True if self.examples.spare is None or sharding.unchecked_axes() else self.examples.spare[1]

    @property
    def params(self) -> Params:
        """The full parameters."""
        return self.given.params

    @property
    def opt_state(self) -> OptState:
        """The state of the whole optimizer before the step, or None for an oracle made by hand."""
        return self.given.opt_state

    def on(self, examples: Examples) -> "StepOracle":
        """The same of other examples."""
        return dataclasses.replace(self, examples=examples)

    def as_given(self) -> "StepOracle":
        """The same of all examples that the step was given."""
        return self.on(self.given.examples)

    def take(self, positions: jax.Array) -> "StepOracle":
        """Of the drawn examples only. `positions` are `int[strata, drawn]`, inside each contiguous part."""
        return self.on(self.examples.take(positions))

    def padded(self, real: jax.Array) -> "StepOracle":
        """Examples where `real` (`bool[batch]`) is False are padding, and have no share in any mean."""
        return self.on(self.examples.padded(real))

    def emphasized(self, emphasis: jax.Array) -> "StepOracle":
        """Examples count `emphasis` (`float[batch]`) times their weight in a gradient, not in its loss."""
        return self.on(self.examples.emphasized(emphasis))

    def mean(self, values: jax.Array) -> jax.Array:
        """The mean of `values` (`float[batch]`) over these examples, by their weights."""
        values = jnp.asarray(values)
        values = values if trees.is_inexact(values) else values.astype(float)
        return weighted_mean(values, self.weights, self.given.params)

    def with_losses(self) -> "StepOracle":
        """Asks for one loss per example, and refuses a loss function that returns the mean."""
        return self.on(self.examples.but(needs_losses=True))

    def with_key(self, number: Any) -> "StepOracle":
        """Of another pass: a key of its own, where the loss function takes one."""
        return self.on(self.examples.with_key(number))

    def of_surrogate(self, losses: Callable[..., Any], when: Any = None) -> "StepOracle":
        """Of another loss function of the same parameters, where `when` (`bool[]`) is true.

        It is called once for each shape, and known by its identity. Pass one object, not a lambda made in
        each step.
        """
        return self.on(self.examples.but(surrogate=ById(losses), on_surrogate=when))

    @property
    def is_of_its_loss(self) -> bool:
        """Whether its gradient is that of the loss that it tells."""
        through = isinstance(getattr(self.given.objective, "losses", None), ThroughOutputs)
        return self.examples.rows.emphasis is None and not through

    def through_outputs(self, outputs: Callable[..., Any], losses: Callable[[Any, Any], Any]) -> "StepOracle":
        """Of `losses(outputs(params, batch), batch)`. Its gradient by the outputs stays the first point's."""
        parts = ThroughOutputs(outputs, losses)
        objective, arguments = self._losses().through(parts, self.point, self.given.arguments)
        given = self.given.but(objective=objective, arguments=arguments)
        return dataclasses.replace(
            self, given=given, examples=self.examples.but(surrogate=None, on_surrogate=None)
        )

    # Gradients.

    def moved(self, perturbation: Params) -> Params:
        """The first point of the step, moved by `perturbation`. What is hidden stays put."""
        return trees.add_perturbation(self.point, perturbation)

    def evaluate_moved(self, perturbation: Params) -> Evaluation:
        """The gradient at the first point of the step, moved by `perturbation`. What that hides is hidden."""
        found = self.evaluate(self.moved(perturbation))
        return found._replace(grads=trees.like_masked(perturbation, found.grads))

    def evaluate(self, point: Params) -> Evaluation:
        """The gradient at `point`, with loss, losses and aux. Costs one gradient of these examples."""
        found = self.evaluate_unjudged(point)
        visible = trees.like_masked(self.visible, found.grads)
        norm = trees.norm(visible)
        meter.spend(0.0, jnp.isfinite(norm) & trees.hidden_is_finite(visible, found.grads))
        return found._replace(grads=visible, norm=norm)

    def evaluate_unjudged(self, point: Params) -> Evaluation:
        """The full gradient at `point`, whose norm the caller will see to."""
        meter.spend(self.examples.fraction)
        ask = self.given.objective.evaluate
        if self.examples.num_slices <= 1:
            found = ask(point, self.examples, self.given.arguments)
            return found.as_only_slice() if self.examples.num_slices else found

        def on_slice(examples):
            found = ask(point, examples, self.given.arguments)
            return found.grads, (found.loss, found.losses, found.aux)

        grads, (loss, losses, aux) = self._in_slices(on_slice)
        if losses is not None:
            losses = self._joined(losses)
        shares = self._shares(self.examples.split(len(loss)).rows.weights, len(loss))
        return Evaluation(grads, means.mean(shares, loss), losses, aux, shares=shares)

    def losses_at(self, point: Params) -> jax.Array:
        """One loss per example at `point`, `float[batch]`. Costs a forward pass."""
        meter.spend(0.0)
        ask = self.given.objective.losses_at
        if self.examples.num_slices <= 1:
            return ask(point, self.examples, self.given.arguments)

        number = self.examples.num_slices
        shared = self.examples.shared_by(number)

        def on_slice(part):
            return ask(point, shared.of_slice(part), self.given.arguments)

        return self._joined(lax.map(on_slice, self.examples.split(number)))

    def hessian_product(self, vector: Params, at: Params = None) -> Grads:
        """`H v`, the derivative of the gradient along `vector`, at the first point or at another.

        `vector` is a displacement of the parameters, and the result is a gradient. Of complex leaves, the
        conjugate points uphill. Costs two gradients of these examples. The loss must have a second
        derivative.
        """
        point = self.point if at is None else at
        full = jax.tree.map(
            lambda v, x: jax.tree.map(jnp.zeros_like, x) if trees.is_masked(v) else v,
            vector,
            point,
            is_leaf=trees.is_masked,
        )
        ask = self.given.objective.hessian_product
        if self.examples.num_slices <= 1:
            found = ask(point, full, self.examples, self.given.arguments)
        else:
            found, _ = self._in_slices(lambda part: (ask(point, full, part, self.given.arguments), None))
        meter.spend(2 * self.examples.fraction, trees.all_finite(found))
        return trees.like_masked(self.visible, found)

    def gradient_norms(self, point: Params) -> jax.Array:
        """The norm of each example's gradient, `float[batch]`. Costs one gradient of these examples.

        It is that of the parameters in sight.
        """
        meter.spend(self.examples.fraction)
        size = None if self.examples.num_slices <= 1 else (self.size or 1) // self.examples.num_slices
        alone, scale = self._losses().alone(self.examples, self.given.arguments), self._scale_of_one()
        rows = Rows(self.batch, indices=self._numbers() if self.examples.key is not None else None)

        def losses(visible, rows):
            found = alone(trees.filled(visible, point), rows)
            return found if scale is None else trees.times(scale, trees.widen(found))

        visible = trees.like_masked(self.visible, point)
        norms = per_example.gradient_norms(losses, visible, rows, microbatch_size=size)
        return norms if scale is None else trees.divide(norms, scale)

    def _numbers(self) -> jax.Array:
        """Where each example stands in the batch."""
        return sharding.split_as(jnp.arange(self.size or 1), jax.tree.leaves(self.batch)[0])

    def _scale_of_one(self) -> jax.Array | None:
        """By what the loss of one example is multiplied before differentiation: as much as in the mean."""
        scale = self.given.arguments.loss_scale
        return None if scale is None else trees.widen(scale.astype(float)) / (self.size or 1)

    def root_mean_squares(self, point: Params, num_samples: int) -> Any:
        """The root of the mean of the squared gradients of the first examples.

        Its square is the diagonal of the empirical Fisher matrix, which float32 may not hold.

        The examples are taken one after the other, those that are no padding first. Inside a `shard_map` they
        are the first of all devices' examples, and every device goes through them.
        """
        self._losses()
        zeros = trees.map_inexact(lambda x: jnp.zeros_like(jnp.real(trees.widen(x))), point)
        real = self.examples.without_padding(point)
        weights = jnp.ones([self.size or 1]) if self.weights is None else self.weights
        num_parts = sharding.num_parts((self.batch, weights), point)
        number = min(num_samples, num_parts * (self.size or 1))
        rows, num_real = (real.rows.batch, weights), None
        if self.weights is not None:
            padding = sharding.replicated(weights == 0)
            order = jnp.argsort(padding, stable=True)[:number]
            rows = jax.tree.map(lambda x: batch_axis.look_up(x, order), rows)
            num_real = jnp.sum(~padding, dtype=jnp.int32)
        rows = sharding.first_of_all_parts(rows, number, point, num_real)
        first = jax.tree.map(lambda x: batch_axis.first_rows(x, number), rows)

        def add_one(total, row):
            (example, weight), place = row
            alone = real.alone(example, place)
            grads = self.on(alone.but(fraction=alone.fraction / num_parts)).evaluate(point).grads
            share = jnp.where(weight != 0, number**-0.5, 0.0)
            sizes = trees.map_inexact(lambda g: trees.times(share, jnp.abs(g)), trees.widen(grads))
            return trees.map_inexact(jnp.hypot, total, sizes), None

        numbered = first, jnp.arange(number)
        return self.scan(add_one, trees.like_masked(self.visible, zeros), numbered)[0]

    # Loops and conditionals around them.

    def scan(self, function: Callable[..., Any], init: Any, xs: Any = None, length: int | None = None) -> Any:
        """`jax.lax.scan`, whose body may ask this oracle."""
        return meter.scan(function, init, xs, length)

    def cond(
        self, condition: Any, paid: Callable[..., Any], unpaid: Callable[..., Any], *operands: Any
    ) -> Any:
        """`jax.lax.cond`, whose branches may ask this oracle."""
        return meter.cond(condition, paid, unpaid, *operands)

    # Slices of an evaluation.

    def _losses(self) -> Losses:
        if not isinstance(self.given.objective, Losses):
            raise ValueError(ONLY_GRAD_FN)
        return self.given.objective

    def _in_slices(self, function: Callable[[Examples], tuple[Any, Any]]) -> tuple[Any, Any]:
        """The mean of gradients over slices, and what else each gives."""
        number = self.examples.num_slices
        parts, shared = self.examples.split(number), self.examples.shared_by(number).but(by_size=True)
        weights, emphasis = parts.rows.weights, parts.rows.emphasis
        if emphasis is not None:
            weights = emphasis if weights is None else emphasis * weights.astype(emphasis.dtype)
        shares = self._shares(weights, number)
        return means.mean_by_scan(lambda part: function(shared.of_slice(part)), shares, parts)

    def _shares(self, weights: jax.Array | None, number: int) -> jax.Array:
        """What the mean of each slice, by the sizes of its weights, is worth in the whole; [slices, rows]."""
        if weights is None:
            return means.shares(None, number, self.given.params)
        return means.shares(weights.sum(axis=1), number, self.given.params, jnp.abs(weights).sum(axis=1))

    def _joined(self, losses: jax.Array) -> jax.Array:
        return batch_axis.join_rows(losses, like=jax.tree.leaves(self.batch)[0])
