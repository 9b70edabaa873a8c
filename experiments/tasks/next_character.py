"""Language modelling by characters, judged by the cross entropy."""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from experiments.data.arrays import Batch


@dataclasses.dataclass(frozen=True)
class NextCharacter:
    """Outputs are logits [n, length, characters] of the character that follows each."""

    inputs: str = "given"

    def constants(self, train: Batch) -> Batch:
        """Nothing."""
        del train
        return {}

    def prepare(self, rows: Batch, constants: Batch, key: jax.Array | None) -> Batch:
        """Stretches of text [n, length + 1] become `given` and what is to `follow`, each one shorter."""
        del constants, key
        text = rows["text"].astype(jnp.int32)
        return rows | {"given": text[:, :-1], "follow": text[:, 1:]}

    def losses(self, outputs: jax.Array, batch: Batch) -> jax.Array:
        """Mean cross entropy over the characters of each stretch, in nats."""
        logits = outputs.astype(jnp.float32)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["follow"]).mean(-1)

    def scores(self, outputs: jax.Array, batch: Batch) -> None:
        """None: what counts is the cross entropy."""
        del outputs, batch
