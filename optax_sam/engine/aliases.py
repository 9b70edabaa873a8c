"""What trees are called in signatures."""

from typing import Any

Params = Any
"""A pytree of arrays: the parameters, or a point like them."""

Grads = Any
"""A tree like the parameters: a gradient, a direction, a perturbation, a descent."""

Batch = Any
"""A pytree of arrays whose first axis counts the examples."""

OptState = Any
"""The state of any Optax transformation."""

PieceState = Any
"""The state of one piece: a pytree whose structure, shapes and dtypes are final at `init`."""
