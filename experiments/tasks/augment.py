"""Random crops, flips, cutout and mixup, drawn on the device inside the training step."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from experiments.data.arrays import Batch


def augment(key: jax.Array, images: jax.Array, names: Sequence[str]) -> jax.Array:
    """Applies the named changes in order, each drawn for every image on its own.

    Args:
      key: decides all draws; the same key gives the same images.
      images: float [n, height, width, channels], standardized, so that 0 is the mean colour.
      names: out of `crop`, `flip`, `cutout`.

    Returns:
      Images of the same shape and dtype.
    """
    for number, name in enumerate(names):
        keys = jax.random.split(jax.random.fold_in(key, number), len(images))
        images = jax.vmap(AUGMENTATIONS[name])(keys, images)
    return images


def crop(key: jax.Array, image: jax.Array) -> jax.Array:
    """Moves the image by up to an eighth of its side (4 pixels of 32); zeros come in."""
    pad = max(1, image.shape[0] // 8)
    padded = jnp.pad(image, ((pad, pad), (pad, pad), (0, 0)))
    top, left = jax.random.randint(key, (2,), 0, 2 * pad + 1)
    return jax.lax.dynamic_slice(padded, (top, left, 0), image.shape)


def flip(key: jax.Array, image: jax.Array) -> jax.Array:
    """Mirrors every second image left to right."""
    return jnp.where(jax.random.bernoulli(key), image[:, ::-1], image)


def cutout(key: jax.Array, image: jax.Array) -> jax.Array:
    """Zeroes a square in every second image, half as wide as the image (16 pixels of 32).

    Its centre is anywhere in the image, so that the square may stick out.
    """
    height, width, _ = image.shape
    centre_key, chance_key = jax.random.split(key)
    row, column = jax.random.randint(centre_key, (2,), 0, jnp.array([height, width]))
    inside_rows = jnp.abs(2 * (jnp.arange(height) - row) + 1) < height // 2
    inside_columns = jnp.abs(2 * (jnp.arange(width) - column) + 1) < width // 2
    hole = inside_rows[:, None, None] & inside_columns[None, :, None]
    return jnp.where(hole & jax.random.bernoulli(chance_key), 0, image)


def mixup(key: jax.Array, batch: Batch, alpha: float) -> Batch:
    """Mixes every image with the one before it: `weight x_i + (1 - weight) x_(i-1)`, one weight for all.

    Args:
      key: decides the weight, drawn from Beta(alpha, alpha).
      batch: `image` and `label`, in random order.
      alpha: 0.2 is usual.

    Returns:
      The batch with mixed images, `partner` (the other image's label) and `weight` (float32 [n]).
    """
    weight = jax.random.beta(key, alpha, alpha)
    image, label = batch["image"], batch["label"]
    mixed = weight * image + (1 - weight) * jnp.roll(image, 1, axis=0)
    weights = jnp.full(len(label), weight)
    return batch | {"image": mixed, "partner": jnp.roll(label, 1), "weight": weights}


AUGMENTATIONS: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "crop": crop,
    "flip": flip,
    "cutout": cutout,
}
