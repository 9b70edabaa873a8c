"""Two processes of four devices each, over `jax.distributed`: the numbers of one process with eight."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.devices.processes import NAMES, STEPS, trajectory
from tests.registry import over

ROOT = Path(__file__).parents[2]


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@pytest.fixture(scope="module")
def results(request, tmp_path_factory):
    """What each of two processes wrote, of the methods that are asked for."""
    asked = [item for item in request.session.items if "results" in getattr(item, "fixturenames", ())]
    names = [item.callspec.params["name"] for item in asked if item.module is request.module]
    folder, coordinator = tmp_path_factory.mktemp("processes"), f"127.0.0.1:{free_port()}"
    flags = os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=4"
    processes = [
        subprocess.Popen(
            [
                sys.executable,
                "-m",
                "tests.devices.processes",
                coordinator,
                str(n),
                "2",
                str(folder / f"{n}.npz"),
                *names,
            ],
            cwd=ROOT,
            env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for n in range(2)
    ]
    try:
        said = [process.communicate(timeout=400)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, text in zip(processes, said, strict=True):
        assert process.returncode == 0, text[-3000:]
    found = []
    for n in range(2):
        with np.load(folder / f"{n}.npz") as arrays:
            found.append(dict(arrays))
    return found


@pytest.mark.parametrize("name", over(NAMES, ["vsam", "per_device"]))
def test_two_processes_decide_alike_and_give_the_numbers_of_one(name, results):
    params, decisions = trajectory(name)
    assert len(decisions) == STEPS
    for result in results:
        np.testing.assert_array_equal(result[f"{name} decisions"], decisions)
        np.testing.assert_allclose(result[f"{name} parameters"], params, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(*(result[f"{name} parameters"] for result in results))
    if name in ("rst", "vsam", "per_device"):
        assert 0 < sum(decisions) < STEPS
