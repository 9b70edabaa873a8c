"""A loss through a network's outputs, whose gradient by them is taken elsewhere."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from optax_sam.arithmetic import trees
from optax_sam.engine.aliases import Params


@dataclasses.dataclass(frozen=True)
class ThroughOutputs:
    """`l(z(w'))`, with the gradient `J(w')^T dl/dz (z(w))`.

    Attributes:
      outputs: `z`, `outputs(params, batch, *args)`.
      losses: `l`, `losses(outputs, batch)`.
    """

    outputs: Callable[..., Any]
    losses: Callable[[Any, Any], Any]

    def __call__(self, params: Params, batch: Any, clean: Params, *args: Any) -> Any:
        """The losses at `params`, `w'`; `clean` is `w`."""
        still = self.outputs(clean, *trees.anew((batch, *args)))
        moved = self.outputs(params, batch, *args)
        losses = self.losses(moved, trees.anew(batch))
        at_clean = self.losses(_along(moved, still), trees.anew(batch))
        return _along(at_clean, jax.lax.stop_gradient(losses))


def _along(moving: Any, values: Any) -> Any:
    """`values`, which change as `moving` does."""
    return jax.tree.map(lambda m, v: _moved(m, v) if trees.is_inexact(m) else v, moving, values)


@jax.custom_jvp
def _moved(moving: jax.Array, value: jax.Array) -> jax.Array:
    del moving
    return value


@_moved.defjvp
def _moved_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    return primals[1], tangents[0]
