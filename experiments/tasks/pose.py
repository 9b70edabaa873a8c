"""Human poses by SimCC (Li et al., 2022): where each joint lies is a class, for x and for y."""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from experiments.data.arrays import Batch
from experiments.tasks.classification import image_statistics, standardized


@dataclasses.dataclass(frozen=True)
class Pose:
    """Outputs are logits [n, joints, 2, bins]: x and y of each joint, in bins from the upper left corner.

    Images are square; several bins share a pixel. A batch holds `image`, `keypoints` (x and y in
    pixels), `visible` (0 for joints that do not count) and `head_size` (pixels).

    Attributes:
      sigma: deviation of the targets around the joint, in pixels.
    """

    sigma: float = 1.0

    inputs: str = "image"

    def constants(self, train: Batch) -> Batch:
        """Mean and deviation of the training images."""
        return image_statistics(train)

    def prepare(self, rows: Batch, constants: Batch, key: jax.Array | None) -> Batch:
        """Standardized; with a key, every image is moved a little.

        Nothing is mirrored: that would need to know whether left and right are told apart by the
        place of a limb, which changes its name, or by its looks, which do not.
        """
        rows = rows | {"image": standardized(rows["image"], constants)}
        if key is None:
            return rows
        count = len(rows["image"])
        parts = [rows[name] for name in ("image", "keypoints", "visible")]
        image, keypoints, visible = jax.vmap(moved)(jax.random.split(key, count), *parts)
        return rows | {"image": image, "keypoints": keypoints, "visible": visible}

    def losses(self, outputs: jax.Array, batch: Batch) -> jax.Array:
        """Mean cross entropy over the visible joints and both axes; 0 where none is visible.

        The targets are normal distributions around the joints, as in SimCC's second form.
        """
        pixels = pixels_of_bins(outputs.shape[-1], batch["image"].shape[1])
        away = batch["keypoints"][..., None] - jnp.expand_dims(pixels, (0, 1, 2))
        targets = jax.nn.softmax(-0.5 * (away / self.sigma) ** 2)
        entropies = optax.softmax_cross_entropy(outputs.astype(jnp.float32), targets)
        return visible_mean(entropies.mean(-1), batch["visible"])

    def scores(self, outputs: jax.Array, batch: Batch) -> jax.Array:
        """A person's PCKh@0.5: the share of the visible joints found within half a head's size.

        Their mean is over people. MPII's own is over all people's joints, without pelvis and thorax.
        """
        pixels = pixels_of_bins(outputs.shape[-1], batch["image"].shape[1])
        away = jnp.linalg.norm(pixels[outputs.argmax(-1)] - batch["keypoints"], axis=-1)
        found = away <= 0.5 * batch["head_size"][:, None]
        return visible_mean(found.astype(jnp.float32), batch["visible"])


def pixels_of_bins(bins: int, side: int) -> jax.Array:
    """Where the middle of each bin lies in an image of this side."""
    return (jnp.arange(bins, dtype=jnp.float32) + 0.5) * (side / bins)


def visible_mean(values: jax.Array, visible: jax.Array) -> jax.Array:
    """Means over the joints that count, [n, joints] to [n]."""
    return (values * visible).sum(-1) / jnp.maximum(visible.sum(-1), 1.0)


def moved(
    key: jax.Array, image: jax.Array, keypoints: jax.Array, visible: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """One image with its joints, moved by up to a twelfth of its side (4 pixels of 48); zeros come in."""
    side = image.shape[0]
    reach = max(1, side // 12)
    right, down = by = jax.random.randint(key, (2,), -reach, reach + 1)
    padded = jnp.pad(image, ((reach, reach), (reach, reach), (0, 0)))
    image = jax.lax.dynamic_slice(padded, (reach - down, reach - right, 0), image.shape)
    keypoints = keypoints + by.astype(keypoints.dtype)[None]
    inside = ((keypoints >= 0) & (keypoints < side)).all(-1)
    return image, keypoints, visible * inside.astype(visible.dtype)
