"""MPII Human Pose (Andriluka et al., 2014), from its own files."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import scipy.io
from scipy.io.matlab import mat_struct

from experiments.data.arrays import Batch, Data, num_rows, rows
from experiments.data.stick_figures import JOINTS
from experiments.settings import SettingsError

ANNOTATIONS = "mpii_human_pose_v1_u12_1.mat"
SIDE = 64
TEST_EVERY = 8  # of the images with joints, whose people all go to the test part


class Person(NamedTuple):
    """One person of an image, in its pixels; the first pixel's middle is (0.5, 0.5).

    Attributes:
      corner: upper left of the square that is cut out, whole numbers.
      length: of its sides.
      keypoints: [16, 2].
      visible: [16], 1 for joints that are annotated, hidden ones included.
      head_size: 0.6 times the diagonal of the head's box, as in PCKh.
    """

    corner: np.ndarray
    length: int
    keypoints: np.ndarray
    visible: np.ndarray
    head_size: float


def mpii(folder: Path | None, side: int = SIDE) -> Data:
    """Every person with annotated joints, cut out: arrays as of `stick_figures`, images in colour.

    The joints of MPII's test images are not public: every eighth of the others is for testing.
    """
    if folder is None or not ((folder / ANNOTATIONS).is_file() and (folder / "images").is_dir()):
        raise SettingsError(
            f"--data-dir {folder} does not hold {ANNOTATIONS} and the folder images: get both from "
            "http://human-pose.mpi-inf.mpg.de and give their folder"
        )
    images = list(annotated(folder / ANNOTATIONS))
    if len(images) < 2:
        raise SettingsError(
            f"--data-dir {folder}: {ANNOTATIONS} has joints for fewer than two images: give the whole one"
        )
    with ThreadPoolExecutor() as pool:  # reading JPEG files takes most of the time
        parts = list(pool.map(lambda image: cut_out(folder / "images" / image[0], image[1], side), images))
    everything = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    image = np.repeat(np.arange(len(images)), [num_rows(part) for part in parts])
    test = image % TEST_EVERY == 0
    train = rows(everything, ~test)
    return Data(train, rows(everything, test), num_classes=len(JOINTS), groups=image[~test])


def annotated(file: Path) -> Iterator[tuple[str, list[Person]]]:
    """Names of the training images, each with its people; images without any are left out."""
    release = scipy.io.loadmat(file, struct_as_record=False, squeeze_me=True)["RELEASE"]
    for image, training in zip(structs(release.annolist), np.atleast_1d(release.img_train), strict=True):
        people = [person(rectangle) for rectangle in structs(getattr(image, "annorect", None))]
        people = [found for found in people if found]
        if training and people:
            yield str(image.image.name), people


def structs(value: Any) -> list[Any]:
    """A Matlab array of structs: single ones come without a list, missing ones as an empty array."""
    return [item for item in np.atleast_1d(value) if isinstance(item, mat_struct)]


def numbers(struct: Any, names: str) -> np.ndarray:
    """Fields that should be numbers; what is missing or empty is NaN."""
    values = [np.ravel(getattr(struct, name, np.nan)) for name in names.split()]
    return np.array([value[0] if value.size else np.nan for value in values], np.float64)


def person(rectangle: Any) -> Person | None:
    """What is known of a person; None where joints, head box, scale or place are missing.

    Whether a joint `is_visible` is not asked: PCKh counts hidden ones too.
    """
    keypoints, visible = np.zeros((len(JOINTS), 2)), np.zeros(len(JOINTS))
    for points in structs(getattr(rectangle, "annopoints", None)):
        for point in structs(getattr(points, "point", None)):
            place = numbers(point, "x y") - 0.5  # Matlab's first pixel is 1
            if np.isfinite(place).all():
                keypoints[int(point.id)], visible[int(point.id)] = place, 1
    places = structs(getattr(rectangle, "objpos", None))
    centre = numbers(places[0], "x y") - 0.5 if places else np.array([np.nan] * 2)
    scale, *box = numbers(rectangle, "scale x1 y1 x2 y2")
    if not visible.any() or not np.isfinite([*centre, scale, *box]).all() or scale <= 0:
        return None
    centre[1] += 15 * scale  # as is usual: the annotated centre is above the body's, and feet were cut off
    length = round(1.25 * 200 * scale)
    corner = np.round(centre - length / 2).astype(int)
    head_size = 0.6 * np.hypot(box[2] - box[0], box[3] - box[1])
    return Person(corner, length, keypoints, visible, head_size)


def cut_out(file: Path, people: list[Person], side: int) -> Batch:
    """The people of one image, each in a square of this side; black outside the image."""
    try:
        with PIL.Image.open(file) as opened:
            image = opened.convert("RGB")
    except OSError as error:
        raise SettingsError(
            f"--data-dir: an image cannot be read ({error}): get MPII's images again"
        ) from None
    squares = [image.crop((*one.corner, *(one.corner + one.length))).resize((side, side)) for one in people]
    scale = np.array([side / one.length for one in people])
    corners = np.stack([one.corner for one in people])
    keypoints = (np.stack([one.keypoints for one in people]) - corners[:, None]) * scale[:, None, None]
    inside = ((keypoints >= 0) & (keypoints < side)).all(-1)
    visible = np.stack([one.visible for one in people]) * inside
    seen = visible.any(1)  # of nobody else is there anything to find
    everything = {
        "image": np.stack([np.asarray(square) for square in squares]),
        "keypoints": np.where(visible[..., None] > 0, keypoints, 0).astype(np.float32),
        "visible": visible.astype(np.float32),
        "head_size": (scale * [one.head_size for one in people]).astype(np.float32),
    }
    return rows(everything, seen)
