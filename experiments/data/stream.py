"""Data sets too large for the device's memory: read and decoded by Grain while the network trains."""

import logging
import math
import signal
import threading
from collections.abc import Generator
from typing import Any, NamedTuple

import absl.flags
import grain
import numpy as np

from experiments.data import imagenet
from experiments.data.arrays import Batch, Stream
from experiments.data.prepared import test_split
from experiments.running.processes import end_with_parent
from experiments.settings import SettingsError

# Together with a network, so much fits into the memory of every common accelerator.
LARGE = 4 * 2**30

Batches = Generator[Batch, None, None]
"""Batches one after another, until they are closed."""


class Reading(NamedTuple):
    """How batches are read.

    Attributes:
      batch_size: examples of all JAX processes together.
      process_index: which share is read here: process 0 has the first rows of every batch.
      process_count: into how many equal shares a batch is cut.
      workers: processes that read for this one; 0 is a thread.
    """

    batch_size: int
    process_index: int = 0
    process_count: int = 1
    workers: int = 0


def as_it_is(record: Any, random: np.random.Generator | None) -> Batch:
    """The view of images that all have one size."""
    return {"image": record["image"], "label": np.int32(record["label"])}


def is_large(info: Any) -> bool:
    """Whether a TFDS set of images is to be streamed: large, or of images that differ in size."""
    if "image" not in info.features:
        return False
    shape = info.features["image"].shape
    return None in shape or info.splits.total_num_examples * math.prod(shape) > LARGE


def streams(builder: Any) -> tuple[Stream, Stream]:
    """The training and the test part of a TFDS set of images, of one size or of many."""
    import tensorflow_datasets as tfds  # here, because it takes long to load

    features, splits = builder.info.features, ("train", test_split(builder))
    if not ({"image", "label"} <= set(features) and set(splits) <= set(builder.info.splits)):
        raise SettingsError(
            f"--data {builder.name} is not a set of images with labels, for training and test: give "
            "one that is, such as imagenet2012"
        )
    one_size = None not in features["image"].shape
    # What TFDS decodes depends on whether OpenCV is installed: photographs are decoded by the view.
    decoders = None if one_size else {"image": tfds.decode.SkipDecoding()}

    def stream(split: str) -> Stream:
        records = builder.as_data_source(split=split, decoders=decoders)
        view = as_it_is if one_size else imagenet.view
        return Stream(records, view, len(records), features["label"].num_classes)

    return stream(splits[0]), stream(splits[1])


def sample(stream: Stream, count: int) -> Batch:
    """Examples spread evenly over a stream, not randomly changed: for means and first shapes."""
    numbers = np.linspace(0, stream.num_examples - 1, min(count, stream.num_examples), dtype=int)
    examples = [stream.example(number, None) for number in numbers.tolist()]
    return {name: np.stack([example[name] for example in examples]) for name in examples[0]}


def num_steps(stream: Stream, batch_size: int) -> int:
    """Batches per epoch of training; what would fill a part of one is left out."""
    return stream.num_examples // batch_size


def num_evaluation_steps(stream: Stream, batch_size: int) -> int:
    """Batches of one evaluation."""
    return math.ceil(stream.num_examples / batch_size)


def training_batches(stream: Stream, reading: Reading, seed: int, first_step: int = 0) -> Batches:
    """This process's rows of every batch, epoch after epoch, without end.

    Seed and step decide a batch, joined in the order of the processes: which examples, in which order,
    how changed. A run that goes on at `first_step` sees what it would have seen, whatever the number
    of processes and of workers. Workers stay until the iterator is closed.
    """
    if reading.batch_size > stream.num_examples:
        raise SettingsError(
            f"--batch-size {reading.batch_size} is more than the {stream.num_examples} training "
            "examples: give a smaller batch"
        )
    # Grain mixes the seed with the place in the chain: the steps keep their order.
    examples = grain.MapDataset.range(stream.num_examples).seed(seed).shuffle().random_map(stream.example)
    return _batches(examples, num_steps(stream, reading.batch_size), reading, first_step)


def evaluation_batches(stream: Stream, reading: Reading) -> Batches:
    """As `training_batches`, in order and unchanged; the test part again and again.

    Rows for which `real` is false fill up the last batch of a pass. They repeat the last example.
    """
    steps = num_evaluation_steps(stream, reading.batch_size)
    examples = grain.MapDataset.range(steps * reading.batch_size).map(stream.evaluated)
    return _batches(examples, steps, reading, first_step=0)


def _batches(examples: Any, steps: int, reading: Reading, first_step: int) -> Batches:
    size, index, count, workers = reading
    if size % count:
        raise SettingsError(
            f"--batch-size {size} cannot be shared among {count} processes: give a multiple of {count}"
        )
    shares = examples.batch(size // count, drop_remainder=True)
    batches = shares[index : steps * count : count].repeat()[first_step:]
    absl.flags.FLAGS.mark_as_parsed()  # Grain asks for a flag of its own when it starts workers
    ahead = grain.ReadOptions(num_threads=0 if workers else 1, prefetch_buffer_size=2)
    processes = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)
    return _copied(iter(batches.to_iter_dataset(ahead).mp_prefetch(processes, _start_worker)))


def _copied(batches: grain.DatasetIterator) -> Batches:
    """Batches that may be kept: those of workers lie in shared memory, which JAX would hold on to."""
    try:
        for batch in batches:
            yield {name: np.array(array) for name, array in batch.items()}
    finally:
        batches.close()


def _start_worker(worker: int, count: int) -> None:
    """A worker neither outlives its killed parent, nor reports Ctrl-C or the lack of OpenCV beside it."""
    threading.Thread(target=end_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.getLogger("absl").setLevel(logging.ERROR)
