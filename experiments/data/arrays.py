"""Examples in memory or on disk, and what is done to them whatever they show."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

Batch = dict[str, Any]
"""Arrays by name, with equally many rows: `image` or `tokens`, `label`, ..."""

View = Callable[[Any, np.random.Generator | None], Batch]
"""Makes one example's arrays of a record; with a generator (training), randomly changed."""


class Stream(NamedTuple):
    """One part of a data set, on disk.

    Attributes:
      records: what is read by number: a TFDS data source, or any sequence.
      view: what makes arrays of a record.
      num_examples: so many first records are used.
      num_classes: how many labels there are.
      label_noise: chance of an example to have a random label.
    """

    records: Sequence[Any]
    view: View
    num_examples: int
    num_classes: int
    label_noise: float = 0.0

    def example(self, number: int, random: np.random.Generator | None) -> Batch:
        """One example; `index` says which."""
        arrays = self.view(self.records[number], random) | {"index": np.int32(number)}
        return self._with_noise(arrays, number) if self.label_noise else arrays

    def evaluated(self, row: int) -> Batch:
        """The same for a row of an evaluation; `real` is false after the last example."""
        last = self.num_examples - 1
        return self.example(min(row, last), None) | {"real": np.bool_(row <= last)}

    def _with_noise(self, arrays: Batch, number: int) -> Batch:
        random = np.random.default_rng((0, number))  # the same for every seed, epoch and method
        if random.random() >= self.label_noise:
            return arrays
        return arrays | {"label": np.int32(random.integers(self.num_classes))}


VALIDATION_FOLDS = 5


class Data(NamedTuple):
    """A data set in memory.

    Attributes:
      train: what is trained on, label noise included; of a stream, a sample.
      test: what is only ever measured; of a stream, nothing.
      num_classes: how many labels, keypoints, hours to forecast or characters there are.
      streams: training and test part of a set that is not read into memory.
      validation: what settings are chosen by, where the data set says what that is.
      groups: int [n], training examples of one number show the same thing, and stay in one part of a
        cross-validation. None where each stands alone.
    """

    train: Batch
    test: Batch
    num_classes: int
    streams: tuple[Stream, Stream] | None = None
    validation: Batch | None = None
    groups: np.ndarray | None = None

    @property
    def num_examples(self) -> int:
        """Training examples."""
        return self.streams[0].num_examples if self.streams else num_rows(self.train)


def num_rows(batch: Batch) -> int:
    """Examples in a batch."""
    return len(next(iter(batch.values())))


def rows(batch: Batch, which: Any) -> Batch:
    """The examples of a slice, a mask or an array of numbers."""
    return {name: array[which] for name, array in batch.items()}


def with_random_labels(batch: Batch, share: float, num_classes: int) -> Batch:
    """Gives a share of the examples a label drawn evenly from all (which may be the right one)."""
    random = np.random.default_rng(0)
    label = batch["label"].copy()
    chosen = random.permutation(len(label))[: round(share * len(label))]
    label[chosen] = random.integers(0, num_classes, len(chosen))
    return batch | {"label": label}


def fold(data: Data, number: int, folds: int) -> Data:
    """Cross-validation: part `number` of the training examples becomes the test part.

    The real test part is dropped, so that nothing tuned on the folds can have seen it. A rest that
    would make one part longer than another stays out: equal shapes need one compilation. A group goes where
    its first example goes, and makes parts unequal.
    """
    size = num_rows(data.train) // folds * folds
    groups = np.arange(size) if data.groups is None else data.groups[:size]
    _, first, group = np.unique(groups, return_index=True, return_inverse=True)
    held_out = first[group] % folds == number
    everything = rows(data.train, slice(size))
    left = None if data.groups is None else groups[~held_out]
    return data._replace(train=rows(everything, ~held_out), test=rows(everything, held_out), groups=left)


def on_validation(data: Data) -> Data:
    """The validation part in place of the test part: the data set's own, or every fifth training example."""
    return data._replace(test=data.validation) if data.validation else fold(data, 0, VALIDATION_FOLDS)


def in_batches(batch: Batch, size: int) -> Batch:
    """Cuts examples into equal batches; `real` is false in the rows that fill up the last."""
    missing = -num_rows(batch) % size

    def cut(array: np.ndarray) -> np.ndarray:
        filled = np.pad(array, [(0, missing)] + [(0, 0)] * (array.ndim - 1))
        return filled.reshape(-1, size, *array.shape[1:])

    return {name: cut(array) for name, array in (batch | {"real": np.ones(num_rows(batch), bool)}).items()}
