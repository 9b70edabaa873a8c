"""Per-example gradient norms: without per-example gradients, by `vmap`, and beside a gradient of the batch.

    python -m benchmarks.norms

The norms of both ways are compared before anything is timed.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from benchmarks import models, programs
from benchmarks.programs import Program
from optax_sam import per_example

BATCH_SIZES = {"mlp": 128, "resnet": 128, "transformer": 128, "resnet18": 16}
LIMITS = {"mlp": 1.0, "resnet": 2.0, "transformer": 2.0}


@dataclasses.dataclass(frozen=True)
class Settings:
    """Measure per-example gradient norms, relative to one gradient of the batch."""

    models: tuple[str, ...] = ("mlp", "resnet", "transformer", "resnet18")
    """Networks. The last has batch size 16, the others have 128."""
    width: int | None = None
    """Features of the first layer. None is each network's own."""
    rounds: int = 12
    """How often each is timed."""
    out: Path = Path("runs/benchmarks/norms.jsonl")
    """JSON lines are added to this file."""


def compiled(name: str, settings: Settings) -> list[Program]:
    """The batch gradient, the norms, and the norms by `vmap`, of one network."""
    problem = models.make(name, BATCH_SIZES.get(name, 128), settings.width)

    def losses(params, batch):
        return problem.losses(params, problem.stats, batch)[0]

    def batch_gradient(params, batch):
        return params, jax.grad(lambda p: losses(p, batch).mean())(params)

    def norms(params, batch):
        return params, per_example.gradient_norms(losses, params, batch)

    def norms_by_vmap(params, batch):
        def of_one(example):
            one = jax.tree.map(lambda x: x[None], example)
            grads = jax.grad(lambda p: losses(p, one).mean())(params)
            return jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(grads)))

        return params, jax.vmap(of_one)(batch)

    functions = {"batch gradient": batch_gradient, "norms": norms, "norms by vmap": norms_by_vmap}
    return [Program(title, f, (problem.params,), problem.batch) for title, f in functions.items()]


def largest_difference(ours: Program, by_vmap: Program) -> float:
    """Between the two ways, relative to each norm."""
    for program in (ours, by_vmap):
        program.run()
    found, wanted = np.asarray(ours.result), np.asarray(by_vmap.result)
    return float(np.max(np.abs(found - wanted) / wanted))


def main(settings: Settings) -> None:
    """Measures, prints and writes all."""
    about = programs.environment()
    result = Table(title=f"per-example gradient norms, {settings.rounds} rounds")
    for heading in ("network", "batch", "", "time / gradient", "temp MB", "FLOPs / gradient", "difference"):
        result.add_column(heading, justify="left" if heading in ("network", "") else "right")
    for name in settings.models:
        each = compiled(name, settings)
        difference = largest_difference(*each[1:])
        times = programs.measure(each, settings.rounds)
        for program in each:
            line: dict[str, Any] = {"model": name, "case": program.name}
            line["batch_size"] = BATCH_SIZES.get(name, 128)
            line |= programs.costs(program, times, each[0].name) | {"largest_difference": difference}
            line["flops_ratio"] = program.flops / each[0].flops
            if program.name == "norms" and name in LIMITS:
                line["verdict"] = programs.verdict(line["wall_ratio"], LIMITS[name], settings.rounds)
            programs.append_lines(settings.out, [line | about])
            result.add_row(
                name,
                str(line["batch_size"]),
                program.name,
                programs.spread(line["wall_ratio"]) + (f" {line['verdict']}" if "verdict" in line else ""),
                f"{program.temp_bytes / 1e6:.1f}",
                f"{line['flops_ratio']:.2f}",
                f"{difference:.0e}" if program.name == "norms" else "",
            )
    Console(width=None if sys.stdout.isatty() else 160).print(result)


if __name__ == "__main__":
    main(tyro.cli(Settings))
