"""Whole optimizers with a method inside: what a chain alone cannot say.

Each is a `SharpnessAware`: its `value_and_grad` is that of the method inside.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_sam.arithmetic import trees
from optax_sam.engine import checks
from optax_sam.engine import state as states
from optax_sam.engine.arrays import as_arrays
from optax_sam.engine.calls import check_call, check_state, check_visible
from optax_sam.engine.hyperparameters import NotNegative, ScalarOrSchedule, at_step
from optax_sam.engine.objective import like_params
from optax_sam.engine.oracle import Oracle, Started, started
from optax_sam.engine.transformation import Method, SharpnessAware
from optax_sam.wrappers.wrapper import method_of


@dataclasses.dataclass(frozen=True, eq=False)
class FollowedBy:
    """See `followed_by`."""

    inner: Method
    base: optax.GradientTransformationExtraArgs

    def init(self, params: Any) -> Any:
        return self.inner.init(params), self.base.init(params)

    def update(self, updates: Any, state: Any, params: Any = None, **extra_args: Any) -> tuple[Any, Any]:
        step = states.find(state[0]).step
        updates, extra_args = self._begun(updates, state, params, extra_args)
        descent, own = self.inner.update(updates, state[0], params, **extra_args)
        updates, base = self.base.update(descent, state[1], params, **extra_args | {"step": step})
        return updates, (own, base)

    def _begun(self, updates: Any, state: Any, params: Any, extra_args: Any) -> tuple[Any, Any]:
        """The first gradient, and the arguments with the oracle that has begun the step.

        One made by hand begins here, where the momentum of the base is in sight.
        """
        oracle = extra_args.get("oracle")
        if not isinstance(oracle, Oracle) or params is None:
            return updates, extra_args
        perturb = extra_args.get("perturb")
        check_call(self.inner, oracle, extra_args.get("grad_fn"), perturb)
        check_visible(updates, params, oracle, None)
        plain = as_arrays("params", trees.plain(params))
        grads = like_params("grads", updates, plain)
        check_state(self.inner, states.find(state[0]), plain)
        first, begun, given = self.inner.started(grads, state[0], plain, params, oracle, perturb, state)
        updates = jax.tree.unflatten(jax.tree.structure(updates), jax.tree.leaves(first))
        begun_step = Started(self.inner, given, begun, perturb)
        return updates, extra_args | {"oracle": started(oracle, begun_step)}

    @property
    def of_step(self) -> Method:
        return self.inner

    def due(self, state: Any, grads: Any) -> jax.Array:
        return self.inner.due(state, grads)


def followed_by(method: SharpnessAware, base: optax.GradientTransformation) -> SharpnessAware:
    """`optax.chain(method, base)` that keeps `value_and_grad` and `due` of the method.

    The base gets the step count as the extra argument `step`.

    Args:
      method: a sharpness-aware method.
      base: any Optax transformation.

    Returns:
      A `SharpnessAware` whose updates are those of `base`.

    Raises:
      TypeError: `method` is none of this library's, or `base` is no Optax transformation.
    """
    checks.transformation("base", base, "optax.sgd(0.1)")
    optimizer: Any = FollowedBy(method_of(method), optax.with_extra_args_support(base))
    return SharpnessAware(optimizer.init, optimizer.update)


@dataclasses.dataclass(frozen=True, eq=False)
class Decoupled(FollowedBy):
    """See `decoupled`."""

    learning_rate: ScalarOrSchedule

    def init(self, params: Any) -> Any:
        if any(map(jnp.iscomplexobj, jax.tree.leaves(trees.plain(params)))):
            raise ValueError(
                "params has complex leaves, whose gradients `base` may turn downhill or not: give "
                "`decoupled` their real and imaginary parts as leaves of their own."
            )
        own, base = super().init(params)
        is_wrapper = lambda part: isinstance(part, optax.MultiStepsState)  # noqa: E731
        if any(map(is_wrapper, jax.tree.leaves(base, is_leaf=is_wrapper))):
            raise ValueError(
                "base holds optax.MultiSteps, and sharpness would count in its last micro-step alone: "
                "leave it out, and give decoupled the method accumulated(method, k)."
            )
        return own, base

    def update(self, updates: Any, state: Any, params: Any = None, **extra_args: Any) -> tuple[Any, Any]:
        if params is None:
            raise ValueError("params=None: pass the parameters, update(grads, state, params, ...).")
        own, base = state
        step = states.find(own).step
        updates, extra_args = self._begun(updates, state, params, extra_args)
        descent, own = self.inner.update(updates, own, params, **extra_args)
        based, base = self.base.update(updates, base, params, **extra_args | {"step": step})
        rate = at_step(self.learning_rate, step)

        def on_leaf(u, d, g):
            return jnp.where(jnp.any(u != 0), u - trees.times(rate, d - g), u)

        return trees.map_wide(on_leaf, based, descent, updates), (own, base)


def decoupled(
    method: SharpnessAware, base: optax.GradientTransformation, learning_rate: NotNegative
) -> SharpnessAware:
    """The base optimizer sees the first gradient, and what sharpness adds bypasses it.

    With `g` the first gradient and `S` what `method` makes of it, the update is that of `base` for `g`, minus
    `learning_rate (S - g)`. Neither momentum nor preconditioner touch the sharpness part, as with decoupled
    weight decay. With `wsam` this is the form of WSAM that its authors prefer.

    A leaf that `base` does not move stays where it is, such as one that `optax.set_to_zero` freezes. What
    `base` clips or skips, as `optax.apply_if_finite` does, it decides by the first gradient and for its own
    update.

    Args:
      method: a sharpness-aware method that starts at the parameters, such as `wsam()`.
      base: an Optax optimizer. Its updates are added to the parameters.
      learning_rate: of the sharpness part. In the paper it is that of `base`. A number, or a schedule of the
        step count.

    Returns:
      A `SharpnessAware` that is the whole optimizer.

    Raises:
      TypeError: `method` is none of this library's, or `base` is no Optax transformation.
      ValueError: `learning_rate` is negative. A parameter is complex. `base` holds
        `optax.MultiSteps`, between whose steps the sharpness part would be lost.

    Cost:
      That of `method` and `base`.

    Example:
      >>> import optax, optax_sam
      >>> base = optax.sgd(0.1, momentum=0.9)
      >>> tx = optax_sam.decoupled(optax_sam.wsam(0.05), base, learning_rate=0.1)

    References:
      Yun Yue, Jiadi Jiang, Zhiling Ye, Ning Gao, Yongchao Liu, Ke Zhang, `Sharpness-Aware Minimization
      Revisited: Weighted Sharpness as a Regularization Term <https://arxiv.org/abs/2305.15817>`_, 2023.
    """
    checks.transformation("base", base, "optax.sgd(0.1)")
    checks.number_or_schedule("learning_rate", learning_rate, low=0)
    optimizer: Any = Decoupled(method_of(method), optax.with_extra_args_support(base), learning_rate)
    return SharpnessAware(optimizer.init, optimizer.update)
