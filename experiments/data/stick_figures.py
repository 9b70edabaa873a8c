"""Drawn people with MPII's 16 joints: poses that need no download."""

import numpy as np

from experiments.data.arrays import Batch, Data, rows

TRAIN_EXAMPLES, TEST_EXAMPLES = 6000, 1000
SIDE = 48
BLOCK = 25  # figures drawn at once: with those in the processor's cache, three times as fast as 500

# MPII's joints, in its order.
JOINTS = (
    "right ankle", "right knee", "right hip", "left hip", "left knee", "left ankle",
    "pelvis", "thorax", "upper neck", "head top",
    "right wrist", "right elbow", "right shoulder", "left shoulder", "left elbow", "left wrist",
)  # fmt: skip
PELVIS, NECK, HEAD = 6, 8, 9

# From the pelvis outwards: joint, the joint it hangs on, length in body heights, and the range of its
# angle to the bone before, in degrees; for limbs, positive is up and away from the body.
BONES = (
    (7, 6, 0.28, -10, 10),
    (8, 7, 0.05, -5, 5),
    (9, 8, 0.17, -20, 20),
    (12, 7, 0.12, -95, -80), (11, 12, 0.17, -110, 70), (10, 11, 0.16, -45, 120),
    (13, 7, 0.12, -95, -80), (14, 13, 0.17, -110, 70), (15, 14, 0.16, -45, 120),
    (2, 6, 0.08, -95, -85), (1, 2, 0.24, -110, -35), (0, 1, 0.23, -75, 10),
    (3, 6, 0.08, -95, -85), (4, 3, 0.24, -110, -35), (5, 4, 0.23, -75, 10),
)  # fmt: skip
ACROSS = (12, 13, 2, 3)  # joints whose bones are short in a body seen from the side
RIGHT, LEFT = (0, 1, 2, 10, 11, 12), (3, 4, 5, 13, 14, 15)

# What is drawn, in this order: trunk, and limbs darker (right) or brighter (left) than the background.
TRUNK = ((6, 7), (2, 3), (12, 13), (7, 8))
LIMBS = ((2, 1), (1, 0), (12, 11), (11, 10), (3, 4), (4, 5), (13, 14), (14, 15))
STRAY_LINES = 3

Lines = tuple[np.ndarray, np.ndarray, np.ndarray]  # ends, radii, shades


def stick_figures() -> Data:
    """6,000 training and 1,000 test figures, each with its 16 joints.

    `image` is uint8 [n, 48, 48, 1]; `keypoints` float32 [n, 16, 2] are x and y in pixels from the
    upper left corner; `visible` float32 [n, 16] is 0 for joints outside the image, while hidden ones
    count, as in MPII; `head_size` float32 [n] is the distance from head top to upper neck in pixels.

    People face the viewer or turn away, so that only brightness tells their left from their right.
    """
    random = np.random.default_rng(0)
    everything = figures(random, TRAIN_EXAMPLES + TEST_EXAMPLES)
    train, test = slice(TRAIN_EXAMPLES), slice(TRAIN_EXAMPLES, None)
    return Data(rows(everything, train), rows(everything, test), num_classes=len(JOINTS))


def figures(random: np.random.Generator, number: int) -> Batch:
    """So many figures as a batch."""
    keypoints = placed(random, poses(random, number))
    head_size = np.linalg.norm(keypoints[:, HEAD] - keypoints[:, NECK], axis=-1)
    parts = lines(random, keypoints, head_size)
    blocks = [slice(start, start + BLOCK) for start in range(0, number, BLOCK)]
    image = np.concatenate([drawn(random, *(part[block] for part in parts)) for block in blocks])
    inside = ((keypoints >= 0) & (keypoints < SIDE)).all(-1)
    return {
        "image": image[..., None],
        "keypoints": keypoints,
        "visible": inside.astype(np.float32),
        "head_size": head_size,
    }


def poses(random: np.random.Generator, number: int) -> np.ndarray:
    """Joints [n, 16, 2] of random poses, in body heights around the pelvis; y points down."""
    side = np.zeros((len(JOINTS), number))
    side[:6] = side[10:] = random.choice([-1, 1], number)  # which side of the image is a person's left
    side[list(RIGHT)] *= -1
    side[6:10] = 1
    turned = random.uniform(0.4, 1, number)
    angle, place = np.zeros((len(JOINTS), number)), np.zeros((len(JOINTS), number, 2))
    angle[PELVIS] = np.radians(180 + random.uniform(-20, 20, number))
    for joint, before, length, low, high in BONES:
        angle[joint] = angle[before] + side[joint] * np.radians(random.uniform(low, high, number))
        length = length * (turned if joint in ACROSS else random.uniform(0.8, 1, number))
        bone = np.stack([np.sin(angle[joint]), np.cos(angle[joint])], -1)
        place[joint] = place[before] + length[:, None] * bone
    return place.swapaxes(0, 1)


def placed(random: np.random.Generator, joints: np.ndarray) -> np.ndarray:
    """The joints in pixels: of random size and place, up to two pixels outside the image."""
    low, high = joints.min(1), joints.max(1)
    height = np.minimum(random.uniform(28, 44, len(joints)), 46 / (high - low).max(-1))[:, None]
    corner = random.uniform(-2, SIDE + 2 - (high - low) * height)
    return ((joints - low[:, None]) * height[:, None] + corner[:, None]).astype(np.float32)


def lines(random: np.random.Generator, keypoints: np.ndarray, head_size: np.ndarray) -> list[np.ndarray]:
    """What is drawn, one over the other: ends [n, lines, 2, 2], radii and shades [n, lines]."""
    number = len(keypoints)
    layers = stray_lines(random, number), people(random, keypoints, head_size), blots(random, number)
    ends, radii, shades = (np.concatenate(part, 1, dtype=np.float32) for part in zip(*layers, strict=True))
    return [ends, radii, shades * random.uniform(45, 85, (number, 1)).astype(np.float32)]


def stray_lines(random: np.random.Generator, number: int) -> Lines:
    """Some lines anywhere, bright or dark, that are nobody's limbs."""
    shape = number, STRAY_LINES
    ends = random.uniform(0, SIDE, (*shape, 1, 2)) + random.normal(0, 7, (*shape, 2, 2))
    return ends, random.uniform(0.4, 1.2, shape), random.uniform(-1, 1, shape)


def people(random: np.random.Generator, keypoints: np.ndarray, head_size: np.ndarray) -> Lines:
    """Trunk, limbs and a head that reaches from the upper neck to its top; some people are thinner."""
    neck, top = keypoints[:, [NECK]], keypoints[:, [HEAD]]
    skull = np.stack([neck + 0.4 * (top - neck), top - 0.4 * (top - neck)], 2)
    ends = np.concatenate([keypoints[:, np.array(TRUNK + LIMBS)], skull], 1)
    thickness = np.array([0.2] * len(TRUNK) + [0.16] * len(LIMBS) + [0.4])
    thickness = np.tile(thickness, (len(keypoints), 1))
    thickness[:, :-1] *= random.uniform(0.8, 1.3, (len(keypoints), 1))
    shades = np.array([0.6] * len(TRUNK) + [-1.0] * 4 + [1.0] * 4 + [0.8])
    return ends, thickness * head_size[:, None], np.tile(shades, (len(keypoints), 1))


def blots(random: np.random.Generator, number: int) -> Lines:
    """Something that hides a part of every second image."""
    ends = random.uniform(0, SIDE, (number, 1, 1, 2)) + random.normal(0, 2, (number, 1, 2, 2))
    radii = random.choice([-1, 2.5, 3.5, 4.5], (number, 1), p=[0.5, 0.2, 0.2, 0.1])  # -1: nothing at all
    return ends, radii, random.uniform(-1, 1, (number, 1))


def drawn(random: np.random.Generator, ends: np.ndarray, radii: np.ndarray, shades: np.ndarray) -> np.ndarray:
    """Images uint8 [n, 48, 48]: the lines with soft edges on a slanted background, and noise."""
    number = len(ends)
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float32) + 0.5
    slant = random.uniform(-0.6, 0.6, (2, number, 1, 1)).astype(np.float32)
    background = random.uniform(100, 155, (number, 1, 1)).astype(np.float32)
    background = background + slant[0] * (x - SIDE / 2) + slant[1] * (y - SIDE / 2)
    ink = np.zeros_like(background)
    for line in range(ends.shape[1]):
        cover = np.clip(radii[:, line, None, None] + 0.5 - distance(x, y, ends[:, line]), 0, 1)
        ink += cover * (shades[:, line, None, None] - ink)
    noise = random.normal(0, 8, ink.shape)
    return np.clip(background + ink + noise, 0, 255).astype(np.uint8)


def distance(x: np.ndarray, y: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """From each pixel to each segment [n, 2, 2], in pixels: [n, height, width]."""
    (x0, y0), (dx, dy) = ends[:, 0].T[..., None, None], (ends[:, 1] - ends[:, 0]).T[..., None, None]
    x, y = x - x0, y - y0
    along = np.clip((x * dx + y * dy) / (dx * dx + dy * dy), 0, 1)
    return np.sqrt((x - along * dx) ** 2 + (y - along * dy) ** 2)
