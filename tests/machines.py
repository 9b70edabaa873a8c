"""Machines that are not there, for tests that compile for them."""

import importlib.util

import pytest
from jax.sharding import AxisType, Mesh


def mesh_of(machine: str, kind: AxisType = AxisType.Auto) -> Mesh:
    """All its chips; skips the test only where the compiler is not installed."""
    package, folder = ("jax_cuda12_plugin", "gpu") if machine.startswith("h100") else ("libtpu", "tpu")
    if importlib.util.find_spec(package) is None:
        where = f".venv-{folder}/bin/python -m pytest"
        pytest.skip(f"no compiler for {machine} here: run `{where}`, which `make accelerators` installs")
    from experiments.running import topologies

    return topologies.mesh(machine, kind)
