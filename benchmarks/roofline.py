"""How fast a step could be at best: its products, its memory traffic and its exchanges at published rates.

Nothing is measured here. The longest of the three times limits the step; a real one takes longer.
"""

import math
from typing import Any, NamedTuple

from jax.extend.core import jaxprs_in_params


class Rates(NamedTuple):
    """What a vendor publishes of one chip.

    Attributes:
      flops: bfloat16 products, FLOP/s, without sparsity.
      memory: bytes/s.
      links: bytes/s in one direction, all links together.
    """

    flops: float
    memory: float
    links: float


RATES = {
    "h100": Rates(989e12, 3.35e12, 450e9),
    "v5e": Rates(197e12, 819e9, 200e9),
    "v5p": Rates(459e12, 2765e9, 600e9),
    "v6e": Rates(918e12, 1640e9, 448e9),
}
"""https://www.nvidia.com/en-us/data-center/h100, https://docs.cloud.google.com/tpu/docs/v5e, /v5p, /v6e."""


def product_flops(jaxpr: Any) -> float:
    """FLOPs of matrix products and convolutions on all chips, two for each multiplication and addition.

    A loop's body counts as often as it runs, where that is known; of a conditional the dearest branch counts.
    """
    total = 0.0
    for equation in jaxpr.eqns:
        name, parameters = equation.primitive.name, equation.params
        inner = [product_flops(x) for x in jaxprs_in_params(parameters)]
        if name == "dot_general":
            (axes, _), _ = parameters["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            total += 2 * equation.outvars[0].aval.size * math.prod(shape[axis] for axis in axes)
        elif name == "conv_general_dilated":
            kernel, numbers = equation.invars[1].aval.shape, parameters["dimension_numbers"].rhs_spec
            total += 2 * equation.outvars[0].aval.size * math.prod(kernel) / kernel[numbers[0]]
        elif name == "cond":
            total += max(inner)
        elif name == "scan":
            total += sum(inner) * parameters["length"]
        else:
            total += sum(inner) * (parameters["mesh"].size if name == "shard_map" else 1)
    return total


def limits(machine: str, flops: float, size: float, sent: float) -> dict[str, float]:
    """Milliseconds of one chip at best, for products, memory and exchanges.

    Args:
      machine: such as `v5e:16x16`.
      flops: of one chip.
      size: bytes that are read or written at least.
      sent: bytes that one chip sends, and receives, at least.
    """
    rates = RATES[machine.partition(":")[0]]
    times = {"products": flops / rates.flops, "memory": size / rates.memory, "exchanges": sent / rates.links}
    return {name: 1e3 * seconds for name, seconds in times.items()}
