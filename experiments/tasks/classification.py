"""Classification of images, of sentences, or of series."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.data.arrays import Batch
from experiments.tasks.augment import augment, mixup

# Training images from which mean and deviation are taken, at most.
STATISTICS_EXAMPLES = 10_000


def image_statistics(train: Batch) -> Batch:
    """Mean and standard deviation of each channel: `mean`, `scale`, float32 [1, 1, 1, channels]."""
    images = train["image"][:STATISTICS_EXAMPLES]
    return {
        "mean": images.mean((0, 1, 2), np.float64, keepdims=True).astype(np.float32),
        "scale": images.std((0, 1, 2), np.float64, keepdims=True).astype(np.float32),
    }


def standardized(images: jax.Array, constants: Batch) -> jax.Array:
    """Images in float32, with mean 0 and deviation 1 over the training set."""
    return (images.astype(jnp.float32) - constants["mean"]) / constants["scale"]


@dataclasses.dataclass(frozen=True)
class Classification:
    """One label for each image, or for each row of `tokens` or `series`.

    Attributes:
      augment: random changes of the training images, in this order.
      mixup: both parameters of the beta distribution of the weight with which two training images,
        and their losses, are mixed; 0 for none.
      label_smoothing: share of the label's weight that is spread evenly over all labels, in training.
      inputs: what the network is given.
    """

    augment: tuple[str, ...] = ()
    mixup: float = 0.0
    label_smoothing: float = 0.0
    inputs: str = "image"

    def constants(self, train: Batch) -> Batch:
        """Mean and deviation of the training images."""
        return image_statistics(train) if self.inputs == "image" else {}

    def prepare(self, rows: Batch, constants: Batch, key: jax.Array | None) -> Batch:
        """Standardized images, in training augmented, and mixed with each other; tokens as they are."""
        batch = rows
        if self.inputs == "image":
            batch = batch | {"image": standardized(rows["image"], constants)}
        if key is not None and self.label_smoothing:
            batch = batch | {"smoothing": jnp.full([len(rows["label"]), 1], self.label_smoothing)}
        if key is None or self.inputs != "image":
            return batch
        augment_key, mixup_key = jax.random.split(key)
        batch |= {"image": augment(augment_key, batch["image"], self.augment)}
        return mixup(mixup_key, batch, self.mixup) if self.mixup else batch

    def losses(self, outputs: jax.Array, batch: Batch) -> jax.Array:
        """Cross entropy, in training with smoothed labels; of mixed images, mixed."""
        logits, smoothing = outputs.astype(jnp.float32), batch.get("smoothing")
        losses = cross_entropy(logits, batch["label"], smoothing)
        if "partner" not in batch:
            return losses
        others = cross_entropy(logits, batch["partner"], smoothing)
        return batch["weight"] * losses + (1 - batch["weight"]) * others

    def scores(self, outputs: jax.Array, batch: Batch) -> jax.Array:
        """1 where the largest output is the label's."""
        return (outputs.argmax(-1) == batch["label"]).astype(jnp.float32)


def cross_entropy(logits: jax.Array, labels: jax.Array, smoothing: Any = None) -> jax.Array:
    """One loss per example, [n]."""
    if smoothing is None:
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), smoothing)
    return optax.softmax_cross_entropy(logits, targets)
