"""One training on several devices, and in several processes."""

import json
import socket
import subprocess
import sys

import jax
import pytest

from experiments import data
from experiments.running import devices, programs
from experiments.running.checkpoints import Checkpoints
from experiments.settings import Settings
from experiments.settings.defaults import resolved
from tests.experiments.runs import ROOT, TINY, message_of, metrics, one_device, run

FLAGS = [*TINY, "--method", "sam", "--rho", "0.1", "--learning-rate", "0.02"]


@pytest.fixture
def on(monkeypatch):
    """Makes a number of devices those that there are."""
    return lambda count: monkeypatch.setattr(devices, "available", lambda: jax.devices()[:count])


def close(one, other):
    """The same metrics but for the order of sums."""
    for line, like in zip(metrics(one), metrics(other), strict=True):
        assert line == pytest.approx(like, rel=2e-3, abs=1e-4)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The folder of a run on one device."""
    out = tmp_path_factory.mktemp("alone") / "x"
    run(out, *FLAGS, "--epochs", "4")
    return out


@pytest.mark.slow
@pytest.mark.parametrize("fsdp", [False, True])
def test_a_run_on_four_devices_goes_on_on_two_and_ends_as_on_one(fsdp, alone, on, tmp_path, monkeypatch):
    out, flags = tmp_path / "x", [*FLAGS, *["--fsdp"] * fsdp, "--epochs", "4"]
    on(4)
    saved, original = [], Checkpoints.save

    def save(self, checkpoint):
        original(self, checkpoint)
        self.finish()
        saved.append(checkpoint)
        if checkpoint.epoch == 2:
            raise InterruptedError

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", save)
        with pytest.raises(InterruptedError):
            run(out, *flags)
    kernel = saved[-1].state.params["Conv_1"]["kernel"]
    assert len(kernel.sharding.device_set) == 4 and kernel.is_fully_replicated == (not fsdp)
    on(2)
    run(out, *flags, "--resume")
    assert json.loads((out / "config.json").read_text())["settings"]["epochs"] == 4
    close(out, alone)


def test_as_many_devices_as_divide_the_batch_are_used(on):
    on(8)
    assert devices.mesh_of(Settings(batch_size=50)).size == 5
    assert devices.mesh_of(Settings(batch_size=64)).size == 8
    assert devices.mesh_of(Settings(batch_size=7)).size == 7


def test_each_device_has_its_share_of_the_batch(on):
    on(4)
    settings = resolved(Settings(method="sgd", train_examples=60, batch_size=20))
    loaded = data.load(settings)
    compiled = programs.compile_programs(settings, loaded)
    text = compiled.steps.as_text()
    assert "all-reduce" in text
    assert "f32[5,8,8,1]" in text and "f32[20,8,8,1]" not in text  # images of 8x8 pixels


def test_processes_that_are_not_there_are_one_line(tmp_path, capsys, monkeypatch):
    for name in ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"):
        monkeypatch.delenv(name, raising=False)
    line = message_of(lambda: run(tmp_path / "x", *FLAGS, "--distributed"), capsys)
    assert "--distributed finds no other processes" in line and "JAX_NUM_PROCESSES" in line


STREAMED = ["--data", "fashion_mnist", "--stream", "True"]


@pytest.mark.slow
@pytest.mark.parametrize("extra", [[], ["--fsdp"], STREAMED])
def test_two_processes_train_together_and_one_of_them_writes(extra, alone, tmp_path, request):
    if "--stream" in extra:
        extra = [*extra, "--data-dir", request.getfixturevalue("tfds_dir")]
    together = run_two(tmp_path / "x", *FLAGS, *extra, "--epochs", "2")
    assert [error for _, _, error in together] == ["", ""] and [code for code, _, _ in together] == [0, 0]
    assert ["test accuracy" in out for _, out, _ in together] == [True, False]
    assert [line["epoch"] for line in metrics(tmp_path / "x")] == [1, 2]
    longer = [*FLAGS, *extra, "--epochs", "2", "--resume"]  # the checkpoint is for one process, too
    digest = json.loads((tmp_path / "x/result.json").read_text())["params_sha256"]
    assert run(tmp_path / "x", *longer)["params_sha256"] == digest


def run_two(out, *args):
    """Exit code and output of both processes of one training."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    command = [sys.executable, "-m", "experiments.train", *args, "--distributed", "--out", str(out)]
    named = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    processes = [
        subprocess.Popen(
            command,
            cwd=ROOT,
            text=True,
            env=one_device() | named | {"JAX_PROCESS_ID": str(number)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for number in range(2)
    ]
    outputs = [process.communicate(timeout=240) for process in processes]
    return [(process.returncode, *output) for process, output in zip(processes, outputs, strict=True)]
