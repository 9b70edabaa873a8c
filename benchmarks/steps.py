"""What a whole training step of every method costs, relative to plain SGD.

    python -m benchmarks.steps --models mlp --rounds 100

FLOPs and memory are those of the compiled programs. Times are of all steps in turn, round by round and
in a new order each round, and every ratio is taken within a round. The CPU clock counts the work of all
threads, and so tells more than the wall clock where other work shares the machine.
"""

import dataclasses
import datetime
import importlib.metadata
import json
import os
import platform
import resource
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

import optax_sam
from benchmarks import cases, models

# The norms and the perturbation, per parameter; 0.06 of SGD's FLOPs on a dense network at batch size 128.
OVERHEAD = 48
HEADINGS = ("step", "FLOPs", "gradients", "temp MB", "compile s", "ms", "time", "CPU time", "limit", "")
CAPTION = r"measured/expected; times: median \[quartiles]; *: the bodies of loops and conditionals count once"
MEASURED = ("wall", "cpu", "pages")


@dataclasses.dataclass(frozen=True)
class Settings:
    """Measure whole training steps of every method, relative to plain SGD."""

    models: tuple[Literal["mlp", "resnet", "transformer"], ...] = ("mlp", "resnet", "transformer")
    """mlp (784-1024x3-10), resnet (three blocks with batch norm, 32x32 images), transformer (two blocks on
    64 tokens)."""
    only: tuple[str, ...] = ()
    """Cases by their names in the table, beside the first; all where none is given."""
    rounds: int = 30
    """How often every step is timed; the trap of convolutions a tenth as often."""
    batch_size: int = 128
    """Examples per step; a multiple of 8."""
    out: Path = Path("runs/benchmarks/steps.jsonl")
    """JSON lines, one for each program, are added to this file."""
    clock: Literal["wall", "cpu"] = "wall"
    """The clock by which limits on the time are judged; both are measured."""
    check: bool = False
    """Exit with 1 where FLOPs or gradient evaluations, which do not depend on the machine, are missed."""
    mlp_width: int = 1024
    """Hidden units of each layer of the MLP."""
    resnet_width: int = 16
    """Channels of the first block of the ResNet; 2 and 4 times as many in the others."""
    transformer_width: int = 128
    """Features of each token of the transformer."""


class Program:
    """One compiled training step and the arrays it works on."""

    def __init__(self, case: cases.Case, problem: models.Problem):
        init, step = case.build(problem.losses)
        self.case, self.problem = case, problem
        self.arrays = jax.tree.map(lambda x: x.copy(), (problem.params, problem.stats, init(problem.params)))
        begin = time.perf_counter()
        lowered = jax.jit(step, donate_argnums=(0, 1, 2)).lower(*self.arrays, problem.batch)
        self.compiled = lowered.compile()
        self.compile_seconds = time.perf_counter() - begin
        costs, memory = self.compiled.cost_analysis(), self.compiled.memory_analysis()
        assert costs and memory, "this backend does not tell what programs cost"
        self.flops, self.temp_bytes = costs["flops"], memory.temp_size_in_bytes

    def run(self) -> tuple[float, float, int]:
        """One step: seconds on the wall and on the CPU clock, and pages of fresh memory."""
        wall, cpu, pages = time.perf_counter(), time.process_time(), _fresh_pages()
        *self.arrays, _ = jax.block_until_ready(self.compiled(*self.arrays, self.problem.batch))
        return time.perf_counter() - wall, time.process_time() - cpu, _fresh_pages() - pages


def _fresh_pages() -> int:
    """Memory that the system has handed to this process so far: buffers above 32 MB are new every step."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def measure(programs: Sequence[Program], rounds: int) -> dict[str, dict[str, np.ndarray]]:
    """What `run` returns, by kind and case, `[rounds]`; after one round that is not counted."""
    times = np.zeros([rounds, len(programs), len(MEASURED)])
    order = np.random.default_rng(0)
    for number in range(-1, rounds):
        for which in order.permutation(len(programs)):
            seconds = programs[which].run()
            if number >= 0:
                times[number, which] = seconds
    names = [program.case.name for program in programs]
    return {clock: dict(zip(names, times[:, :, i].T, strict=True)) for i, clock in enumerate(MEASURED)}


def count_gradients(case: cases.Case, steps: int = 3) -> tuple[float, float | None]:
    """Gradient evaluations per step: counted by the host inside the loss, and as `info` tells them."""
    problem, counted = models.mlp(16, 8), []

    def losses(params, stats, batch):
        values, new = problem.losses(params, stats, batch)
        jax.debug.callback(lambda x: counted.append(x.size / 16), values)  # once per slice under vmap
        return values, new

    program = Program(case, dataclasses.replace(problem, losses=losses))
    for _ in range(steps):
        program.run()
    jax.effects_barrier()
    state = program.arrays[2]
    try:
        told = float(optax_sam.info(state)["gradients"]) / steps
    except ValueError:  # not a method of this library
        told = None
    return sum(counted) / steps, told


def summary(ratios: np.ndarray) -> dict[str, float]:
    """Median, quartiles, and the 95 % interval of the median."""
    half = 0.98 / np.sqrt(len(ratios))
    points = {"median": 0.5, "q25": 0.25, "q75": 0.75, "low": max(0.5 - half, 0), "high": min(0.5 + half, 1)}
    return {name: float(np.quantile(ratios, q)) for name, q in points.items()}


def record(
    program: Program, base: Program, times: dict[str, dict[str, np.ndarray]], clock: str
) -> dict[str, Any]:
    """All that is known of one program, relative to the base."""
    case, sizes = program.case, [x.size for x in jax.tree.leaves(program.problem.params)]
    counted, told = count_gradients(case)
    line: dict[str, Any] = {
        "model": program.problem.name,
        "case": case.name,
        "parameters": sum(sizes),
        "straight": case.straight,
        "flops": program.flops,
        "flops_ratio": program.flops / base.flops,
        "temp_bytes": program.temp_bytes,
        "compile_seconds": program.compile_seconds,
        "rounds": len(times["wall"][case.name]),
        "pages": summary(times["pages"][case.name]),
        "milliseconds": summary(1e3 * times["wall"][case.name]),
        "gradients": {"expected": case.gradients, "counted": counted, "info": told},
    }
    for name, of in ((name, times[name]) for name in ("wall", "cpu")):
        line[f"{name}_ratio"] = summary(of[case.name] / of[base.case.name])
        if case.limit and case.limit[0] in of:
            line[f"{name}_limited_ratio"] = summary(of[case.name] / of[case.limit[0]])
    line["limit"] = case.limit and {"case": case.limit[0], "ratio": case.limit[1]}
    line["limited"] = line.get(f"{clock}_limited_ratio")
    most = min(case.gradients + OVERHEAD * sum(sizes) / base.flops, case.most_flops)
    exact = not case.straight or case.gradients - 0.005 <= line["flops_ratio"] <= most
    wanted = {counted, case.gradients} if told is None else {counted, told, case.gradients}
    line["exact"] = bool(exact and len(wanted) == 1)
    line["time"] = _verdict(line["limited"], case.limit, line["rounds"])
    return line


def _verdict(ratio: dict[str, float] | None, limit: tuple[str, float] | None, rounds: int) -> str | None:
    """What the median says; undecided as long as its interval reaches below the limit."""
    if ratio is None or limit is None:
        return None
    if ratio["median"] <= limit[1]:
        return "met"
    return "missed" if ratio["low"] > limit[1] and rounds >= 6 else "undecided"


def table(lines: Sequence[dict[str, Any]], title: str) -> Table:
    """What was measured, beside what was expected."""
    result = Table(title=title, caption=CAPTION)
    for heading in HEADINGS:
        result.add_column(heading, justify="left" if heading in ("step", "limit", "") else "right")
    marks = {"met": "ok", "missed": "[red]MISSED", "undecided": "[yellow]undecided", None: ""}
    for line in lines:
        limit, limited = line["limit"], line["limited"]
        expected = f"/{line['gradients']['expected']:g}"
        result.add_row(
            line["case"].replace("[", r"\["),
            f"{line['flops_ratio']:.3f}{expected if line['straight'] else '*'}",
            f"{line['gradients']['counted']:g}{expected}",
            f"{line['temp_bytes'] / 1e6:.1f}",
            f"{line['compile_seconds']:.1f}",
            f"{line['milliseconds']['median']:.1f}",
            _spread(line["wall_ratio"]),
            _spread(line["cpu_ratio"]),
            f"{limit['ratio']:g} x {limit['case']}: {limited['median']:.3f}" if limited else "",
            marks[line["time"]] if line["exact"] else "[red]EXACT MISSED",
        )
    return result


def _spread(ratio: dict[str, float]) -> str:
    return rf"{ratio['median']:.2f} \[{ratio['q25']:.2f}, {ratio['q75']:.2f}]"


def environment() -> dict[str, Any]:
    """What else decides the numbers: machine, versions, command."""
    packages = ("jax", "jaxlib", "optax", "flax", "numpy")
    return {
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": jax.devices()[0].device_kind,
        "machine": {"system": platform.platform(), "cores": os.cpu_count(), "load": os.getloadavg()},
        "versions": {p: importlib.metadata.version(p) for p in packages},
        "command": shlex.join(["python", *sys.orig_argv[1:]]),
    }


def main(settings: Settings) -> bool:
    """Measures, prints and writes all; returns whether all exact figures hold."""
    about, exact = environment() | {"batch_size": settings.batch_size}, True
    widths = {
        "mlp": settings.mlp_width,
        "resnet": settings.resnet_width,
        "transformer": settings.transformer_width,
    }
    make: dict[str, Callable[[int, int], models.Problem]] = {
        "mlp": models.mlp,
        "resnet": models.resnet,
        "transformer": models.transformer,
    }
    settings.out.parent.mkdir(parents=True, exist_ok=True)
    for model in settings.models:
        problem = make[model](settings.batch_size, widths[model])
        for group, rounds in ((cases.cases(), settings.rounds), (cases.traps(), -(-settings.rounds // 10))):
            wanted = [c for c in group if not settings.only or c.name in (group[0].name, *settings.only)]
            programs = [Program(case, problem) for case in wanted]
            times = measure(programs, rounds)
            lines = [record(program, programs[0], times, settings.clock) for program in programs]
            title = f"{model}, batch {settings.batch_size}, {rounds} rounds, limits by {settings.clock} clock"
            Console(width=None if sys.stdout.isatty() else 180).print(table(lines, title))
            with settings.out.open("a") as file:
                file.writelines(json.dumps(line | about) + "\n" for line in lines)
            exact = exact and all(line["exact"] for line in lines)
    return exact


if __name__ == "__main__":
    chosen = tyro.cli(Settings)
    sys.exit(0 if main(chosen) or not chosen.check else 1)
