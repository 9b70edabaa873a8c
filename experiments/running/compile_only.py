"""A run's programs compiled for a machine that is not there, and what they need of it.

They are the programs of `programs.py`, for the devices of a described machine. Those hold no arrays, so that
the data are given by their shapes alone.
"""

import dataclasses
import importlib.util
import re
import time
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh
from rich.console import Console
from rich.table import Table

from experiments import methods
from experiments.data import Data, load
from experiments.running.devices import everywhere
from experiments.running.figures import Figures, figures
from experiments.running.inputs import Inputs, on_host
from experiments.running.programs import first_state, lowered_evaluation, lowered_steps, trainer_of
from experiments.running.training import Trainer
from experiments.settings import Settings, SettingsError
from experiments.settings.defaults import resolved

TPU_MEMORY = {"v5e": 16 * 2**30, "v5p": 95 * 2**30, "v6e": 32 * 2**30}
"""Bytes of a chip: https://docs.cloud.google.com/tpu/docs/v5e, /v5p and /v6e, "HBM capacity per chip".

The compiler leaves 15.75 of v5e's 16 GiB and 31.25 of v6e's 32 to programs, and refuses larger ones.
"""

COMPILERS = {"gpu": ("GPUs", "jax_cuda12_plugin"), "tpu": ("TPUs", "libtpu")}
"""By the first word of the extra: what a compiler is for, and the package that shows that it is here."""

NOTES = (
    "All figures are of one device. A loop's body counts once, whether the loop is over the steps, over the\n"
    "batches of the evaluation or inside a step: FLOPs and collectives are those of one step or batch."
)
OF_GPUS = "Unless XLA_CLIENT_MEM_FRACTION says otherwise, JAX begins with 75 % of a GPU's memory."


class Machine(NamedTuple):
    """A machine that is not there.

    Attributes:
      name: its kind and its shape, such as `h100:1x1x8`.
      mesh: all its devices, along the axis that batches are split over.
      memory: bytes of a device.
    """

    name: str
    mesh: Mesh
    memory: int


class Need(NamedTuple):
    """What one program of a run needs.

    Attributes:
      seconds: to compile it.
      figures: what was read from it.
      beside: bytes of the run on each device that the program does not read, but that lie there.
    """

    seconds: float
    figures: Figures
    beside: int

    @property
    def memory(self) -> int:
        """Bytes on a device while the program runs."""
        return self.figures.memory + self.beside


def compile_only(settings: Settings) -> None:
    """Compiles the programs of a run for the machine that the settings name, and prints what they need."""
    jax.config.update("jax_platforms", "cpu")  # else JAX looks for the accelerator that is not there
    machine = described(str(settings.compile_only))
    settings = resolved(settings)
    if settings.batch_size % machine.mesh.size:
        raise SettingsError(
            f"--batch-size {settings.batch_size} cannot be split over the {machine.mesh.size} devices of "
            f"--compile-only {machine.name}: give a multiple of {machine.mesh.size}"
        )
    Console().print(table(settings, machine, needs(settings, load(settings), machine)))
    print(NOTES)
    if platform_of(machine.mesh) == "gpu":
        print(OF_GPUS)


def platform_of(mesh: Mesh) -> str:
    """What JAX calls the devices of a mesh: cpu, gpu or tpu."""
    return mesh.devices.flat[0].platform


def described(name: str) -> Machine:
    """The machine of this name.

    Raises:
      SettingsError: there is none, or its compiler is not installed.
    """
    # Here, since it sets the environment of a process that uses no accelerator.
    from experiments.running import topologies

    kind = name.partition(":")[0]
    if not topologies.is_gpu(name) and kind not in TPU_MEMORY:
        raise SettingsError(f"--compile-only {name} is not known: give one of {topologies.EXAMPLES}")
    extra = "gpu" if topologies.is_gpu(name) else "tpu"
    devices, package = COMPILERS[extra]
    try:
        mesh = topologies.mesh(name)
    except ValueError as error:
        if importlib.util.find_spec(package) is None:
            raise SettingsError(
                f"--compile-only {name} needs XLA's compiler for {devices}, which is not installed here: "
                f"start with .venv-{extra}/bin/python, which `make accelerators` makes, or "
                f"pip install '.[experiments,{extra}-compiler]'"
            ) from error
        reason = str(error.__cause__).splitlines()[0]
        raise SettingsError(
            f"--compile-only {name} cannot be described ({reason}): give a shape as in {topologies.EXAMPLES}"
        ) from error
    of_gpu = re.findall(r"device_memory_size: (\d+)", topologies.H100)
    return Machine(name, mesh, int(of_gpu[0]) if extra == "gpu" else TPU_MEMORY[kind])


def needs(settings: Settings, data: Data, machine: Machine) -> dict[str, Need]:
    """What each program of a run needs, by its name in the table."""
    # Here, since it sets the environment of a process that uses no accelerator.
    from experiments.running import topologies

    with topologies.asked_about(machine.mesh):
        trainer = dataclasses.replace(trainer_of(settings, data), mesh=machine.mesh)
        inputs = _described_inputs(trainer, data)
        state = first_state(trainer, inputs)
        resident = sum(map(_bytes_on_a_device, jax.tree.leaves((state, inputs))))

        def need(lowered: jax.stages.Lowered) -> Need:
            start = time.perf_counter()
            found = figures(_compiled(lowered, machine))
            seconds = time.perf_counter() - start
            return Need(seconds, found, max(0, resident - found.arguments))

        found = {"step": need(lowered_steps(trainer, data, inputs, state, whole_batch=False))}
        if settings.method in methods.WHOLE_FIRST_EPOCH:
            found["step, first epoch"] = need(lowered_steps(trainer, data, inputs, state, whole_batch=True))
        return found | {"evaluation": need(lowered_evaluation(trainer, data, inputs, state))}


def _described_inputs(trainer: Trainer, data: Data) -> Inputs:
    place = everywhere(trainer.mesh)
    shapes = jax.eval_shape(lambda x: x, on_host(trainer.settings, data, trainer.task, trainer.mesh))
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes)


def _compiled(lowered: jax.stages.Lowered, machine: Machine) -> jax.stages.Compiled:
    try:
        return lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0]
        if not reason.startswith("RESOURCE_EXHAUSTED"):
            raise
        raise SettingsError(
            f"--compile-only {machine.name} has too little memory for this run ({reason[:300]}): give a "
            "smaller --batch-size, --fsdp, or a machine of more devices"
        ) from error


def _bytes_on_a_device(leaf: Any) -> int:
    part = jax.ShapeDtypeStruct(leaf.sharding.shard_shape(leaf.shape), leaf.dtype)
    return part.size * part.dtype.itemsize


def table(settings: Settings, machine: Machine, found: dict[str, Need]) -> Table:
    """The figures, a column for each program."""
    count = machine.mesh.size
    plural = "s" if count > 1 else ""
    result = Table(title=f"--method {settings.method} on {machine.name}, {count} device{plural}")
    result.add_column("program", no_wrap=True)
    for name in found:
        result.add_column(name, justify="right")
    read = [need.figures for need in found.values()]
    for name, cells in {
        "seconds to compile": [f"{need.seconds:.1f}" for need in found.values()],
        "arguments, MB": [_megabytes(each.arguments) for each in read],
        "outputs not donated, MB": [_megabytes(each.outputs) for each in read],
        "temporaries, MB": [_megabytes(each.temporaries) for each in read],
        "other data of the run, MB": [_megabytes(need.beside) for need in found.values()],
        "sum, MB": [_megabytes(need.memory) for need in found.values()],
        f"fits into {_megabytes(machine.memory)} MB": [
            f"{'yes' if need.memory <= machine.memory else 'no'}, {need.memory / machine.memory:.1%}"
            for need in found.values()
        ],
        "FLOPs": ["not known" if each.flops is None else f"{each.flops:.4g}" for each in read],
        "loops": [str(each.loops) for each in read],
        "conditionals": [str(each.conditionals) for each in read],
        **{kind: [_sent(each, kind) for each in read] for kind in sorted(_kinds(read))},
    }.items():
        result.add_row(name, *cells)
    return result


def _kinds(read: list[Figures]) -> set[str]:
    return {kind for each in read for kind in each.collectives}


def _sent(read: Figures, kind: str) -> str:
    operations, size = read.collectives.get(kind, (0, 0))
    return f"{operations}, {_megabytes(size)} MB" if operations else "0"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f}"
