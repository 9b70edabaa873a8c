"""The time of a step on 1, 2, 4 and 8 forced devices of this one machine, relative to SGD on as many.

    python -m benchmarks.device_times --rounds 12

The batch of all devices together stays the same, and so does the work, since forced devices share the cores.
This shows what splitting a step costs beside its work (collectives as copies in memory, work that every
device repeats). It does not show the speed of real devices, nor any overlap. The number of devices is fixed
when a process starts, so that each number has a process of its own. Within it, steps are timed in turn.
"""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import jax
import tyro
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from rich.console import Console
from rich.table import Table

from benchmarks import models, split_steps
from benchmarks.cases import usual_base
from benchmarks.programs import Program, append_lines, environment, measure, spread, summary

STEPS = ("sgd", "sam", "per_device(sam)", "momentum_sam", "ausam(strata=8)")


@dataclasses.dataclass(frozen=True)
class Settings:
    """Time training steps on forced devices of one CPU, relative to SGD on as many devices."""

    devices: tuple[int, ...] = (1, 2, 4, 8)
    """How many devices, divisors of 8."""
    models: tuple[Literal["mlp", "resnet"], ...] = ("mlp", "resnet")
    """mlp (784-256x3-10), resnet (three blocks with batch norm over the global batch, 32x32 images)."""
    rounds: int = 12
    """How often every step is timed."""
    batch_size: int = 128
    """Examples per step on all devices together, a multiple of 16."""
    out: Path = Path("runs/benchmarks/device_times.jsonl")
    """JSON lines, one for each step, are added to this file."""
    here: bool = False
    """Time in this process, on all of its devices, and print JSON lines alone."""


def split_program(name: str, build: Any, problem: models.Problem, mesh: Any) -> Program:
    """The step with its state on all devices, before and after."""
    whole = NamedSharding(mesh, PartitionSpec())
    init, step = build(problem.losses, usual_base())

    def step_on_all(params, stats, state, batch):
        return jax.lax.with_sharding_constraint(step(params, stats, state, batch), whole)

    state = jax.device_put(init(problem.params), whole)
    return Program(name, step_on_all, (problem.params, problem.stats, state), problem.batch)


def time_here(settings: Settings) -> None:
    """Times all steps on the devices of this process, in turn."""
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
    whole, split = (NamedSharding(mesh, PartitionSpec(*spec)) for spec in ((), ("data",)))
    for model in settings.models:
        problem = models.make(model, settings.batch_size, {"mlp": 256, "resnet": 8}[model])
        params, stats = jax.device_put((problem.params, problem.stats), whole)
        batch = jax.device_put(problem.batch, split)
        problem = dataclasses.replace(problem, params=params, stats=stats, batch=batch)
        steps = split_steps.steps_on(8)
        with jax.set_mesh(mesh):
            programs = [split_program(name, steps[name], problem, mesh) for name in STEPS]
            times = measure(programs, settings.rounds)
        for name in STEPS:
            line: dict[str, Any] = {"model": model, "devices": jax.device_count(), "step": name}
            line["rounds"] = settings.rounds
            line["milliseconds"] = summary(1e3 * times["wall"][name])
            for clock in ("wall", "cpu"):
                line[f"{clock}_ratio"] = summary(times[clock][name] / times[clock]["sgd"])
            print(json.dumps(line | environment()))


def time_on(devices: int, settings: Settings) -> list[dict[str, Any]]:
    """The lines of a process that is started with so many devices."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    sizes = ["--rounds", settings.rounds, "--batch-size", settings.batch_size, "--models", *settings.models]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.device_times", "--here", *map(str, sizes)],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def table(lines: list[dict[str, Any]], title: str) -> Table:
    """Steps by numbers of devices: SGD's milliseconds, and the others relative to it."""
    result = Table(
        "devices", "load", "SGD ms", title=title, caption=r"median \[quartiles] of time / SGD's time"
    )
    for name in STEPS[1:]:
        result.add_column(name, justify="right")
    for devices in dict.fromkeys(line["devices"] for line in lines):
        found = {line["step"]: line for line in lines if line["devices"] == devices}
        sgd = found["sgd"]
        ratios = [spread(found[name]["wall_ratio"]) for name in STEPS[1:]]
        load = f"{sgd['machine']['load'][0]:.1f}"
        result.add_row(str(devices), load, f"{sgd['milliseconds']['median']:.1f}", *ratios)
    return result


def main(settings: Settings) -> None:
    """One process for each number of devices, one after the other."""
    lines = [line for devices in settings.devices for line in time_on(devices, settings)]
    about = {"command": environment()["command"]}
    append_lines(settings.out, [line | about for line in lines])
    for model in settings.models:
        own = [line for line in lines if line["model"] == model]
        title = f"{model}, batch {settings.batch_size}, {os.cpu_count()} cores, {settings.rounds} rounds"
        Console(width=None if sys.stdout.isatty() else 150).print(table(own, title))


if __name__ == "__main__":
    chosen = tyro.cli(Settings)
    time_here(chosen) if chosen.here else main(chosen)
