"""A whole training step from an optimizer and a loss, in one call."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_sam.arithmetic import trees
from optax_sam.engine import checks
from optax_sam.engine import state as states
from optax_sam.engine.aliases import Batch, OptState, Params
from optax_sam.engine.calls import NoDoorError, check_first, check_followed
from optax_sam.engine.oracle import Oracle
from optax_sam.engine.transformation import Found, Method, Probe, begin


def step(
    tx: optax.GradientTransformation, losses: Callable[..., Any], has_aux: bool = False
) -> Callable[..., tuple[Params, OptState, Any]]:
    """A training step: `params, opt_state, loss` from `params, opt_state, batch`.

    It does what `value_and_grad`, `tx.update` and `optax.apply_updates` do one after the other. You need no
    method at hand, since it is found in `tx`.

    Args:
      tx: an optimizer with one method of this library in it, first in an `optax.chain`, or inside
        `inject_hyperparams`, `partition`, `masked`.
      losses: `losses(params, batch, *args)` returns one loss per example, shape `[batch]` (or their mean, a
        scalar, for methods that need no losses of single examples), or `(losses, aux)` with `has_aux`.
      has_aux: whether `losses` returns a pair.

    Returns:
      A function `(params, opt_state, batch, *args, indices=None, weights=None, whole_batch=False, key=None,
      loss_scale=None)` that returns `params, opt_state, loss`, or `params, opt_state, (loss, aux)`. `args`
      go to every pass unchanged. The keywords are those of `Oracle`. What stands behind the method gets the
      loss as the extra argument `value`. Jit it, and donate what you do not keep:
      `jax.jit(step(tx, losses), donate_argnums=(0, 1))`.

    Raises:
      TypeError: `tx` is no Optax transformation, or `losses` is no function. In the step, what stands behind
        the method calculates with a typed key among the parameters.
      ValueError: in the step, `tx` holds no method of this library, several, one inside `optax.MultiSteps`,
        or one with no base optimizer behind it.

    Cost:
      That of the method. The loss is traced once.

    Example:
      >>> import jax, jax.numpy as jnp, optax, optax_sam
      >>> losses = lambda w, batch: jnp.square(batch["x"] @ w - batch["y"])
      >>> tx = optax.chain(optax_sam.sam(rho=0.05), optax.sgd(0.1))
      >>> train_step = jax.jit(optax_sam.step(tx, losses))
      >>> params = jnp.zeros(2)
      >>> batch = {"x": jnp.array([[1.0, 0.0], [0.0, 2.0]]), "y": jnp.array([1.0, 2.0])}
      >>> params, opt_state, loss = train_step(params, tx.init(params), batch)
      >>> print(loss, optax_sam.info(opt_state)["gradients"])
      2.5 2.0
    """
    checks.transformation("tx", tx, "optax.chain(optax_sam.sam(), optax.sgd(0.1))")
    checks.function("losses", losses, "losses(params, batch) -> [batch]")
    checks.boolean("has_aux", has_aux)
    # `MultiSteps` of one step passes extra arguments on, but is no such type.
    update = (tx if isinstance(tx, optax.MultiSteps) else optax.with_extra_args_support(tx)).update

    def train_step(
        params: Params,
        opt_state: OptState,
        batch: Batch,
        *args: Any,
        indices: Any = None,
        weights: Any = None,
        whole_batch: bool = False,
        key: Any = None,
        loss_scale: Any = None,
    ) -> tuple[Params, OptState, Any]:
        oracle = Oracle(
            losses,
            batch,
            params=params,
            has_aux=has_aux,
            indices=indices,
            weights=weights,
            whole_batch=whole_batch,
            key=key,
            loss_scale=loss_scale,
            args=args,
        )
        method = method_in(update, opt_state, params)
        found, grads, oracle = begin(method, oracle, opt_state, is_sure=True)
        loss = found[0] if has_aux else found
        with names_keys(params):
            updates, opt_state = update(grads, opt_state, params, oracle=oracle, value=loss)
        return moved(params, updates), opt_state, found

    return train_step


@contextlib.contextmanager
def names_keys(params: Params) -> Iterator[None]:
    """Says of what a base optimizer refuses that it may be a typed key among the parameters."""
    keys = [path for path, x in jax.tree.leaves_with_path(params) if trees.is_key(jnp.result_type(x))]
    try:
        yield
    except TypeError as error:
        if not keys:
            raise
        raise TypeError(
            f"params{jax.tree_util.keystr(keys[0])} is a typed key, with which optimizers of Optax cannot "
            f"calculate ({error}): keep it out of params and pass it behind the batch, or put optax.masked "
            f"around what stands behind the method."
        ) from error


def moved(params: Params, updates: Params) -> Params:
    """`optax.apply_updates`, which leaves typed keys as they are."""
    if not any(trees.is_key(jnp.result_type(x)) for x in jax.tree.leaves(params)):
        return optax.apply_updates(params, updates)
    return jax.tree.map(
        lambda x, u: x if trees.is_key(jnp.result_type(x)) else optax.apply_updates(x, u), params, updates
    )


def method_in(update: Callable[..., Any], opt_state: OptState, params: Params) -> Method:
    """The one method inside an optimizer. A probe in place of the oracle brings it out."""
    try:
        states.find(opt_state)
    except ValueError as error:
        raise ValueError(
            f"step needs an optimizer with one sharpness-aware method in it, but {error}"
        ) from None
    check_first(opt_state)
    try:
        update(params, opt_state, params, oracle=Probe(), value=jnp.zeros([]))
    except Found as found:
        check_followed(found.method, opt_state)
        return found.method
    except NoDoorError:
        pass
    raise ValueError(
        "tx holds the state of a sharpness-aware method, but does not hand extra arguments on to it: put the "
        "method first in an optax.chain, and put nothing around that chain that takes no extra arguments, "
        "such as optax.lookahead."
    )
