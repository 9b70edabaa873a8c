"""Photographs of any size, as ImageNet's: decoded and cut to squares of one size in the reading processes."""

import io
import math
from typing import Any

import numpy as np
from PIL import Image

from experiments.data.arrays import Batch

SIDE = 224

Box = tuple[float, float, float, float]


def view(record: Any, random: np.random.Generator | None) -> Batch:
    """A square of the record's photograph: a random part of it with a generator, else the middle.

    Resampled with PIL's bilinear filter, which looks at all pixels when it makes an image smaller.
    """
    photograph = Image.open(io.BytesIO(record["image"])).convert("RGB")  # some are grey, or CMYK
    box = middle(*photograph.size) if random is None else random_part(*photograph.size, random)
    square = photograph.resize((SIDE, SIDE), Image.Resampling.BILINEAR, box)
    return {"image": np.asarray(square), "label": np.int32(record["label"])}


def middle(width: int, height: int) -> Box:
    """What is left when the shorter side is made 256 pixels long and 224 x 224 are cut from the middle."""
    side = min(width, height) * SIDE / 256
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def random_part(width: int, height: int, random: np.random.Generator) -> Box:
    """Inception's crop: 8 to 100 % of the area, 3:4 to 4:3; the middle where ten draws do not fit."""
    for _ in range(10):
        area = width * height * random.uniform(0.08, 1)
        ratio = math.exp(random.uniform(-1, 1) * math.log(4 / 3))
        part_width, part_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < part_width <= width and 0 < part_height <= height:
            left = int(random.integers(width - part_width, endpoint=True))
            top = int(random.integers(height - part_height, endpoint=True))
            return left, top, left + part_width, top + part_height
    return middle(width, height)
