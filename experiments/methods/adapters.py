"""Methods of networks that train adapters: each takes one gradient a step."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from experiments.methods.baselines import check_number
from experiments.models.adapted import ADAPTERS
from optax_sam import lora

NOISE_SCALE = 0.05
"""Flat-LoRA's, where none is given."""


def flat_lora(base: optax.GradientTransformation, noise_scale: Any = NOISE_SCALE) -> Any:
    """The base optimizer: what is special is the loss, which `noise_at` makes noisy."""
    check_number("noise_scale", noise_scale, least=0)
    return base


def noise_at(method: str, noise_scale: Any, step: jax.Array, total_steps: int) -> jax.Array | None:
    """Flat-LoRA's noise: it rises from 0 to its last value along a cosine. Other methods have none.

    Args:
      method: its name.
      noise_scale: the last value.
      step: int32 scalar, steps done.
      total_steps: of the run.
    """
    if method != "flat_lora":
        return None
    return noise_scale * (1 - jnp.cos(jnp.pi * step / total_steps)) / 2


class BiLoRAState(NamedTuple):
    """State of `bi_lora`.

    Attributes:
      pair: of the adapters.
      others: of the base optimizer, for the parts that are trained whole.
    """

    pair: Any
    others: Any


def bi_lora(
    base: optax.GradientTransformation, rho: Any = 0.05, ascent_rate: Any = 0.1
) -> optax.GradientTransformation:
    """`optax_sam.lora.bi_lora` for the adapters, and the base optimizer for the parts that are trained whole.

    The climbing adapters take steps of plain SGD.
    """
    check_number("ascent_rate", ascent_rate, least=0)
    both = lora.bi_lora(base, optax.sgd(ascent_rate), rho)

    def init(params: Any) -> BiLoRAState:
        pair, others = _split(params)
        return BiLoRAState(both.init(pair), base.init(others))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, BiLoRAState]:
        grads, other_grads = _split(updates)
        pair, others = _split(params)
        moves, first = both.update(grads, state.pair, pair)
        new: Any = base.update(other_grads, state.others, others)
        return {ADAPTERS: moves} | new[0], BiLoRAState(first, new[1])

    return optax.GradientTransformation(init, update)


def _split(params: Any) -> tuple[Any, Any]:
    """The adapters, and all else."""
    return params[ADAPTERS], {name: part for name, part in params.items() if name != ADAPTERS}
