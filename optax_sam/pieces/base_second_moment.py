"""The gradient over the root of the base optimizer's second moment, as Adam divides it."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from optax_sam.arithmetic import trees
from optax_sam.engine import checks
from optax_sam.engine import state as states
from optax_sam.engine.aliases import Grads, OptState, Params
from optax_sam.engine.hyperparameters import FixedPositive, FixedProbability, Scalar
from optax_sam.pieces.base_momentum import as_read, found_in_base, refuse_several
from optax_sam.pieces.bases import Direction, Step


@dataclasses.dataclass(frozen=True)
class Preconditioned(Direction):
    """See `preconditioned`."""

    decay: Scalar
    epsilon: Scalar
    read_second_moment: Callable[[OptState], Params] | None

    needs_oracle: ClassVar[bool] = True
    asks_anew: ClassVar[bool] = False

    def init(self, params: Params, key: jax.Array) -> Any:
        """The root of the moment, since float32 does not hold every square."""
        del key
        if self.read_second_moment is not None:  # no tree of its own is ever asked
            return ()
        return trees.map_inexact(lambda x: jnp.real(trees.widen(x)), trees.memory_like(params))

    def read(self, state: Any, step: Step) -> tuple[Grads, Any]:
        if step.oracle.opt_state is None:
            raise ValueError(
                "oracle was made by hand, and shows nothing of the base optimizer, whose second moment this "
                "method divides by: use optax_sam.step(tx, losses), or pass the oracle that "
                "value_and_grad(losses)(params, batch, state=opt_state) returns."
            )
        found = self._of_base(step)
        roots = state
        if found is not None:
            roots = trees.map_inexact(
                lambda v: jnp.sqrt(trees.widen(jnp.real(v))), trees.like_masked(step.grads, found)
            )

        def on_leaf(u, root):
            root = root.astype(jnp.real(u).dtype)
            epsilon = jnp.asarray(self.epsilon).astype(root.dtype)
            return trees.divide(u, root + jnp.maximum(epsilon, jnp.finfo(root.dtype).tiny))

        # Of length one before and after: neither the quotient nor its cast overflows.
        unit = trees.divide(trees.widen(step.grads), step.first.norm)
        divided = trees.map_inexact(on_leaf, unit, roots)
        return trees.cast_like(trees.divide(divided, trees.norm(divided)), step.grads), state

    def write(self, state: Any, step: Step) -> Any:
        if self._of_base(step) is not None:
            return state

        def on_leaf(root, g):
            kept, new = jnp.sqrt(self.decay), jnp.sqrt(1 - self.decay)
            return jnp.hypot(trees.times(kept, root), trees.times(new, jnp.abs(g).astype(root.dtype)))

        return trees.saturated(trees.map_inexact(on_leaf, state, trees.widen(step.descent)))

    def _of_base(self, step: Step) -> Params | None:
        opt_state, full = step.oracle.opt_state, step.oracle.params
        if self.read_second_moment is None:
            return second_moment_of_base(opt_state, full, step.params)[1]
        reader = self.read_second_moment
        return as_read(reader, "read_second_moment", "second moment", "nu", opt_state, full, step.params)


def preconditioned(
    decay: FixedProbability = 0.999,
    epsilon: FixedPositive = 1e-8,
    read_second_moment: Callable[[OptState], Params] | None = None,
) -> Preconditioned:
    """`g / (sqrt(v) + epsilon)`: the gradient as Adam divides it, `v` the base's second moment.

    `v` is that of the base optimizer before the step, if the optimizer state that `value_and_grad` was given
    holds one tree called `nu` (`nu_max` of AMSGrad) shaped like the parameters. Otherwise it is the
    direction's own, `v = decay v + (1 - decay) descent^2`.
    `directions.where_second_moment_is(opt_state, params)` tells which one is used.

    Args:
      decay: from 0 to 1, of its own.
      epsilon: above 0, in the units of the gradient.
      read_second_moment: `read_second_moment(opt_state)` returns the base optimizer's second moment, a tree
        like the parameters, in place of the search by name. Then the direction keeps none of its own.

    Raises:
      ValueError: in a step, `opt_state` holds several such trees, and `read_second_moment` must choose. Or
        the oracle was made by hand, and `opt_state` is out of sight.
    """
    checks.long_decay("decay", decay)
    checks.positive("epsilon", epsilon)
    if read_second_moment is not None:
        checks.function(
            "read_second_moment",
            read_second_moment,
            "read_second_moment(opt_state) -> tree like params, or None",
        )
    return Preconditioned(decay, epsilon, read_second_moment)


def where_second_moment_is(opt_state: OptState, params: Params) -> str:
    """Where `preconditioned` finds the base optimizer's second moment: a path into `opt_state`, or "own".

    Args:
      opt_state: the state of the whole optimizer.
      params: the parameters.

    Raises:
      ValueError: `opt_state` holds several.

    Example:
      >>> import jax.numpy as jnp, optax, optax_sam
      >>> tx = optax.chain(optax_sam.preconditioned_sam(0.1), optax.adam(1e-3))
      >>> print(optax_sam.directions.where_second_moment_is(tx.init(jnp.ones(2)), jnp.ones(2)))
      opt_state[1][0].nu
    """
    ours = [x for x in jax.tree.leaves(opt_state, is_leaf=states.is_ours) if states.is_ours(x)]
    params = trees.plain(params)
    visible = trees.hidden_as_in(trees.plain(ours), params)
    return second_moment_of_base(opt_state, params, visible)[0]


def second_moment_of_base(opt_state: OptState, params: Params, visible: Params) -> tuple[str, Params | None]:
    """The one second moment like the parameters inside an optimizer's state, and where. Refuses several."""
    found = found_in_base(opt_state, params, visible, ("nu", "nu_max"))
    # AMSGrad keeps the largest moment so far beside the moment, and divides by the largest.
    paths = {path for path, _ in found}
    found = [(path, tree) for path, tree in found if f"{path}_max" not in paths]
    refuse_several(found, "second moments", "read_second_moment")
    return found[0] if found else ("own", None)
