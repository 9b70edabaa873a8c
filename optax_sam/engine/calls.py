"""What `update` refuses before it begins: calls that would go wrong in silence, or far from their cause."""

import sys
from typing import Any

import jax
import numpy as np
import optax

from optax_sam.arithmetic import trees
from optax_sam.engine import state as states
from optax_sam.engine.aliases import Grads, Params
from optax_sam.engine.gradient_function import ONLY_GRAD_FN
from optax_sam.engine.identity import kind_of, short
from optax_sam.engine.oracle import Oracle


class NoDoorError(ValueError):
    """Neither an oracle nor a gradient function is given, or both."""


def check_call(method: Any, oracle: Any, grad_fn: Any, perturb: Any) -> None:
    """Refuses arguments of `update` that do not go together, or do not fit the method."""
    if (oracle is None) == (grad_fn is None):
        given = "none" if oracle is None else "both"
        raise NoDoorError(
            f"{given} of oracle and grad_fn is given: pass exactly one, tx.update(grads, opt_state, params, "
            f"oracle=oracle) with the oracle that value_and_grad returned, or grad_fn=grad_fn with "
            f"grad_fn(params) -> grads. optax_sam.step(tx, losses) makes both calls for you."
        )
    if oracle is not None and not isinstance(oracle, Oracle):
        raise TypeError(
            f"oracle={oracle!r} is no Oracle: pass the third result of value_and_grad, or "
            f"optax_sam.Oracle(losses, batch)."
        )
    if grad_fn is not None and not callable(grad_fn):
        raise TypeError(f"grad_fn={grad_fn!r} is no function: pass grad_fn(params) -> grads.")
    if grad_fn is not None and method.needs_oracle:
        raise ValueError(ONLY_GRAD_FN)
    if perturb is not None and not isinstance(perturb, bool | np.bool_):
        raise TypeError(
            f"perturb={perturb!r} is no Python bool: pass None, or a Python bool "
            f"such as bool(sam.due(opt_state)). It chooses which program is compiled."
        )
    if perturb is not None and not perturb and method.perturbs_at_start:
        raise ValueError(
            "perturb=False, but this method's first gradient is already perturbed: pass perturb=None or True."
        )


def check_visible(updates: Grads, params: Params, oracle: Any, grad_fn: Any) -> None:
    """Refuses a step inside `optax.masked` or `optax.partition` that does not know the full parameters.

    And one that hands on the parameters as the gradient of what is hidden.
    """
    if not trees.has_masked(params):
        return
    if grad_fn is not None:
        raise ValueError(
            "grad_fn is given inside optax.masked or optax.partition, where the full "
            "parameters are out of sight: pass the oracle of value_and_grad, or "
            "oracle=Oracle(losses, batch, params=params)."
        )
    if oracle.params is None:
        raise ValueError(
            "oracle.params=None inside optax.masked or optax.partition, where the full "
            "parameters are out of sight: pass oracle=Oracle(losses, batch, params=params)."
        )
    leaves = jax.tree.leaves(params)
    if leaves and all(u is x for u, x in zip(jax.tree.leaves(updates), leaves, strict=False)):
        raise ValueError(
            "updates are the params inside optax.masked or optax.partition, where the hidden leaves descend "
            "on what you pass as updates: pass the gradient, such as oracle.value_and_grad(params)[1]."
        )


def check_same_structure(params: Params, visible: Params) -> None:
    """Refuses parameters in `update` that are another tree than those of `value_and_grad`."""
    if not trees.has_masked(visible) and jax.tree.structure(params) != jax.tree.structure(visible):
        raise ValueError(
            f"params has the structure {jax.tree.structure(visible)} here, but the step began with "
            f"{jax.tree.structure(params)}: pass the same tree, and no optax.flatten around a "
            f"sharpness-aware method."
        )


_KEPT = ("due", "start", "direction", "gate", "ascent", "reuse")
_SEEN: set[Any] = set()
"""Methods, parameters and states that go together: a step outside of `jit` looks once."""


def check_state(method: Any, state: Any, params: Params) -> None:
    """Refuses a state with other parts than the method's: that of another method, or of other arguments."""
    kept = {kind: getattr(trees.plain(state), kind) for kind in _KEPT}
    together = kind_of(method), _outline(params), _outline(kept)
    if _is_hashable(together) and together in _SEEN:
        return
    try:
        wanted = jax.eval_shape(method.init, params)
    except Exception:  # a piece of the user's that reads values: nobody can tell
        return
    for kind, own in kept.items():
        # A part without arrays says nothing: what restores a state may give another container.
        pair = own, getattr(wanted, kind)
        if any(map(jax.tree.leaves, pair)) and _outline(pair[0]) != _outline(pair[1]):
            got, of_method = (_described(part) for part in pair)
            raise ValueError(
                f"state.{kind} holds {got}, but this method keeps {of_method} for these parameters: it is "
                f"the state of another method, or of other arguments. Make one with tx.init(params). To "
                f"continue with the base optimizer, put its old state into the new one."
            )
    if len(_SEEN) > 1000:  # a program that makes its methods of functions of their own, again and again
        _SEEN.clear()
    if _is_hashable(together):
        _SEEN.add(together)


def _is_hashable(value: Any) -> bool:
    """Whether it can be looked up; a node of the parameters may have lists beside its arrays."""
    try:
        hash(value)
    except TypeError:
        return False
    return True


def _outline(tree: Any) -> tuple[Any, ...]:
    """What tells trees apart but for dtypes and values."""
    leaves, treedef = jax.tree.flatten(tree)
    return treedef, tuple(map(np.shape, leaves))


def _described(part: Any) -> str:
    shapes = list(_outline(part)[1])
    return f"a {type(part).__name__} with arrays of the shapes {short(shapes)}" if shapes else "no array"


_OF_BASES = ("mu", "nu", "trace", "sum_of_squares", "momentum")
"""What optimizers call the trees in their states."""


def check_first(opt_state: Any) -> None:
    """Refuses a method that stands last in its chain, behind the base optimizer.

    Two things tell in the state: nothing stands behind the method, and what stands before it has momenta, a
    schedule, or is a chain of its own, as `optax.sgd` and its kind are.
    """

    def is_base(part):
        has_tree = isinstance(part, tuple) and any(hasattr(part, name) for name in _OF_BASES)
        return has_tree or type(part) is tuple or isinstance(part, optax.ScaleByScheduleState)

    before, behind = _around_ours(opt_state) or ([], [])
    found = [part for part in jax.tree.leaves(before, is_leaf=is_base) if is_base(part)]
    if found and not behind:
        raise ValueError(
            "the method stands last in its chain, behind what looks like the base optimizer. It would take "
            "the steps of that optimizer for gradients: put the method first, "
            "optax.chain(optax_sam.sam(), optax.sgd(0.1))."
        )


def check_followed(method: Any, opt_state: Any) -> None:
    """Refuses a method that is all of the optimizer: its gradient would be added to the parameters."""
    if not method.is_optimizer and _ends_with_ours(opt_state):
        raise ValueError(
            "tx has no base optimizer behind the method, whose gradient would be added to the parameters, "
            "uphill: put one there, optax.chain(optax_sam.sam(), optax.sgd(0.1))."
        )


def _ends_with_ours(node: Any) -> bool:
    if isinstance(node, optax.InjectHyperparamsState | optax.InjectStatefulHyperparamsState):
        return _ends_with_ours(node.inner_state)
    if states.is_chain(node) and node:
        return _ends_with_ours(states.children(node)[-1])
    return states.is_ours(node)


def _around_ours(node: Any) -> tuple[list[Any], list[Any]] | None:
    """What stands before and behind the state of a method, in chains; None where it is not inside."""
    if states.is_ours(node):
        return [], []
    parts = states.children(node)
    for number, part in enumerate(parts):
        inside = _around_ours(part)
        if inside is not None and states.is_chain(node):
            return inside[0] + parts[:number], inside[1] + parts[number + 1 :]
        if inside is not None:
            return inside
    return None


def check_unconditional(method: Any, opt_state: Any) -> None:
    """Refuses a first gradient that is not the clean one where `conditionally_transform` may hand it on."""
    if not method.begins_clean and _is_conditional(opt_state):
        raise ValueError(
            "state is that of optax.conditionally_transform around a method whose first gradient is not that "
            "of the whole batch at the parameters: while the condition is false, the base optimizer would "
            "descend on that gradient. Pass the gradient of the whole batch and an oracle made by hand, "
            "tx.update(grads, state, params, oracle=optax_sam.Oracle(losses, batch)). With momentum_sam, "
            "take optax_sam.step and no condition, and give it a radius that is a schedule, 0 at first."
        )


def _is_conditional(node: Any) -> bool:
    """Whether a method stands inside a conditional that hands on the gradient as it is."""
    if isinstance(node, optax.ConditionallyTransformState):
        return any(map(states.is_ours, jax.tree.leaves(node, is_leaf=states.is_ours)))
    return not states.is_ours(node) and any(map(_is_conditional, states.children(node)))


REPAIRS = (
    "Either put it behind, optax.chain(sam, optax.MultiSteps(base, k)): every micro-batch then has its own "
    "perturbation (m-sharpness). Or take optax_sam.accumulated(sam, k): the perturbation is that of the big "
    "batch, which the program cuts into k slices."
)


def check_outside_multi_steps() -> None:
    """Refuses a method inside `optax.MultiSteps`: its last micro-batch alone would be descended on.

    Neither the state of the method nor its arguments tell. While a step is traced, the calls around it do.
    """
    frame: Any = sys._getframe()
    while frame is not None:
        if frame.f_code is optax.MultiSteps.update.__code__ and not _is_each_step(frame.f_locals["self"]):
            raise ValueError(
                "optax.MultiSteps around a sharpness-aware method would climb along the mean of several "
                f"micro-batches, and descend on the last one alone. {REPAIRS}"
            )
        frame = frame.f_back


def _is_each_step(wrapper: Any) -> bool:
    """Whether every micro-batch is a step of its own."""
    every = getattr(wrapper, "_every_k_schedule", None)
    try:
        return callable(every) and all(every(step) == 1 for step in (0, 1, 10**6))
    except Exception:  # a schedule of the user's, for arrays
        return False


def check_state_outside_multi_steps(opt_state: Any) -> None:
    """Refuses the state of `optax.MultiSteps` around one of ours; it does not tell of how many steps."""

    def is_wrapper(part):
        return isinstance(part, optax.MultiStepsState)

    for wrapper in filter(is_wrapper, jax.tree.leaves(opt_state, is_leaf=is_wrapper)):
        if any(map(states.is_ours, jax.tree.leaves(wrapper, is_leaf=states.is_ours))):
            raise ValueError(
                "state is that of optax.MultiSteps around a sharpness-aware method, which would "
                f"descend on the last micro-batch alone. {REPAIRS}"
            )
