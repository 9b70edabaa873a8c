"""What a product with the Hessian costs, in gradients: alone, and several at once.

    python -m benchmarks.products

`loop` and `vmap` are blocks of products with four vectors; their ratios are per product. CPU time, for
machines that do other things, too.
"""

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax.tree_util import Partial
from rich.console import Console
from rich.table import Table

from benchmarks import models, programs
from optax_sam import canonical_convolutions
from optax_sam.sharpness.problem import gradient_at, point_of
from optax_sam.sharpness.products import images

LIMIT = 3.0
"""Gradients that a product may cost."""

BLOCK = 4
"""Vectors that are multiplied at once."""

BATCH_SIZES = {"resnet": 64, "transformer": 32}


@dataclasses.dataclass(frozen=True)
class Settings:
    """Measure products with the Hessian, relative to a gradient of the same loss."""

    models: tuple[str, ...] = ("mlp", "resnet", "transformer")
    """Networks: batch sizes 128, 64 and 32."""
    width: int | None = None
    """Of the networks; each has its own by default."""
    rounds: int = 10
    """How often each is timed."""
    out: Path = Path("runs/benchmarks/products.jsonl")
    """JSON lines are added to this file."""


def cases(problem: models.Problem) -> dict[str, tuple[Callable[..., Any], int]]:
    """The programs, and how many products each makes; none for the gradient."""

    def losses(stats, params, batch):
        return problem.losses(params, stats, batch)[0]

    loss_fn = Partial(losses, problem.stats)

    def gradient(point, batch, vectors):
        del vectors
        return gradient_at(loss_fn, point, batch)

    def one(point, batch, vectors):
        return images(loss_fn, point, batch, 0, vectors[:1])

    def loop(point, batch, vectors):
        return images(loss_fn, point, batch, 0, vectors)

    def by_vmap(point, batch, vectors):
        stacked = jax.tree.map(lambda *xs: jnp.stack(xs), *vectors)
        return jax.vmap(lambda vector: images(loss_fn, point, batch, 0, [vector])[0])(stacked)

    return {"gradient": (gradient, 0), "product": (one, 1), "loop": (loop, BLOCK), "vmap": (by_vmap, BLOCK)}


def measure(name: str, width: int | None, rounds: int) -> dict[str, Any]:
    """Times of one network's products, relative to its gradient."""
    batch_size = BATCH_SIZES.get(name, 128)
    problem = models.make(name, batch_size, width)
    point = point_of(problem.params)
    keys = jax.random.split(jax.random.key(1), BLOCK)
    vectors = [[jax.random.normal(key, x.shape) for x in point.floats] for key in keys]

    def alone(function):
        return lambda point, batch, vectors: (canonical_convolutions(function)(point, batch, vectors),)

    made = [
        programs.Program(case, alone(function), (), point, problem.batch, vectors)
        for case, (function, _) in cases(problem).items()
    ]
    times = programs.measure(made, rounds)
    line: dict[str, Any] = {"model": name, "batch_size": batch_size, "rounds": rounds}
    for program, (_, number) in zip(made, cases(problem).values(), strict=True):
        cpu = times["cpu"][program.name]
        ratio = cpu / times["cpu"]["gradient"] / max(number, 1)
        flops = program.flops / made[0].flops / max(number, 1)
        line[program.name] = {
            "milliseconds": programs.summary(1e3 * cpu),
            "ratio": programs.summary(ratio),
            "flops_ratio": flops,
        }
    return line | {"verdict": programs.verdict(line["product"]["ratio"], LIMIT, rounds)}


def main(settings: Settings) -> None:
    """Measures, prints and writes all."""
    about = programs.environment()
    table = Table(title=f"products with the Hessian in gradients, {settings.rounds} rounds, CPU time")
    for heading in ("network", "batch", "gradient ms", "product", "(operations)", "loop", "vmap", ""):
        table.add_column(heading, justify="left" if heading == "network" else "right")
    for name in settings.models:
        line = measure(name, settings.width, settings.rounds)
        programs.append_lines(settings.out, [line | about])
        table.add_row(
            name,
            str(line["batch_size"]),
            f"{np.round(line['gradient']['milliseconds']['median'], 1)}",
            programs.spread(line["product"]["ratio"]),
            f"{line['product']['flops_ratio']:.2f}",
            programs.spread(line["loop"]["ratio"]),
            programs.spread(line["vmap"]["ratio"]),
            line["verdict"],
        )
    Console(width=None if sys.stdout.isatty() else 140).print(table)


if __name__ == "__main__":
    main(tyro.cli(Settings))
