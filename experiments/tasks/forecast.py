"""Forecasting of several channels at once, judged by the mean squared error."""

import dataclasses

import jax
import jax.numpy as jnp

from experiments.data.arrays import Batch


@dataclasses.dataclass(frozen=True)
class Forecast:
    """Outputs are the `future` [n, hours, channels] of each `past`; both are standardized before."""

    inputs: str = "past"

    def constants(self, train: Batch) -> Batch:
        """Nothing."""
        del train
        return {}

    def prepare(self, rows: Batch, constants: Batch, key: jax.Array | None) -> Batch:
        """As they are."""
        del constants, key
        return rows

    def losses(self, outputs: jax.Array, batch: Batch) -> jax.Array:
        """Mean squared error over hours and channels."""
        return jnp.square(outputs.astype(jnp.float32) - batch["future"]).mean((1, 2))

    def scores(self, outputs: jax.Array, batch: Batch) -> None:
        """None: a forecast is not right or wrong."""
        del outputs, batch
