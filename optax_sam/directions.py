"""What points uphill: the direction of the perturbation."""

import dataclasses
from typing import Any

from optax_sam.pieces import Context


@dataclasses.dataclass(frozen=True)
class Gradient:
    """See `gradient`."""

    def init(self, params: Any) -> tuple[()]:
        del params
        return ()

    def read(self, state: Any, grads: Any, context: Context) -> Any:
        del state, context
        return grads

    def write(self, state: Any, grads: Any, descent: Any, context: Context) -> Any:
        del grads, descent, context
        return state


def gradient() -> Gradient:
    """The first gradient of the step, `g`."""
    return Gradient()
