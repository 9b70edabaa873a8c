"""Devices of all processes as one mesh: where batches, parameters and constants lie."""

import os
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from experiments.settings import SettingsError, Setup

T = TypeVar("T")

# Elements up to which an array is copied to every device.
SMALL = 1024


def mesh_of(settings: Setup) -> Mesh:
    """One axis, `data`, over which batches are split: as many devices as divide the batch.

    Raises:
      SettingsError: several processes have more devices than that.
    """
    devices, size = available(), settings.batch_size
    count = max(number for number in range(1, len(devices) + 1) if size % number == 0)
    if count < len(devices) and jax.process_count() > 1:
        raise SettingsError(
            f"--batch-size {size} cannot be split over {len(devices)} devices: "
            f"give a multiple of {len(devices)}"
        )
    return jax.make_mesh((count,), ("data",), devices=devices[:count], axis_types=(AxisType.Auto,))


def join_processes() -> None:
    """Makes this process one of several, found by JAX on TPU slices and under SLURM, else named.

    Elsewhere the environment names them: JAX_COORDINATOR_ADDRESS (host and port of process 0),
    JAX_NUM_PROCESSES and JAX_PROCESS_ID.

    Raises:
      SettingsError: neither is the case, or the others do not come.
    """
    try:
        count, number = (
            int(os.environ[name]) if name in os.environ else None
            for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
        )
        jax.distributed.initialize(num_processes=count, process_id=number)
    except (RuntimeError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise SettingsError(
            f"--distributed finds no other processes ({reason}): start on a TPU slice or under SLURM, or set "
            "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID"
        ) from error


def available() -> list[jax.Device]:
    """All devices of all processes."""
    return jax.devices()


def split_rows(tree: T, mesh: Mesh) -> T:
    """Inside a program: equally many rows of each array on every device."""
    return jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, PartitionSpec("data")))


def everywhere(mesh: Mesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def sharding(leaf: jax.ShapeDtypeStruct, mesh: Mesh, fsdp: bool) -> NamedSharding:
    """Where an array of the training state lies: a copy on every device or, with `fsdp`, split.

    It is split along its longest axis that the number of devices divides. Without one it is copied, and so
    is a small array, whose parts would save nothing.
    """
    fitting = [axis for axis, size in enumerate(leaf.shape) if size % mesh.size == 0]
    if not fsdp or not fitting or leaf.size < SMALL:
        return everywhere(mesh)
    longest = max(fitting, key=lambda axis: leaf.shape[axis])
    return NamedSharding(mesh, PartitionSpec(*[None] * longest, "data"))


def agreed(number: int) -> int:
    """The first process's number, for decisions that depend on time."""
    if jax.process_count() == 1:
        return number
    return int(multihost_utils.broadcast_one_to_all(np.int32(number)))


def together(where: str) -> None:
    """Waits until every process has come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(where)


def whole(array: jax.Array) -> np.ndarray:
    """The content of an array, of which this process may hold a part."""
    if array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    return multihost_utils.process_allgather(array, tiled=True)


def first_process() -> bool:
    """Whether this process is the one that writes and prints."""
    return jax.process_index() == 0
