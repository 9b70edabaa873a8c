"""What a user gives a step: a loss function, a batch, and what belongs to them."""

import copy
import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from optax_sam.arithmetic import keys, sharding, trees
from optax_sam.engine import checks
from optax_sam.engine.aliases import Batch, Grads, OptState, Params
from optax_sam.engine.arrays import as_arrays
from optax_sam.engine.examples import Examples, Rows, check_rows
from optax_sam.engine.losses import Losses
from optax_sam.engine.objective import Arguments
from optax_sam.engine.step_oracle import Given, StepOracle


class _OfOneTrace(type):
    """A class whose name says how to use its instances: JAX prints it for what cannot cross a `jit`."""

    def __repr__(cls) -> str:
        return (
            f"<class 'optax_sam.{cls.__name__}', which lives within one trace: call value_and_grad and "
            f"tx.update in the same function and jit that, or use optax_sam.step>"
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Oracle(metaclass=_OfOneTrace):
    """Losses and gradients of one training step's examples, at any parameters.

    `sam.value_and_grad(loss_fn)(...)` makes one. Make one by hand where the method is hidden, for example in
    `optax.inject_hyperparams(optax_sam.sam)`. It is no pytree, and lives within one trace.

    The loss function is called once for each shape of its arguments, and held as it was then. You may assign
    anew a name that it closes over. You may not change a NumPy array in place.

    Inside a `jax.shard_map` over the batch, parameters are the same on all devices and losses are not. The
    mean is that over all devices' examples, as it is outside.

    Args:
      losses: `losses(params, batch, *args)` returns one loss per example, shape `[batch]` (or their mean, a
        scalar, for methods that need no losses of single examples), or `(losses, aux)` with `has_aux`.
      batch: a pytree. Every leaf has the batch axis first. `()` for losses that take no examples.
      params: the full parameters. Needed only inside `optax.masked` and `optax.partition`.
      has_aux: whether `losses` returns a pair. With `weights`, what `aux` has of padding is 0 if
        examples never meet in losses and aux. Else it is what `losses` makes of the padding that you give.
      indices: the examples' numbers in the data set, `int[batch]`, for methods with a score per example.
      weights: `float[batch]` (or bool, or int). 0 marks padding. No result depends on its content, NaN
        included: the first real row takes its place, with weight 0. A loss in which examples meet has a mask
        of its own. There padding stays as it is, except what is not finite. The loss is `sum(w l) / sum(w)`.
        Where the weights sum to 0, it is `sum(w l)`, which is 0 for padding alone, and slices count alike.
        Weights below 0 are taken as they are. Each slice of `per_microbatch` and `per_device` has its own
        mean. A slice whose weights sum to 0 counts nothing. The derivative by a weight of 0 is that of
        padding, which counts nothing. The derivatives by all others are the true ones.
      whole_batch: every example is used and scored in this step.
      key: a PRNG key. `losses` then gets a key as its last argument. The gradient at the perturbed point has
        another key than the first one. All other passes share the key of the first. A key that `losses`
        closes over is the same in all passes.
      loss_scale: multiplies the mean of the losses before differentiation, and divides the gradient after it,
        in float32 or wider. Low-precision gradients then neither vanish nor overflow. No result depends on
        it, except by rounding.
      args: a tuple of further arguments, such as batch statistics, class weights or a graph. They go to every
        pass unchanged.

    Raises:
      ValueError: a leaf of `batch`, `indices` or `weights` has another first axis than the rest.
      TypeError: `indices` are no integers, `weights` are no numbers, or `key` is no PRNG key.

    Example:
      >>> import jax.numpy as jnp, optax, optax_sam
      >>> losses = lambda w, batch: (batch["x"] * w - batch["y"]) ** 2
      >>> batch = {"x": jnp.array([1.0, 2.0]), "y": jnp.array([0.0, 1.0])}
      >>> loss, grads = optax_sam.Oracle(losses, batch).value_and_grad(jnp.array(1.0))
      >>> print(loss, grads)
      1.0 3.0
    """

    losses: Callable[..., Any]
    batch: Batch
    _: dataclasses.KW_ONLY
    params: Params = None
    has_aux: bool = False
    indices: Any = None
    weights: Any = None
    whole_batch: bool = False
    key: Any = None
    loss_scale: Any = None
    args: tuple[Any, ...] = ()

    # What a step has made of it; lost, as it should be, where `dataclasses.replace` makes another oracle.
    _objective: ClassVar[Losses]
    _started: ClassVar["Started | None"] = None

    def __post_init__(self):
        checks.function("losses", self.losses, "losses(params, batch) -> [batch]")
        checks.boolean("has_aux", self.has_aux)
        checks.boolean("whole_batch", self.whole_batch)
        checks.optional_positive("loss_scale", self.loss_scale)
        if not isinstance(self.args, tuple):
            raise TypeError(f"args={self.args!r} is no tuple: pass a tuple, args=(statistics,).")
        object.__setattr__(self, "batch", as_arrays("batch", self.batch))
        for name in ("indices", "weights", "loss_scale"):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, jnp.asarray(_within_32_bits(value)))
        check_rows(Rows(self.batch, self.indices, self.weights))
        if self.weights is not None:  # they are summed
            is_float = jnp.issubdtype(self.weights.dtype, jnp.floating)
            weights = trees.widen(self.weights) if is_float else self.weights.astype(float)
            object.__setattr__(self, "weights", weights)
        checks.key("key", self.key.key if isinstance(self.key, keys.SharedByPasses) else self.key)
        object.__setattr__(self, "_objective", self._held())

    def value_and_grad(self, params: Params) -> tuple[Any, Grads]:
        """The loss (or `(loss, aux)`) and its gradient at `params`, on this oracle's examples."""
        given = given_by(self, params)
        found = StepOracle(given, given.examples, given.params, given.params).evaluate_unjudged(given.params)
        grads = jax.tree.unflatten(jax.tree.structure(params), jax.tree.leaves(found.grads))
        return (found.loss, found.aux) if self.has_aux else found.loss, grads

    def _held(self) -> Losses:
        leaves, treedef = jax.tree.flatten(self.args)
        is_array = [isinstance(x, jax.Array) for x in leaves]

        def rest(arrays):
            supply = iter(arrays)
            return treedef.unflatten(
                [next(supply) if a else x for a, x in zip(is_array, leaves, strict=True)]
            )

        return Losses(self.losses, self.has_aux, rest)


def _within_32_bits(value: Any) -> Any:
    """Numbers beyond 32 bits stay beyond all examples: JAX would keep their last 32 bits."""
    if not isinstance(value, np.ndarray) or not np.issubdtype(value.dtype, np.integer):
        return value
    limits = np.iinfo(jax.dtypes.canonicalize_dtype(value.dtype))
    return np.clip(value, limits.min, limits.max)


class Started(NamedTuple):
    """A step that `value_and_grad` has begun.

    Attributes:
      method: whose step it is. None where the caller is sure.
      given: what the step was given.
      begun: what its beginning has found.
      perturb: the decision that it was told, or None.
    """

    method: Any
    given: Given
    begun: Any
    perturb: bool | None = None


def started(oracle: Oracle, step: Started) -> Oracle:
    """The oracle, with the step that was begun with it."""
    new = copy.copy(oracle)
    object.__setattr__(new, "_started", step)
    return new


def slice_shares(oracle: Oracle) -> jax.Array | None:
    """How much of the mean each slice of a begun step's `aux` is, `float[slices]`. None where it has none."""
    assert oracle._started is not None
    return oracle._started.begun.first.shares


def check_replicas() -> None:
    """Refuses an oracle where the replicas of a model would drift apart."""
    if axes := sharding.unchecked_axes():
        raise ValueError(
            f"an oracle takes the gradient of one device alone, under a pmap (or a shard_map with "
            f"check_vma=False) over {axes[0]!r}: each device would perturb along its own gradient, and the "
            f"replicas would drift apart. Pass a gradient function that takes the mean, in place of the "
            f"oracle: tx.update(grads, state, params, "
            f"grad_fn=lambda params: lax.pmean(grads_of(params), {axes[0]!r})). Or use jax.jit with a batch "
            f"that is split over a mesh, or shard_map as it is by default. If every device trains a model of "
            f"its own, give the pmap no axis_name."
        )


def given_by(oracle: Oracle, params: Params, opt_state: OptState = None) -> Given:
    """What a step at `params`, the full parameters, is given by an oracle."""
    check_replicas()
    objective = dataclasses.replace(oracle._objective, structure=jax.tree.structure(params))
    arrays = [x for x in jax.tree.leaves(oracle.args) if isinstance(x, jax.Array)]
    is_shared = isinstance(oracle.key, keys.SharedByPasses)
    total = None if oracle.weights is None else oracle.weights.sum()
    return Given(
        objective,
        Examples(
            Rows(oracle.batch, oracle.indices, oracle.weights),
            total,
            oracle.key.key if is_shared else oracle.key,
            whole_batch=bool(oracle.whole_batch),
            passes_share_key=is_shared,
        ),
        Arguments(arrays, oracle.loss_scale),
        as_arrays("params", trees.plain(params)),
        opt_state,
    )
