"""MNIST-1D (Greydanus, 2020, arXiv:2011.14439): ten drawn digits as noisy series of 40 numbers.

The draws follow the authors' program step by step, so that the examples are those of their file.
"""

import numpy as np
from scipy.ndimage import gaussian_filter

from experiments.data.arrays import Data

EXAMPLES, TRAIN_EXAMPLES = 5000, 4000
LENGTH = 40
PADDING = 36, 60
MOST_SHIFT = 48
STRETCH, SHEAR, SMOOTH_NOISE, NOISE = 0.4, 0.75, 0.25, 0.02

# The height of each digit's pen stroke at twelve moments.
STROKES = """
5 6   6.5 6.75 7   7   7    7    6.75 6.5 6   5
5 3   3   3.4  3.8 4.2 4.6  5    5.4  5.8 5   5
5 6   6.5 6.5  6   5.25 4.75 4   3.5  3.5 4   5
5 6   6.5 6.5  6   5   5    6    6.5  6.5 6   5
5 4.4 3.8 3.2  2.6 2.6 5    5    5    5   5   5
5 3   3   3    3   5   6    6.5  6.5  6   4.5 5
5 4   3.5 3.25 3   3   3    3    3.25 3.5 4   5
5 7   7   6.6  6.2 5.8 5.4  5    4.6  4.2 5   5
5 4   3.5 3.5  4   5   5    4    3.5  3.5 4   5
5 4   3.5 3.5  4   5   5    5    5    4.7 4.3 5
"""


def mnist1d() -> Data:
    """4,000 training and 1,000 test examples: `series` float32 [n, 40], `label` int32 [n]."""
    random = np.random.RandomState(42)
    label = np.repeat(np.arange(10, dtype=np.int32), EXAMPLES // 10)
    drawn = strokes()
    series = np.stack([example(drawn[digit], random) for digit in label])
    order = random.permutation(EXAMPLES)
    series, label = series[order], label[order]
    series = ((series - series.mean()) / series.std()).astype(np.float32)
    train, test = (
        {"series": series[part], "label": label[part]}
        for part in (slice(TRAIN_EXAMPLES), slice(TRAIN_EXAMPLES, None))
    )
    return Data(train, test, num_classes=10)


def strokes() -> np.ndarray:
    """The ten digits, each with a mean square of 1/36, beginning and ending at 0: [10, 12]."""
    heights = np.array([line.split() for line in STROKES.strip().splitlines()], float)
    heights -= heights.mean(1, keepdims=True)
    heights /= heights.std(1, keepdims=True)
    return (heights - heights[:, :1]) / 6


def example(stroke: np.ndarray, random: np.random.RandomState) -> np.ndarray:
    """One digit: squeezed by padding, stretched, shifted in a circle, noisy, sheared, and sampled: [40]."""
    low, high = PADDING
    padding = np.zeros(low + int(random.rand() * (high - low + 1)))
    series = resampled(np.concatenate([stroke + 1e-8, padding]), len(stroke) + high)
    series = series * (1 + STRETCH * (random.rand() - 0.5))
    series = np.roll(series, random.choice(MOST_SHIFT))
    smooth = gaussian_filter(SMOOTH_NOISE * random.randn(len(series)), 2)
    series = np.where(series != 0, series, smooth)
    series = series + NOISE * random.randn(len(series))
    series = series - SHEAR * (random.rand() - 0.5) * np.linspace(-0.5, 0.5, len(series))
    return resampled(series, LENGTH)


def resampled(series: np.ndarray, length: int) -> np.ndarray:
    """Linear interpolation at evenly spaced places."""
    return np.interp(np.linspace(0, 1, length), np.linspace(0, 1, len(series)), series)
