"""scikit-learn's digits: few examples and wrong labels, so that flat minima can show what they are worth."""

from typing import Any

import numpy as np

from experiments.data.arrays import Data, rows

TRAIN_EXAMPLES = 500
LABEL_NOISE = 0.2


def digits() -> Data:
    """500 training examples of 8x8 pixels, and 1,297 test examples."""
    import sklearn.datasets  # here, because it takes a second to load, in every process that reads a stream

    read: Any = sklearn.datasets.load_digits()
    order = np.random.default_rng(0).permutation(len(read.target))
    everything = {
        "image": read.images[order, :, :, None].astype(np.uint8),
        "label": read.target[order].astype(np.int32),
    }
    train, test = slice(TRAIN_EXAMPLES), slice(TRAIN_EXAMPLES, None)
    return Data(rows(everything, train), rows(everything, test), num_classes=10)
