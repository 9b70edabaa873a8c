"""What a whole training step of every method costs, relative to plain SGD.

    python -m benchmarks.steps --models mlp --rounds 30

FLOPs, bytes and memory are those of the compiled programs. All steps are timed in turn, round by round, in a
new order each round. Every ratio is taken within a round. The CPU clock counts the work of all threads. It
tells more than the wall clock where other work shares the machine.
"""

import dataclasses
import functools
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

import optax_sam
from benchmarks import by_hand, models, programs
from benchmarks.cases import Case, usual_base
from benchmarks.catalogue import all_cases
from benchmarks.programs import Program

# Norms, each with a second pass that rarely runs, and the perturbation, per parameter; a geometry of
# layers has the most. 0.08 of SGD's FLOPs on a dense network at batch size 128.
OVERHEAD = 64
HEADINGS = ("step", "FLOPs", "gradients", "MB moved", "temp MB", "state MB", "compile s", "ms", "time")
CAPTION = r"measured/expected; times: median \[quartiles]; *: the bodies of loops and conditionals count once"

ON_CPU = ("mlp", "resnet", "transformer")
ON_GPU = ("resnet18", "vit_s")


@dataclasses.dataclass(frozen=True)
class Settings:
    """Measure whole training steps of every method, relative to plain SGD."""

    models: tuple[str, ...] = ()
    """mlp (784-1024x3-10), resnet (three blocks with batch norm, 32x32 images), transformer (two blocks on 64
    tokens), resnet18, vit_s, depthwise, channels_first. By default the first three, on a GPU resnet18 and
    vit_s."""
    only: tuple[str, ...] = ()
    """Cases by their names in the table, beside the first. Those by hand have names too, such as "sam, by
    hand". All of the library's by default."""
    rounds: int = 30
    """How often every step is timed."""
    batch_size: int | None = None
    """Examples per step, a multiple of 8. None is 128, on a GPU 1,024."""
    width: int | None = None
    """Features of the first layer. None is each network's own."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """What the networks compute in. None is float32, on a GPU bfloat16. Parameters are float32."""
    out: Path = Path("runs/benchmarks/steps.jsonl")
    """JSON lines, one for each program, are added to this file."""
    clock: Literal["wall", "cpu"] = "wall"
    """The clock by which limits on the time are judged. Both are measured."""
    check: bool = False
    """Exit with 1 where FLOPs or gradient evaluations are missed. These do not depend on the machine."""


def compiled(case: Case, problem: models.Problem) -> Program:
    """The training step of a case."""
    init, step = case.build(problem.losses, usual_base())
    arrays = problem.params, problem.stats, init(problem.params)
    return Program(case.name, step, arrays, problem.batch, calls=case.calls)


@functools.cache
def count_gradients(case: Case, steps: int) -> tuple[float, float | None]:
    """Gradient evaluations per step: counted by the host inside the loss, and as `info` tells them."""
    problem, counted = models.make("mlp", 16, 8), []

    def losses(params, stats, batch):
        values, new = problem.losses(params, stats, batch)
        jax.debug.callback(lambda x: counted.append(x.size / 16), values)  # once per slice under vmap
        return values, new

    program = compiled(case, dataclasses.replace(problem, losses=losses))
    for _ in range(-(-steps // program.calls)):
        program.run()
    taken = -(-steps // program.calls) * program.calls
    jax.effects_barrier()
    try:
        told = float(optax_sam.info(program.arrays[2])["gradients"]) / taken
    except ValueError:  # not a method of this library
        told = None
    return sum(counted) / taken, told


def timed_gradients(program: Program, rounds: int) -> float | None:
    """Gradient evaluations per timed step, by `info`: where a gate decides they differ by chance."""
    try:
        return float(optax_sam.info(program.arrays[2])["gradients"]) / ((rounds + 1) * program.calls)
    except ValueError:  # not a method of this library
        return None


def record(
    case: Case,
    program: Program,
    base: Program,
    times: Mapping[str, Mapping[str, np.ndarray]],
    clock: str,
) -> dict[str, Any]:
    """All that is known of one program, relative to the base."""
    size = sum(x.size for x in jax.tree.leaves(program.arrays[0]))
    counted, told = count_gradients(case, 3)
    line: dict[str, Any] = {"case": case.name, "parameters": size} | programs.costs(program, times, base.name)
    line |= {
        "straight": case.straight,
        "flops_ratio": program.flops / base.flops,
        "state_bytes": sum(x.nbytes for x in jax.tree.leaves(program.arrays[2])),
        "gradients": {
            "expected": case.gradients,
            "counted": counted,
            "info": told,
            "timed": timed_gradients(program, len(times["wall"][case.name])),
        },
        "limits": [
            limited(case.name, other, most, times[clock])
            for other, most in case.limits
            if other in times[clock]
        ],
    }
    expected = counted if case.gradients is None else case.gradients
    most = min(expected + OVERHEAD * size / base.flops, case.most_flops)
    exact = not case.straight or expected - 0.005 <= line["flops_ratio"] <= most
    # Losses alone, as esam and ausam by gradient norms take them, are passes too: `info` tells gradients.
    alike = told is None or abs(told - expected) < 1e-6
    line["exact"] = bool(exact and alike and (counted >= expected - 1e-6))
    return line


def limited(name: str, other: str, most: float, times: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """How a case stands to a limit on its time, by the median over rounds. Where a program decides, rounds
    differ by its chance."""
    ratios = times[name] / times[other]
    found = programs.summary(ratios)
    return {
        "case": other,
        "most": most,
        "ratio": found,
        "verdict": programs.verdict(found, most, len(ratios)),
    }


def table(lines: Sequence[Mapping[str, Any]], title: str) -> Table:
    """What was measured, beside what was expected."""
    result = Table(title=title, caption=CAPTION)
    for heading in (*HEADINGS, "CPU time", "limits"):
        result.add_column(heading, justify="left" if heading in ("step", "limits") else "right")
    for line in lines:
        expected = line["gradients"]["expected"]
        of = "" if expected is None else f"/{expected:g}"
        limits = [
            f"{each['ratio']['median']:.2f}/{each['most']:g} x {each['case']} {each['verdict']}"
            for each in line["limits"]
        ]
        result.add_row(
            line["case"].replace("[", r"\["),
            f"{line['flops_ratio']:.3f}{of if line['straight'] else '*'}",
            f"{line['gradients']['counted']:.3g}{of}",
            f"{line['bytes'] / 1e6:.0f}",
            f"{line['temp_bytes'] / 1e6:.1f}",
            f"{line['state_bytes'] / 1e6:.1f}",
            f"{sum(line['seconds'].values()):.1f}",
            f"{line['milliseconds']['median']:.1f}",
            programs.spread(line["wall_ratio"]),
            programs.spread(line["cpu_ratio"]),
            "; ".join(limits if line["exact"] else ["[red]EXACT MISSED[/red]", *limits]),
        )
    return result


def matrix_flops_per_second(size: int = 8192) -> float:
    """What the device does in products of square bfloat16 matrices, the fastest of five."""
    x = jnp.ones((size, size), jnp.bfloat16)
    program = jax.jit(jnp.matmul).lower(x, x).compile()
    seconds = []
    for _ in range(6):
        begin = time.perf_counter()
        jax.block_until_ready(program(x, x))
        seconds.append(time.perf_counter() - begin)
    return 2 * size**3 / min(seconds[1:])


def main(settings: Settings) -> bool:
    """Measures, prints and writes all; returns whether all exact figures hold."""
    on_cpu = jax.default_backend() == "cpu"
    dtype = settings.dtype or ("float32" if on_cpu else "bfloat16")
    batch_size = settings.batch_size or (128 if on_cpu else 1024)
    about = programs.environment() | {"batch_size": batch_size, "dtype": dtype}
    if not on_cpu:
        about["matrix_flops_per_second"] = matrix_flops_per_second()
    exact = True
    wanted = ("sgd", *settings.only)
    cases = [c for c in (*all_cases(), *by_hand.CASES) if c.name in wanted] if settings.only else all_cases()
    for model in settings.models or (ON_CPU if on_cpu else ON_GPU):
        problem = models.make(model, batch_size, settings.width, jnp.dtype(dtype))
        compiled_steps = [compiled(case, problem) for case in cases]
        times = programs.measure(compiled_steps, settings.rounds)
        lines: list[dict[str, Any]] = [
            {"model": model} | record(case, program, compiled_steps[0], times, settings.clock)
            for case, program in zip(cases, compiled_steps, strict=True)
        ]
        if not on_cpu:
            for line in lines:
                rate = line["flops"] / (line["milliseconds"]["median"] / 1e3)
                line["fraction_of_matrix_rate"] = rate / about["matrix_flops_per_second"]
        title = f"{model}, batch {batch_size}, {dtype}, {settings.rounds} rounds, by {settings.clock} clock"
        Console(width=None if sys.stdout.isatty() else 200).print(table(lines, title))
        programs.append_lines(settings.out, [line | about for line in lines])
        exact = exact and all(line["exact"] for line in lines)
    return exact


if __name__ == "__main__":
    chosen = tyro.cli(Settings)
    sys.exit(0 if main(chosen) or not chosen.check else 1)
