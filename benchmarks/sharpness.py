"""What the largest eigenvalue costs, in products with the Hessian.

    python -m benchmarks.sharpness

A product is timed as a compiled program by itself, just before and after each search for the eigenvalue.
"""

import dataclasses
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from jax.tree_util import Partial
from rich.console import Console
from rich.table import Table

from benchmarks import models, programs
from optax_sam import canonical_convolutions, sharpness

BATCH_SIZES = {"resnet18": 32}

MOST = 25 * 1.1
"""Products that an eigenvalue may cost: 25, and a tenth for all else."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """Measure the largest eigenvalue of the Hessian, relative to one product with it."""

    models: tuple[str, ...] = ("mlp", "resnet", "resnet18")
    """Networks. The batch size is 128, for resnet18 32."""
    rounds: int = 5
    """How often each is timed."""
    out: Path = Path("runs/benchmarks/sharpness.jsonl")
    """JSON lines are added to this file."""


def measure(name: str, rounds: int) -> dict[str, Any]:
    """Times of one network's products and eigenvalues."""
    batch_size = BATCH_SIZES.get(name, 128)
    problem = models.make(name, batch_size)

    def losses(stats, params, batch):
        return problem.losses(params, stats, batch)[0]

    loss_fn = Partial(losses, problem.stats)  # compiled once

    def product(params, batch):
        gradient = jax.grad(lambda p: loss_fn(p, batch).mean())
        return jax.jvp(gradient, (params,), (params,))[1]

    program = jax.jit(canonical_convolutions(product))
    eigenvalue, seconds, ratios, own = None, [], [], []
    for number in range(-1, rounds):
        before = _seconds(lambda: program(problem.params, problem.batch))
        begin = time.perf_counter()
        eigenvalue = sharpness.top_eigenvalues(loss_fn, problem.params, problem.batch)
        taken = time.perf_counter() - begin
        after = _seconds(lambda: program(problem.params, problem.batch))
        if number >= 0:
            seconds.append(taken)
            ratios.append(2 * taken / (before + after))
            own.append(ratios[-1] / eigenvalue.products)
    assert eigenvalue is not None
    ratio = programs.summary(np.array(ratios))
    return {
        "model": name,
        "batch_size": batch_size,
        "parameters": sum(x.size for x in jax.tree.leaves(problem.params)),
        "eigenvalue": eigenvalue.values[0],
        "residual": eigenvalue.residuals[0],
        "products": eigenvalue.products,
        "converged": eigenvalue.converged,
        "seconds": programs.summary(np.array(seconds)),
        "ratio": ratio,
        "ratio_per_product": programs.summary(np.array(own)),
        "verdict": programs.verdict(ratio, MOST, rounds),
        "rounds": rounds,
    }


def _seconds(call: Any) -> float:
    begin = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - begin


def main(settings: Settings) -> None:
    """Measures, prints and writes all."""
    about = programs.environment()
    table = Table(title=f"the largest eigenvalue, {settings.rounds} rounds")
    for heading in (
        "network",
        "parameters",
        "batch",
        "products",
        "seconds",
        "time / product",
        "per product",
        "",
    ):
        table.add_column(heading, justify="left" if heading == "network" else "right")
    for name in settings.models:
        line = measure(name, settings.rounds)
        programs.append_lines(settings.out, [line | about])
        table.add_row(
            name,
            f"{line['parameters']:,}",
            str(line["batch_size"]),
            f"{line['products']}{'' if line['converged'] else ' (not converged)'}",
            f"{line['seconds']['median']:.2f}",
            programs.spread(line["ratio"]),
            programs.spread(line["ratio_per_product"]),
            line["verdict"],
        )
    Console(width=None if sys.stdout.isatty() else 140).print(table)


if __name__ == "__main__":
    main(tyro.cli(Settings))
