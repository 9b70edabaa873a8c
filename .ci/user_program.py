"""A user's program as type checkers see it, against the installed package."""

from typing import assert_type

import jax
import optax

import optax_sam


def step(
    method: optax_sam.SharpnessAware, params: optax.Params, state: optax.OptState, batch: dict[str, jax.Array]
) -> tuple[optax.Params, optax.OptState]:
    """One training step."""
    tx = optax.chain(method, optax.sgd(0.1))

    def losses(params: optax.Params, batch: dict[str, jax.Array]) -> jax.Array:
        return batch["x"] @ params  # type: ignore

    _, grads, oracle = method.value_and_grad(losses)(params, batch, state=state)
    updates, state = tx.update(grads, state, params, oracle=oracle)
    return optax.apply_updates(params, updates), state


assert_type(optax_sam.sam(rho=0.05), optax_sam.SharpnessAware)
assert_type(optax_sam.rst(0.05, probability=optax.constant_schedule(0.5)), optax_sam.SharpnessAware)
composed = optax_sam.sharpness_aware(optax_sam.ascents.to_radius(0.05), gate=optax_sam.gates.every(5))
assert_type(composed, optax_sam.SharpnessAware)
