"""Streamed batches on the devices, in the order of the steps."""

import atexit
from collections.abc import Generator, Iterator

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments.data.arrays import Batch, Stream
from experiments.data.stream import (
    Reading,
    evaluation_batches,
    num_evaluation_steps,
    training_batches,
)


class Feed:
    """Gives the batch of any seed and step; that of the next step at once, since it is read ahead."""

    def __init__(self, stream: Stream, batch_size: int, workers: int, mesh: Mesh):
        """Nothing is read before the first batch is asked for."""
        self.stream, self.mesh = stream, mesh
        self.reading = Reading(batch_size, jax.process_index(), jax.process_count(), workers)
        self.place: tuple[int, int] | None = None
        self.batches: Generator[Batch, None, None] | None = None
        atexit.register(self.close)  # workers that are still reading would complain at the end

    def training(self, seed: int, step: int) -> Batch:
        """The batch of a step, counted from the start of the run; `index` are its examples' numbers."""
        if self.batches is None or self.place != (seed, step):
            self.close()
            self.batches = training_batches(self.stream, self.reading, seed, step)
        self.place = seed, step + 1
        return self._on_devices(next(self.batches))

    def evaluation(self) -> Iterator[Batch]:
        """All batches of one evaluation; `real` is false in rows that fill up the last."""
        self.batches = self.batches or evaluation_batches(self.stream, self.reading)
        for _ in range(num_evaluation_steps(self.stream, self.reading.batch_size)):
            yield self._on_devices(next(self.batches))

    def close(self) -> None:
        """Ends what reads ahead."""
        if self.batches is not None:
            self.batches.close()
            self.batches = None

    def _on_devices(self, batch: Batch) -> Batch:
        places = _places(self.mesh)
        return {name: jax.make_array_from_process_local_data(places, array) for name, array in batch.items()}


def shapes(example: Batch, batch_size: int, mesh: Mesh) -> Batch:
    """What a batch of such examples looks like."""
    return {
        name: jax.ShapeDtypeStruct(
            (batch_size, *np.shape(array)), np.asarray(array).dtype, sharding=_places(mesh)
        )
        for name, array in example.items()
    }


def _places(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec("data"))
