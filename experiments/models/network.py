"""Networks as pure functions, whichever library they are written with."""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import jax
from flax import linen as nn
from flax import nnx


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


@dataclasses.dataclass(frozen=True)
class NNX:
    """A Flax NNX module, called with inputs alone.

    Its variables travel as plain dictionaries, as Linen's do: the training step is a pure function.

    Attributes:
      make: builds the module from random streams.
    """

    make: Callable[[nnx.Rngs], Any]

    def init(self, key: jax.Array, inputs: jax.Array) -> tuple[Any, Any]:
        """Initializes the module."""
        del inputs
        _, params, others = nnx.split(self.make(nnx.Rngs(key)), nnx.Param, nnx.BatchStat)
        return nnx.to_pure_dict(params), nnx.to_pure_dict(others)

    def apply(
        self, params: Any, batch_stats: Any, inputs: jax.Array, key: jax.Array | None
    ) -> tuple[Any, Any]:
        """Applies the module, in training with a key and in evaluation without."""
        graph = nnx.graphdef(nnx.eval_shape(lambda: self.make(nnx.Rngs(0))))
        module = nnx.merge(graph, params, batch_stats)
        if key is None:
            module.eval()
            return module(inputs), batch_stats
        module.train()
        outputs = module(inputs)
        return outputs, nnx.to_pure_dict(nnx.state(module, nnx.BatchStat))
