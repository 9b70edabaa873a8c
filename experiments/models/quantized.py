"""Training with few bits: LSQ, learned step sizes (Esser et al., 2020), for any Linen network.

Weights and inputs of every convolution and dense layer are rounded to multiples of step sizes that
are parameters like the weights. Attention's projections are dense layers, too. The network itself
knows nothing of it: its layers' calls are intercepted.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

LAYERS = (nn.Conv, nn.Dense, nn.DenseGeneral)

FIRST_AND_LAST = 8
"""Bits of the layers that are called first and last."""

TINY = 1e-6
"""The least step size that is used: an optimizer's step, or a perturbation, may end below 0."""


@dataclasses.dataclass(frozen=True)
class Quantized:
    """A network whose layers compute with few bits.

    Parameters are {"lsq": {bits: {layer: {"kernel", "inputs"}}}, "network": the module's own}: all
    learned, and perturbed by sharpness-aware methods. The step sizes come first in the tree, whose last
    leaves vSAM looks at. Statistics are {"network": the module's own,
    "signed": {layer: 1 where the inputs of the first batch were not all 0 or more}}.

    Attributes:
      module: called with inputs and `train`; each layer's first positional argument is quantized.
      bits: of all layers but the first and the last.
    """

    module: nn.Module
    bits: int

    def init(self, key: jax.Array, inputs: jax.Array) -> tuple[Any, Any]:
        """Parameters and statistics; the step sizes suit these inputs, which are to be real ones."""
        variables = self.module.init(key, inputs, train=False)
        seen = self._layer_inputs(variables, inputs, key)
        kernels: dict[str, Any] = flatten_dict(variables["params"], sep="/")
        signed = {layer: (x < 0).any().astype(jnp.float32) for layer, x in seen.items()}
        steps: dict[str, Any] = {}
        for layer, x in seen.items():
            bits = FIRST_AND_LAST if layer in (next(iter(seen)), next(reversed(seen))) else self.bits
            steps.setdefault(str(bits), {})[layer] = {
                "kernel": first_step_size(kernels[f"{layer}/kernel"], levels_of(bits, 1.0)),
                "inputs": first_step_size(x, levels_of(bits, signed[layer])),
            }
        params = {"lsq": steps, "network": variables["params"]}
        return params, {"network": variables.get("batch_stats", {}), "signed": signed}

    def apply(
        self, params: Any, batch_stats: Any, inputs: jax.Array, key: jax.Array | None
    ) -> tuple[Any, Any]:
        """Outputs and new statistics; with a key, as in training, which decides dropout."""
        bits_and_steps = {
            layer: (int(bits), step) for bits, group in params["lsq"].items() for layer, step in group.items()
        }
        kernels: dict[str, Any] = flatten_dict(params["network"], sep="/")
        for layer, (bits, step) in bits_and_steps.items():
            kernel = kernels[f"{layer}/kernel"]
            kernels[f"{layer}/kernel"] = quantize(kernel, step["kernel"], levels_of(bits, 1.0), kernel.size)

        def with_few_bits(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
            if _is_layer(context):
                layer, x = _name(context), args[0]
                bits, step = bits_and_steps[layer]
                features = int(np.prod(x.shape[1:]))  # of an example
                x = quantize(x, step["inputs"], levels_of(bits, batch_stats["signed"][layer]), features)
                args = (x, *args[1:])
            return call(*args, **kwargs)

        variables = {"params": unflatten_dict(kernels, sep="/"), "batch_stats": batch_stats["network"]}
        with nn.intercept_methods(with_few_bits):
            outputs, changed = self.module.apply(
                variables, inputs, train=key is not None, mutable=["batch_stats"], rngs=_rngs(key)
            )
        network = changed.get("batch_stats", batch_stats["network"])
        return outputs, {"network": network, "signed": batch_stats["signed"]}

    def _layer_inputs(self, variables: Any, inputs: jax.Array, key: jax.Array) -> dict[str, jax.Array]:
        """What each layer is given in training, in the order of the first calls."""
        seen: dict[str, jax.Array] = {}

        def record(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
            if _is_layer(context):
                seen.setdefault(_name(context), args[0])
            return call(*args, **kwargs)

        with nn.intercept_methods(record):
            self.module.apply(variables, inputs, train=True, mutable=["batch_stats"], rngs=_rngs(key))
        return seen


def quantize(v: jax.Array, step: jax.Array, levels: tuple[Any, Any], count: int) -> jax.Array:
    """`v` in multiples of the step size, from -levels[0] to levels[1] of them, with LSQ's gradients.

    Args:
      v: weights, or the inputs of a layer.
      step: scalar; its gradient is divided by sqrt(count * levels[1]).
      levels: how many multiples there are below 0, and above.
      count: weights of the layer, or features of an example.
    """
    below, above = (jnp.asarray(level, step.dtype) for level in levels)
    scale = 1 / jnp.sqrt(count * above)
    used = jax.lax.stop_gradient(jnp.maximum(step, TINY)) + scale * (step - jax.lax.stop_gradient(step))
    x = v.astype(step.dtype) / used
    x = jnp.where((-below < x) & (x < above), x, jax.lax.stop_gradient(jnp.clip(x, -below, above)))
    x = x + jax.lax.stop_gradient(jnp.round(x) - x)
    return (x * used).astype(v.dtype)


def levels_of(bits: int, signed: Any) -> tuple[Any, Any]:
    """Q_N and Q_P: how many levels there are below 0 and above."""
    half = 2.0 ** (bits - 1)
    return half * signed, 2 * half - 1 - half * signed


def first_step_size(v: jax.Array, levels: tuple[Any, Any]) -> jax.Array:
    """Twice the mean size over the root of the levels above 0; 1 where there is nothing but zeros."""
    v = v.astype(jnp.promote_types(v.dtype, jnp.float32))
    mean = jnp.abs(v).mean()
    return jnp.where(mean > 0, 2 * mean / jnp.sqrt(jnp.asarray(levels[1], v.dtype)), 1)


def _is_layer(context: Any) -> bool:
    return isinstance(context.module, LAYERS) and context.method_name == "__call__"


def _name(context: Any) -> str:
    return "/".join(context.module.path)


def _rngs(key: jax.Array | None) -> dict[str, jax.Array]:
    return {} if key is None else {"dropout": key}
