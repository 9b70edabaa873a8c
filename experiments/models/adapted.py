"""A pretrained network of which low-rank adapters are trained, and the parts that are new."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import linen as nn
from flax import traverse_util

from experiments.models.network import Linen, Network
from optax_sam import lora

ADAPTERS = "adapters"
MATRICES = ("query", "key", "value", "out")
"""Layers that get an adapter, by their names: those of the attention."""


@dataclasses.dataclass(frozen=True)
class Adapted:
    """A Linen module with adapters beside the matrices of its attention.

    Its parameters are `{"adapters": {path: Adapter}}` and the module's parts that are not pretrained.

    Attributes:
      module: is called with inputs and `train`.
      rank: of the adapters.
      pretrained: names of the module's parts that stay as they are.
      paired: whether there are two trees of adapters, as `optax_sam.lora.bi_lora` trains them. Evaluation
        leaves out the second one.
      frozen: these parts' parameters. They are arguments of the programs: see `completed`.
      noise_scale: of Flat-LoRA's noise on the merged matrices, in training; None is no noise.
    """

    module: nn.Module
    rank: int
    pretrained: tuple[str, ...]
    paired: bool = False
    frozen: Any = None
    noise_scale: Any = None

    def init(self, key: jax.Array, inputs: jax.Array) -> tuple[Any, Any]:
        """New adapters, whose products are zero, and the new parts as the module draws them."""
        params, batch_stats = Linen(self.module).init(key, inputs)
        trees = [
            {
                path: lora.adapter(jax.random.fold_in(tree_key, number), *size, self.rank)
                for number, (path, size) in enumerate(sizes(params).items())
            }
            for tree_key in jax.random.split(jax.random.fold_in(key, 1), 1 + self.paired)
        ]
        new = {name: part for name, part in params.items() if name not in self.pretrained}
        return {ADAPTERS: lora.Pair(*trees) if self.paired else trees[0]} | new, batch_stats

    def apply(
        self, params: Any, batch_stats: Any, inputs: jax.Array, key: jax.Array | None
    ) -> tuple[Any, Any]:
        """Applies the module, the adapters at work in each layer that has one."""
        adapters, new = params[ADAPTERS], {name: params[name] for name in params if name != ADAPTERS}
        trees = tuple(adapters) if self.paired else (adapters,)
        used = trees if key is not None else trees[:1]
        with nn.intercept_methods(self.adapting(used, key)):
            return Linen(self.module).apply(self.frozen | new, batch_stats, inputs, key)

    def adapting(self, trees: tuple[Any, ...], key: jax.Array | None) -> Callable[..., Any]:
        """What Flax calls in the place of each method of each layer."""
        numbers = {path: number for number, path in enumerate(trees[0])}
        noisy = self.noise_scale is not None and key is not None

        def call(method: Any, args: Any, kwargs: Any, context: Any) -> Any:
            layer = context.module
            path = "/".join(layer.path)
            if context.method_name != "__call__" or path not in numbers:
                return method(*args, **kwargs)
            kernel, bias = layer.variables["params"]["kernel"], layer.variables["params"]["bias"]
            own = tuple(tree[path] for tree in trees)
            inputs = own[0].lora_a.shape[0]
            rows = args[0].reshape(*args[0].shape[:2], inputs)  # [n, length, inputs]
            rows, kernel, bias, own = cast((rows, kernel.reshape(inputs, -1), bias, own), layer.dtype)
            if noisy:
                own_key = jax.random.fold_in(key, numbers[path])
                outputs = lora.noisy_product(rows, kernel, own[0], own_key, self.noise_scale)
            else:
                outputs = lora.product(rows, kernel, *own)
            return outputs.reshape(*rows.shape[:2], *bias.shape) + bias

        return call


def completed(network: Network, frozen: Any, noise_scale: Any = None) -> Network:
    """The network with the parameters that are not trained; most networks train all, and stay as they are."""
    if not isinstance(network, Adapted):
        return network
    return dataclasses.replace(network, frozen=frozen, noise_scale=noise_scale)


def sizes(params: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Inputs and outputs of each layer that gets an adapter, as one matrix, by the layers' paths."""
    flat: dict[str, Any] = traverse_util.flatten_dict(params, sep="/")  # pyrefly: ignore[bad-assignment]
    found = {}
    for path, kernel in flat.items():
        *_, layer, last = ("", *path.split("/"))
        if layer in MATRICES and last == "kernel":
            path = path.removesuffix("/kernel")
            outputs = math.prod(flat[f"{path}/bias"].shape)  # a bias has the shape of the outputs
            found[path] = (kernel.size // outputs, outputs)
    return found


def cast(tree: Any, dtype: Any) -> Any:
    """All arrays in the dtype that a layer computes in."""
    return jax.tree.map(lambda x: x.astype(dtype), tree)
