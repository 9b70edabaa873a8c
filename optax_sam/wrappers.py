"""Methods that run a whole assembly several times: over slices of the batch, over random draws."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from optax_sam import checks, trees
from optax_sam import state as states
from optax_sam.hyperparameters import ScalarOrSchedule, at_step
from optax_sam.method import Method, Outcome, SharpnessAware, from_method
from optax_sam.oracle import Evaluation, First, Oracle, Rows
from optax_sam.state import SharpnessAwareState


@dataclasses.dataclass(frozen=True, eq=False)
class Wrapper(Method):
    """A method around another one, whose state it shares."""

    inner: Method

    @property
    def needs_oracle(self) -> bool:
        return True

    @property
    def perturbs_at_start(self) -> bool:
        return self.inner.perturbs_at_start

    def init(self, params: Any) -> SharpnessAwareState:
        return self.inner.init(params)


class Slice(NamedTuple):
    """What travels of a slice from its first gradient to its further ones."""

    rows: Rows
    first: First
    weight: Any


@dataclasses.dataclass(frozen=True, eq=False)
class PerMicrobatch(Wrapper):
    """See `per_microbatch`."""

    num_microbatches: int
    loop: str

    def begin(self, state: SharpnessAwareState, opt_state: Any, params: Any, oracle: Oracle) -> Oracle:
        prepared = []

        def on_slice(rows):
            started = self.inner.begin(state, opt_state, params, oracle.with_rows(rows))
            prepared.append(_without_arrays(started))
            return Slice(started.rows, started.first, started.whole_weight)

        rows = oracle.split(self.num_microbatches)
        slices = jax.vmap(on_slice)(rows) if self.loop == "vmap" else lax.map(on_slice, rows)
        found, shares = slices.first.evaluation, self._shares(slices.weight)
        mean = Evaluation(_mean(shares, found.grads), _mean(shares, found.loss), aux=found.aux)
        return dataclasses.replace(
            oracle,
            method=self,
            first=First(None, mean),
            slices=(slices, shares, prepared[0]),
            origin=oracle,
        )

    def finish(
        self,
        grads: Any,
        state: SharpnessAwareState,
        params: Any,
        oracle: Oracle,
        perturb: bool | None,
    ) -> Outcome:
        slices, shares, prepared = oracle.slices

        def on_slice(part):
            rows, (drawn, first, _) = part
            started = dataclasses.replace(
                prepared.with_rows(drawn),
                params=oracle.params,
                first=first,
                origin=oracle.origin.with_rows(rows),
            )
            own = trees.like_masked(params, first.evaluation.grads)
            return self.inner.finish(own, state, params, started, perturb)

        slices = oracle.split(self.num_microbatches), slices
        if self.loop == "vmap":
            mean = _mean(shares, jax.vmap(on_slice)(slices))
        else:
            mean = _mean_by_scan(on_slice, shares, slices)
        descent = optax.tree.cast_like(mean.descent, grads)
        return Outcome(descent, _with_gradients_of(state, mean.state, repeats=1), mean.loss)

    def _shares(self, weights: jax.Array | None) -> jax.Array:
        """How much of the mean each slice is: its part of all weights, `float[num_microbatches]`."""
        equal = jnp.full([self.num_microbatches], 1 / self.num_microbatches, float)
        if weights is None:
            return equal
        total = weights.sum()
        return jnp.where(total != 0, weights.astype(float) / jnp.where(total != 0, total, 1), equal)


def per_microbatch(
    method: SharpnessAware,
    num_microbatches: int,
    *,
    loop: Literal["scan", "vmap"] = "scan",
) -> SharpnessAware:
    """m-sharpness: each of `num_microbatches` slices of the batch with its own perturbation.

    With `B_1, ..., B_n` contiguous slices of the batch and `S_i` what `method` makes of slice `i`, the
    descent is the mean of the `S_i` (weighted by the slices' weights, where weights are given).
    `value_and_grad` returns the mean of the slices' losses and first gradients; the gradients
    themselves travel in the oracle, so that the mean costs nothing unless it is read. `aux` gets a
    leading axis of slices.

    A stateful method starts every slice from the one shared state; the new state is the mean of its
    float leaves and the first slice's for all others. The gate decides once for all slices.

    Args:
      method: any sharpness-aware method.
      num_microbatches: the number of slices; divides the batch.
      loop: "scan" takes one slice after the other in the memory of one (and the slices' first
        gradients), "vmap" all at once.

    Returns:
      A `SharpnessAware` transformation.

    Raises:
      TypeError: `method` is none of this library's; `num_microbatches` is no integer.
      ValueError: `num_microbatches` does not divide the batch; `loop` is unknown; `method` is itself
        made by `per_microbatch`.

    Cost:
      gradients per step as `method`; `num_microbatches` parameter-sized buffers.

    Guarantees:
      one slice is `method` itself, to float rounding.

    Example:
      >>> import optax_sam
      >>> m_sam = optax_sam.per_microbatch(optax_sam.sam(rho=0.05), 4)

    References:
      Foret et al., `Sharpness-Aware Minimization <https://arxiv.org/abs/2010.01412>`_, 2020, section 4.1.
    """
    inner = _method_of(method)
    checks.integer("num_microbatches", num_microbatches, low=1)
    checks.one_of("loop", loop, ("scan", "vmap"))
    part = inner
    while isinstance(part, Wrapper):
        if isinstance(part, PerMicrobatch):
            raise ValueError(
                f"method is made by per_microbatch already, with num_microbatches={part.num_microbatches}: "
                f"slices of slices are slices, call it once with the product."
            )
        part = part.inner
    return from_method(PerMicrobatch(inner, num_microbatches, loop))


@dataclasses.dataclass(frozen=True, eq=False)
class OverDraws(Wrapper):
    """See `over_draws`."""

    num_draws: int
    log_weight: Callable[[jax.Array, jax.Array], jax.Array]

    def begin(self, state: SharpnessAwareState, opt_state: Any, params: Any, oracle: Oracle) -> Oracle:
        started = self.inner.begin(_draw_state(state, 0), opt_state, params, oracle)
        return dataclasses.replace(started, method=self)

    def finish(
        self,
        grads: Any,
        state: SharpnessAwareState,
        params: Any,
        oracle: Oracle,
        perturb: bool | None,
    ) -> Outcome:
        def run(number, started):
            own = trees.like_masked(params, started.first.evaluation.grads)
            outcome = self.inner.finish(own, _draw_state(state, number), params, started, perturb)
            return outcome, self.log_weight(outcome.loss, state.step)

        def one_more(carry, number):
            descent, total, largest, mean = carry
            drawn = _draw_state(state, number)
            outcome, weight = run(number, self.inner.begin(drawn, state, oracle.params, oracle.origin))
            new_largest = jnp.maximum(largest, weight)
            old_share, share = jnp.exp(largest - new_largest), jnp.exp(weight - new_largest)
            descent = jax.tree.map(
                lambda t, x: trees.times(old_share, t) + trees.times(share, x.astype(t.dtype)),
                descent,
                outcome.descent,
            )
            mean = _add(mean, 1 / self.num_draws, outcome.state, False)
            return (descent, total * old_share + share, new_largest, mean), None

        first, weight = run(0, oracle)
        mean = _add(_zeros_like(first.state), 1 / self.num_draws, first.state, True)
        carry = (trees.widen(first.descent), jnp.ones_like(weight), weight, mean)
        (descent, total, _, mean), _ = lax.scan(one_more, carry, jnp.arange(1, self.num_draws))
        mean = _with_gradients_of(state, mean, repeats=self.num_draws)
        descent = optax.tree.cast_like(trees.divide(descent, total), grads)
        return Outcome(descent, mean._replace(key=state.key), first.loss)


def over_draws(
    method: SharpnessAware,
    num_draws: int,
    log_weight: Callable[[jax.Array, jax.Array], jax.Array],
) -> SharpnessAware:
    """The weighted mean of several runs of a method that draws, each with its own random key.

    With `S_j` and `L_j` the descent and the perturbed loss of draw `j`, the descent is
    `sum_j a_j S_j`, `a = softmax(log_weight(L))`: an online softmax in a loop, which holds two
    gradient trees however many draws. What `info` tells is the mean over the draws.

    Args:
      method: a sharpness-aware method that draws, such as one with the start `at_random(...)`; the runs
        of one that does not are all the same.
      num_draws: how many draws, 1 or more.
      log_weight: `(loss, step) -> float[]`, for example `tilted(tilt)`.

    Returns:
      A `SharpnessAware` transformation.

    Raises:
      TypeError: `method` is none of this library's, `log_weight` is no function.
      ValueError: `num_draws` is below 1.

    Cost:
      `num_draws` times the gradients of `method`, one after the other.
    """
    checks.integer("num_draws", num_draws, low=1)
    if not callable(log_weight):
        raise TypeError(f"log_weight={log_weight!r} is no function: pass one, such as tilted(1.0).")
    return from_method(OverDraws(_method_of(method), num_draws, log_weight))


@dataclasses.dataclass(frozen=True)
class Tilted:
    """See `tilted`."""

    tilt: ScalarOrSchedule

    def __call__(self, loss: jax.Array, step: jax.Array) -> jax.Array:
        return trees.times(at_step(self.tilt, step), loss)


def tilted(tilt: ScalarOrSchedule) -> Tilted:
    """Weights proportional to `exp(tilt loss)`: 0 is the plain mean, large values the worst draw."""
    checks.number_or_schedule("tilt", tilt)
    return Tilted(tilt)


def _method_of(method: Any) -> Method:
    if not isinstance(method, SharpnessAware):
        raise TypeError(
            f"method={method!r} is no method of this library: pass one, for example optax_sam.sam()."
        )
    return method.method


def _without_arrays(oracle: Oracle) -> Oracle:
    """What a started oracle is apart from its arrays, which alone may leave a loop."""
    return dataclasses.replace(
        oracle, batch=(), indices=None, weights=None, params=None, first=None, origin=None
    )


def _draw_state(state: SharpnessAwareState, number: Any) -> SharpnessAwareState:
    """The state with the random key of one draw."""
    key = jax.random.wrap_key_data(state.key, impl="threefry2x32")
    return state._replace(key=jax.random.key_data(jax.random.fold_in(key, number)))


def _zeros_like(tree: Any) -> Any:
    return trees.widen(jax.tree.map(jnp.zeros_like, tree))


def _add(total: Any, share: Any, tree: Any, is_first: Any) -> Any:
    """`total + share * tree` for inexact leaves; the first tree's for all others."""

    def on_leaf(t, x):
        if not trees.is_inexact(x):
            return jnp.where(is_first, x, t)
        return t + trees.times(share, x.astype(t.dtype))

    return jax.tree.map(on_leaf, total, tree)


def _mean(shares: jax.Array, tree: Any) -> Any:
    """The mean over the leading axis of every inexact leaf; the first of all others."""

    def on_leaf(x):
        if not trees.is_inexact(x):
            return x[0]
        wide = x.astype(trees.accumulator_dtype(x.dtype))
        return jnp.tensordot(shares.astype(wide.dtype), wide, axes=1).astype(x.dtype)

    return jax.tree.map(on_leaf, tree)


def _mean_by_scan(function: Callable[[Any], Any], shares: jax.Array, parts: Any) -> Any:
    """`_mean` of `function` over the leading axis of `parts`, one part after the other."""
    shapes = jax.eval_shape(function, jax.tree.map(lambda x: x[0], parts))
    zeros = trees.widen(jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes))

    def step(total, part):
        number, share, rows = part
        return _add(total, share, function(rows), number == 0), None

    total, _ = lax.scan(step, zeros, (jnp.arange(len(shares)), shares, parts))
    return optax.tree.cast_like(total, shapes)


def _with_gradients_of(
    old: SharpnessAwareState, new: SharpnessAwareState, repeats: int
) -> SharpnessAwareState:
    """The averaged new state, with an exact count: what is averaged is the cost of one repeat."""
    cost = new.diagnostics.cost * repeats
    total = states.add_gradients(old.diagnostics.gradients, cost)
    return new._replace(diagnostics=new.diagnostics._replace(gradients=total, cost=cost))
