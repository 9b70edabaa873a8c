"""Networks as pure functions, whichever library they are written with."""

import dataclasses
from typing import Any, Protocol

import jax
from flax import linen as nn


class Network(Protocol):
    """What the training step asks of a network; frozen, and equal where it is the same network."""

    def init(self, key: jax.Array, inputs: jax.Array) -> tuple[Any, Any]:
        """Parameters, and batch statistics (empty without batch norm), for inputs of this shape."""
        ...

    def apply(
        self, params: Any, batch_stats: Any, inputs: jax.Array, key: jax.Array | None
    ) -> tuple[Any, Any]:
        """Outputs and new batch statistics; with a key, as in training, which decides dropout."""
        ...


@dataclasses.dataclass(frozen=True)
class Linen:
    """A Flax Linen module that is called with inputs and `train`."""

    module: nn.Module

    def init(self, key: jax.Array, inputs: jax.Array) -> tuple[Any, Any]:
        """Initializes the module."""
        variables = self.module.init(key, inputs, train=False)
        return variables["params"], variables.get("batch_stats", {})

    def apply(
        self, params: Any, batch_stats: Any, inputs: jax.Array, key: jax.Array | None
    ) -> tuple[Any, Any]:
        """Applies the module; without a key, with the running statistics."""
        variables = {"params": params, "batch_stats": batch_stats}
        if key is None:
            return self.module.apply(variables, inputs, train=False), batch_stats
        outputs, changed = self.module.apply(
            variables, inputs, train=True, mutable=["batch_stats"], rngs={"dropout": key}
        )
        return outputs, changed.get("batch_stats", {})
