"""Accelerators that are not there: described, so that programs can be compiled for them.

XLA's compilers for GPUs and TPUs need no such machine. `jax-cuda12-plugin` and `jax-cuda12-pjrt` bring the
one, libtpu the other: each has an environment of its own (`make accelerators`).
"""

import contextlib
import os
from collections.abc import Iterator

# Else libtpu asks a server of the cloud who it is.
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-16")
# Several processes may compile at once: none of them holds a TPU.
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax  # noqa: E402
import numpy as np  # noqa: E402
from jax.experimental import topologies  # noqa: E402
from jax.sharding import AxisType, Mesh  # noqa: E402

H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 84942979072 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 minor: 0 }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 }
device_description_str: "NVIDIA H100"
"""
"""What XLA asks of a GPU before it compiles for it."""

EXAMPLES = "h100:1x1x1 (one GPU), h100:1x1x8 (one host of eight), v5e:2x2, v5e:16x16, v5p:8x8x8, v6e:16x16"


def mesh(machine: str, axis_type: AxisType = AxisType.Auto) -> Mesh:
    """All chips of a described machine along one axis, `data`.

    Args:
      machine: its kind and its shape, such as `h100:1x1x8` or `v5e:16x16`.
      axis_type: of the axis.

    Raises:
      ValueError: no such kind, or no compiler for it in this environment.
    """
    kind, _, shape = machine.partition(":")
    try:
        if kind == "h100":
            found = topologies.get_topology_desc(
                platform="cuda", topology_name=kind, target_config=H100, topology=shape
            )
        else:
            found = topologies.get_topology_desc(platform="tpu", topology_name=machine)
    except Exception as error:
        raise ValueError(
            f"{machine!r} cannot be described here ({str(error).splitlines()[0][:200]}): it is one of "
            f"{EXAMPLES}, and its compiler stands in .venv-gpu (h100) or .venv-tpu."
        ) from error
    return Mesh(np.array(found.devices), ("data",), axis_types=(axis_type,))


def is_gpu(machine: str) -> bool:
    """Whether a machine is one of GPUs."""
    return machine.startswith("h100")


@contextlib.contextmanager
def asked_about(mesh: Mesh) -> Iterator[None]:
    """Inside, who asks JAX where it runs hears of the described machine: programs depend on it."""
    original, platform = jax.default_backend, mesh.devices.flat[0].platform
    jax.default_backend = lambda: platform
    try:
        yield
    finally:
        jax.default_backend = original
