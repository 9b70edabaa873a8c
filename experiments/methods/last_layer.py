"""L2 of the last layer: what SAM does to wrong labels, for one gradient (Baek et al., arXiv 2405.03676)."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from experiments.methods.baselines import check_number
from experiments.settings import SettingsError

PENALTY = 1e-3
"""Where none is given."""


def last_layer_l2(base: optax.GradientTransformation, penalty: Any = PENALTY) -> Any:
    """The base optimizer: what is special is the loss, see `with_penalty`."""
    check_number("penalty", penalty, least=0)
    return base


def penalty_of(method: str, numbers: Mapping[str, jax.Array]) -> Any:
    """The method's number, among those of a run. Other methods have none."""
    return numbers.get("penalty", PENALTY) if method == "last_layer_l2" else None


def with_penalty(apply: Callable[..., Any], penalty: Any) -> Callable[..., tuple[Any, jax.Array | None]]:
    """`apply`, and `penalty / 2 (||z||^2 + ||V||^2)` for each example.

    `z` are the inputs of the last dense layer, and `V` is its kernel.

    Args:
      apply: what calls a Flax Linen module on `n` examples.
      penalty: 0 or more. None adds nothing.

    Returns:
      A function that returns what `apply` returns, and the penalty, `float[n]`, or None.
    """
    if penalty is None:
        return lambda *args: (apply(*args), None)

    def penalized(*args: Any) -> tuple[Any, jax.Array]:
        seen = []

        def watch(method: Any, inputs: Any, kwargs: Any, context: Any) -> Any:
            if isinstance(context.module, nn.Dense) and context.method_name == "__call__":
                seen[:] = [inputs[0], context.module.variables["params"]["kernel"]]
            return method(*inputs, **kwargs)

        with nn.intercept_methods(watch):
            found = apply(*args)
        if not seen or seen[0].ndim != 2:
            raise SettingsError(
                "--method last_layer_l2 needs a network whose last dense layer gives the logits of an "
                "example: choose another --model or --method"
            )
        features, kernel = (jnp.square(x.astype(jnp.float32)) for x in seen)
        return found, 0.5 * penalty * (features.sum(1) + kernel.sum())

    return penalized
