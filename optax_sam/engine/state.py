"""The state of every method, and what can be read out of it."""

import collections
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from optax_sam.arithmetic import keys, sharding, trees
from optax_sam.engine.meter import Spent

REMEMBERED = ("start", "direction", "gate", "ascent", "reuse")
"""What a step leaves to the next one, beside its count."""

MEASURED = ("loss", "perturbed_loss", "grad_norm", "perturbed_grad_norm", "perturbation_norm")


class Diagnostics(NamedTuple):
    """What the last step measured. `info` reads it.

    Attributes:
      values: `float32[5]`, in the order of `MEASURED`. 0 where not known, since a NaN kept in a state
        would stop `jax_debug_nans` and break comparisons.
      known: `bool[5]`. With slices or draws, whether it is in all of them.
      perturbed: `bool[]`, whether the step paid for a perturbed gradient, in one slice or draw at least.
      gradients: `float32[2]`, gradient evaluations of all steps, in units of one full batch, as an
        exact sum of a large and a small part.
      cost: `float32[]`, the same of the last step alone.
      not_finite: `float32[]`, 0 if every gradient of the last step was finite. Otherwise the part of the
        slices or draws in which one was not.
    """

    values: jax.Array
    known: jax.Array
    perturbed: jax.Array
    gradients: jax.Array
    cost: jax.Array
    not_finite: jax.Array


class SharpnessAwareState(NamedTuple):
    """State of every method.

    Attributes:
      step: `int32[]`, steps taken.
      key: `uint32[2]`, raw data of the PRNG key from which every step derives its own. Never changes.
      due: `bool[]`, whether the next step pays for a perturbed gradient. Changes every step. Empty where
        the gate must see the step's first gradient.
      start: of the start (scores of examples). Changes in perturbed steps.
      direction: of the direction (running means). Changes every step.
      gate: of the gate. Changes every step.
      ascent: of the ascent, an Optax state. Changes in perturbed steps.
      reuse: of the reuse (a remembered difference). Changes every step.
      diagnostics: what the last step measured. Never read by a later step.
    """

    step: jax.Array
    key: jax.Array
    due: Any
    start: Any
    direction: Any
    gate: Any
    ascent: Any
    reuse: Any
    diagnostics: Diagnostics


def initial(seed: Any, **fields: Any) -> SharpnessAwareState:
    """The state before the first step. A kind of piece that is not given remembers nothing."""
    remembered = dict.fromkeys(("due", *REMEMBERED), ())
    return SharpnessAwareState(
        step=jnp.zeros([], jnp.int32),
        key=jax.random.key_data(keys.from_seed(seed, "method")),
        diagnostics=no_diagnostics(),
        **remembered | fields,
    )


def key_of(state: SharpnessAwareState) -> jax.Array:
    """The typed PRNG key of a method."""
    return jax.random.wrap_key_data(state.key, impl="threefry2x32")


def split_alike(new: SharpnessAwareState, old: SharpnessAwareState) -> SharpnessAwareState:
    """The state after a step, what it keeps split over devices as in the state before."""
    alike = {kind: sharding.alike(getattr(new, kind), getattr(old, kind)) for kind in REMEMBERED}
    return new._replace(**alike)


def kept_if(finite: jax.Array, new: SharpnessAwareState, old: SharpnessAwareState) -> SharpnessAwareState:
    """The state after a step. What is remembered stays as it was where the step was not finite."""
    after, before = ({kind: getattr(state, kind) for kind in REMEMBERED} for state in (new, old))
    return new._replace(**trees.where(finite, after, before))


def with_key_of_part(state: SharpnessAwareState, number: Any) -> SharpnessAwareState:
    """The state with random numbers of its own for one of several draws or slices."""
    return state._replace(key=jax.random.key_data(jax.random.fold_in(key_of(state), number)))


def no_diagnostics() -> Diagnostics:
    """What is known before the first step."""
    size = len(MEASURED)
    return Diagnostics(
        values=jnp.zeros([size], jnp.float32),
        known=jnp.zeros([size], bool),
        perturbed=jnp.zeros([], bool),
        gradients=jnp.zeros([2], jnp.float32),
        cost=jnp.zeros([], jnp.float32),
        not_finite=jnp.zeros([], jnp.float32),
    )


def measured(**values: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """`(values, known)` in the order of `MEASURED`. None and non-finite values are not known."""
    found = [values.get(name) for name in MEASURED]
    numbers = jnp.stack([jnp.zeros([], jnp.float32) if v is None else v.astype(jnp.float32) for v in found])
    known = jnp.asarray([v is not None for v in found]) & jnp.isfinite(numbers)
    return jnp.where(known, numbers, jnp.zeros_like(numbers)), known


def diagnostics(old: Diagnostics, spent: Spent, *, perturbed: bool, **values: Any) -> Diagnostics:
    """What a step measured, after what was measured before it. The values are named as in `MEASURED`."""
    numbers, known = measured(**values)
    paid, finite = spent.as_arrays()
    return Diagnostics(
        values=numbers,
        known=known,
        perturbed=jnp.asarray(perturbed),
        gradients=add_gradients(old.gradients, paid),
        cost=paid,
        not_finite=1 - finite.astype(jnp.float32),
    )


def add_gradients(total: jax.Array, cost: jax.Array) -> jax.Array:
    """The two-part sum `total + cost`: exact to about 48 bits (Knuth's two-sum)."""
    high, low = total
    rough = high + cost
    virtual = rough - high
    error = (high - (rough - virtual)) + (cost - virtual)
    low = low + error
    new_high = rough + low
    return jnp.stack([new_high, low - (new_high - rough)])


def find(opt_state: Any) -> SharpnessAwareState:
    """The one state of this library inside an optimizer's state, as plain arrays.

    Flax NNX keeps each array of an optimizer state in a variable. Those are taken out.

    Raises:
      ValueError: there is none, or more than one. The error names the paths.
    """
    found = [
        (jax.tree_util.keystr(path), leaf)
        for path, leaf in jax.tree.leaves_with_path(opt_state, is_leaf=is_ours)
        if is_ours(leaf)
    ]
    if not found:
        raise ValueError(
            f"state, a {type(opt_state).__name__}, holds no state of a sharpness-aware method: pass the "
            "optimizer state, state=opt_state, which begins as "
            "opt_state = optax.chain(optax_sam.sam(), ...).init(params)."
        )
    if len(found) > 1:
        paths = ", ".join("state" + path for path, _ in found)
        raise ValueError(
            f"state holds {len(found)} states of sharpness-aware methods, at {paths}: pass the "
            f"sub-state of the one that is meant."
        )
    return as_jax(trees.plain(found[0][1]))


def as_jax(state: Any) -> Any:
    """A state whose arrays were fetched to the host, with arrays of JAX again."""
    return jax.tree.map(lambda x: jnp.asarray(x) if isinstance(x, np.ndarray) else x, state)


def due(opt_state: Any) -> jax.Array:
    """Whether the next step will pay for a perturbed gradient, without the method at hand.

    Args:
      opt_state: any optimizer state that holds one of ours.

    Returns:
      `bool[]`, read from the state.

    Raises:
      ValueError: `opt_state` holds no state of ours, or several. The gate must see the gradient first.
    """
    found = find(opt_state).due
    if isinstance(found, tuple):
        raise ValueError(
            "this method's gate must see the first gradient of a step before it decides: pass it, "
            "sam.due(state, grads), with the gradient that value_and_grad returned."
        )
    return found


def finite(opt_state: Any) -> jax.Array:
    """Whether every gradient of the last step was finite: the first one and the perturbed ones.

    Decide by this whether a dynamic loss scale changes, or a step is skipped.

    Args:
      opt_state: any optimizer state that holds one of ours.

    Returns:
      `bool[]`. True before the first step.

    Raises:
      ValueError: `opt_state` holds no state of ours, or several.

    Example:
      >>> import jax.numpy as jnp, optax_sam
      >>> sam, params = optax_sam.sam(rho=0.1), jnp.array([3.0, 4.0])
      >>> _, state = sam.update(params, sam.init(params), params, grad_fn=lambda p: p / 0)
      >>> print(optax_sam.finite(state))
      False
    """
    return find(opt_state).diagnostics.not_finite == 0


def info(state: Any) -> dict[str, Any]:
    """What the last step measured: scalars for logging, always the same keys in the same order.

    `loss` and `perturbed_loss` are those at the first and at the perturbed point, and `sharpness` is their
    difference. `grad_norm`, `perturbed_grad_norm` and `perturbation_norm` are global L2 norms. `perturbed` is
    1 if the step paid for a perturbed gradient, else 0. `gradients` counts the evaluations of all steps so
    far, in units of one full batch. Outside of `jit` it is a float64, exact in long runs. All others are in
    single precision, even where double is enabled. A `sharpness` smaller than the rounding of the loss is
    lost. What the step did not compute is NaN (so call it outside `jit` under `jax_debug_nans`).

    With slices or draws each value is their mean. It is NaN where one of them has not computed it, or where
    it was not finite there. `perturbed` is 1 if one of them paid. For tilted SAM the draws are its samples,
    seen from their random starts.

    Args:
      state: any optimizer state that holds one of ours.

    Returns:
      A dict of NumPy scalars, or of traced ones inside `jit`.

    Raises:
      ValueError: `state` holds no state of ours, or several.

    Example:
      >>> import jax.numpy as jnp, optax_sam
      >>> sam = optax_sam.sam(rho=0.1)
      >>> params = jnp.array([3.0, 4.0])
      >>> _, state = sam.update(params, sam.init(params), params, grad_fn=lambda p: p)
      >>> print(round(float(optax_sam.info(state)["perturbed_grad_norm"]), 4))
      5.1
    """
    found = find(state).diagnostics
    traced = any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(found))
    xp = jnp if traced else np
    found = jax.tree.map(xp.asarray, found)
    values = xp.where(found.known, found.values, xp.full_like(found.values, xp.nan))
    result = {name: values[..., i][()] for i, name in enumerate(MEASURED)}
    sharpness = result["perturbed_loss"] - result["loss"]
    parts = found.gradients.astype(jnp.result_type(float) if traced else np.float64)
    return {
        "loss": result["loss"],
        "perturbed_loss": result["perturbed_loss"],
        "sharpness": sharpness,
        "grad_norm": result["grad_norm"],
        "perturbed_grad_norm": result["perturbed_grad_norm"],
        "perturbation_norm": result["perturbation_norm"],
        "perturbed": found.perturbed.astype(values.dtype)[()],
        "gradients": parts.sum(axis=-1),
    }


def is_ours(leaf: Any) -> bool:
    """Whether it is the state of a method of this library."""
    return isinstance(leaf, SharpnessAwareState)


def children(node: Any) -> list[Any]:
    """The parts of an optimizer's state, in the order of a chain where it is one; none of a leaf."""
    if isinstance(node, dict):
        return list(node.values())
    parts = jax.tree.leaves(node, is_leaf=lambda part: part is not node)
    return [part for part in parts if part is not node]


def is_chain(node: Any) -> bool:
    """Whether it is the state of `optax.chain` or `named_chain`; groups of a partition are a plain dict."""
    return type(node) is tuple or isinstance(node, collections.OrderedDict)
