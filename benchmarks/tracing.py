"""What Python pays before XLA is asked: the CPU time to trace and to lower one training step.

    python -m benchmarks.tracing

A loss is traced once for each shape, however many gradients a step takes of it. A method therefore costs far
less Python time than the losses that it evaluates.
"""

import dataclasses
import time
from pathlib import Path

import jax
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from benchmarks import models, programs
from benchmarks.cases import usual_base
from benchmarks.catalogue import all_cases


@dataclasses.dataclass(frozen=True)
class Settings:
    """Measure the time to trace and to lower whole training steps."""

    model: str = "resnet18"
    """One of the networks of `benchmarks.steps`."""
    only: tuple[str, ...] = ("sgd", "optax.contrib.sam, opaque", "sam", "rst", "vsam(window=10)", "ausam")
    """Cases by their names."""
    batch_size: int = 16
    """Examples. The time does not depend on them."""
    rounds: int = 8
    """How often each is traced. The first time is not counted."""
    out: Path = Path("runs/benchmarks/tracing.jsonl")
    """JSON lines are added to this file."""


def main(settings: Settings) -> None:
    """Measures, prints and writes all."""
    problem = models.make(settings.model, settings.batch_size)
    chosen = [case for case in all_cases() if case.name in settings.only]
    seconds: dict[str, list[tuple[float, float]]] = {case.name: [] for case in chosen}
    for _ in range(settings.rounds + 1):
        for case in chosen:
            init, step = case.build(problem.losses, usual_base())
            state = init(problem.params)
            begin = time.process_time()
            traced = jax.jit(step).trace(problem.params, problem.stats, state, problem.batch)
            middle = time.process_time()
            traced.lower()
            seconds[case.name].append((middle - begin, time.process_time() - middle))
    table = Table(title=f"{settings.model}: CPU seconds of Python, {settings.rounds} rounds")
    for heading in ("step", "trace", "lower"):
        table.add_column(heading, justify="left" if heading == "step" else "right")
    about = programs.environment()
    for name, found in seconds.items():
        columns = np.asarray(found[1:]).T
        times = {k: programs.summary(x) for k, x in zip(("trace", "lower"), columns, strict=True)}
        programs.append_lines(settings.out, [{"case": name, "model": settings.model} | times | about])
        table.add_row(name, *map(programs.spread, times.values()))
    Console(width=100).print(table)


if __name__ == "__main__":
    main(tyro.cli(Settings))
