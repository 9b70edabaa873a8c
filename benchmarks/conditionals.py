"""Gates, loops over slices and samples, and a user's own loop over steps, against straight-line programs.

    python -m benchmarks.conditionals

XLA's CPU backend compiles convolutions inside conditionals and loops to slow code. The library rewrites each
gradient so that it does not. This measures what the rewrite achieves, on networks with convolutions of all
kinds.
"""

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
import tyro
from jax import lax
from rich.console import Console
from rich.table import Table

import optax_sam
from benchmarks import models, programs
from benchmarks.cases import LEARNING_RATE, RHO, Build, Losses, ours, usual_base
from benchmarks.programs import Program

BATCH_SIZES = {"resnet": 128, "channels_first": 128, "depthwise": 64, "resnet18": 64}
SLICES = 8
STEPS = 4


@dataclasses.dataclass(frozen=True)
class Pair:
    """A program with a conditional or a loop, and what it is held against.

    Attributes:
      name: in the table.
      build: of the step.
      than: name of the straight-line program.
      most: how many times its time this one may take.
      steps: training steps that one call takes.
    """

    name: str
    build: Build
    than: str
    most: float = 1.05
    steps: int = 1


@dataclasses.dataclass(frozen=True)
class Settings:
    """Measure conditionals and loops, relative to straight-line programs."""

    models: tuple[str, ...] = ("resnet", "channels_first", "depthwise", "resnet18")
    """Networks, with batch sizes 128, 128, 64 and 64."""
    width: int | None = None
    """Features of the first layer. None is each network's own."""
    rounds: int = 10
    """How often each is timed."""
    plain: bool = False
    """Also measure a gradient in a conditional as XLA compiles it by itself."""
    out: Path = Path("runs/benchmarks/conditionals.jsonl")
    """JSON lines are added to this file."""


def straight() -> dict[str, Build]:
    """The programs without conditionals and loops."""
    rst = optax_sam.rst(RHO)
    return {
        "sam": ours(optax_sam.sam(RHO)),
        "rst, perturb=True": ours(rst, True),
        "rst, perturb=False": ours(rst, False),
        f"{SLICES} slices, unrolled": unrolled_slices,
        "6 gradients, unrolled": six_gradients,
        "1 gradient": in_conditional(None),
    }


def pairs(plain: bool) -> list[Pair]:
    """The programs with conditionals and loops."""
    taken, skipped = optax_sam.rst(RHO, probability=1.0), optax_sam.rst(RHO, probability=0.0)
    m_sam = optax_sam.per_microbatch(optax_sam.sam(RHO), SLICES)
    canonical = Pair("in lax.cond, canonical", in_conditional(optax_sam.canonical_convolutions), "1 gradient")
    trap = [Pair("in lax.cond", in_conditional(lambda f: f), "1 gradient", 50.0)] if plain else []
    return [
        Pair("rst, taken by the program", ours(taken), "rst, perturb=True"),
        Pair("rst, not taken by the program", ours(skipped), "rst, perturb=False"),
        Pair(f"per_microbatch(sam, {SLICES})", ours(m_sam), "sam", 1.1),
        Pair(f"per_microbatch(sam, {SLICES}), again", ours(m_sam), f"{SLICES} slices, unrolled"),
        Pair("tsam(num_samples=3)", ours(optax_sam.tsam(RHO)), "6 gradients, unrolled"),
        Pair(f"scan over {STEPS} sam steps", scan_over_steps, "sam", steps=STEPS),
        canonical,
        *trap,
    ]


def unrolled_slices(losses: Losses, base: Any) -> tuple[Callable[[Any], Any], Any]:
    """m-sharpness as a Python loop over slices writes it."""

    def descent(params, stats, batch):
        parts = [jax.tree.map(lambda x, i=i: jnp.split(x, SLICES)[i], batch) for i in range(SLICES)]
        found = [_sam_gradient(losses, stats, part)(params) for part in parts]
        return jax.tree.map(lambda *xs: sum(xs) / SLICES, *found)

    return _descending(descent, base)


def six_gradients(losses: Losses, base: Any) -> tuple[Callable[[Any], Any], Any]:
    """The gradients of three SAM steps from three points, one after the other."""

    def descent(params, stats, batch):
        points = [jax.tree.map(lambda p, i=i: p * (1 + 1e-3 * i), params) for i in range(3)]
        found = [_sam_gradient(losses, stats, batch)(point) for point in points]
        return jax.tree.map(lambda *xs: sum(xs) / 3, *found)

    return _descending(descent, base)


def scan_over_steps(losses: Losses, base: Any) -> tuple[Callable[[Any], Any], Any]:
    """Several training steps in one program."""
    init, one = ours(optax_sam.sam(RHO))(losses, base)

    def step(params, stats, state, batch):
        def body(carry, _):
            params, stats, state = carry
            *carry, loss = one(params, stats, state, batch)
            return tuple(carry), loss

        carry, seen = lax.scan(body, (params, stats, state), length=STEPS)
        return *carry, seen[-1]

    return init, step


def in_conditional(transform: Callable[[Any], Any] | None) -> Build:
    """A step without optimizer, the gradient of which is taken in a conditional; None: in none."""

    def build(losses, base):
        del base

        def step(params, stats, taken, batch):
            def loss_fn(params):
                values, new = losses(params, stats, batch)
                return values.mean(), new

            gradient = jax.value_and_grad(loss_fn, has_aux=True)
            if transform is None:
                (loss, new), grads = gradient(params)
            else:

                def skipped(params):
                    return (jnp.zeros([]), stats), jax.tree.map(jnp.zeros_like, params)

                (loss, new), grads = lax.cond(taken, transform(gradient), skipped, params)
            updates = optax.tree.scale(-LEARNING_RATE, grads)
            return optax.apply_updates(params, updates), new, taken, loss

        return lambda params: jnp.ones([], bool), step

    return build


def _descending(descent: Callable[[Any, Any, Any], Any], base: Any) -> tuple[Callable[[Any], Any], Any]:
    def step(params, stats, state, batch):
        updates, state = base.update(descent(params, stats, batch), state, params)
        return optax.apply_updates(params, updates), stats, state, jnp.zeros([])

    return base.init, step


def _sam_gradient(losses: Losses, stats: Any, batch: Any) -> Callable[[Any], Any]:
    gradient = jax.grad(lambda p: losses(p, stats, batch)[0].mean())

    def of(params):
        grads = gradient(params)
        length = optax.tree.norm(grads)
        return gradient(jax.tree.map(lambda p, g: p + RHO / length * g, params, grads))

    return of


def main(settings: Settings) -> None:
    """Measures, prints and writes all."""
    about = programs.environment()
    result = Table(title=f"conditionals and loops, {settings.rounds} rounds")
    for heading in (
        "network",
        "program",
        "time / straight",
        "at most",
        "",
        "temp MB / straight",
        "compile s / straight",
    ):
        result.add_column(heading, justify="left" if heading in ("network", "program", "") else "right")
    for name in settings.models:
        size = BATCH_SIZES.get(name, 128)
        problem = models.make(name, size, settings.width)
        against = pairs(settings.plain)
        builds = straight() | {pair.name: pair.build for pair in against}
        each = {title: _compiled(title, build, problem) for title, build in builds.items()}
        times = programs.measure(list(each.values()), settings.rounds)
        for pair in against:
            program, other = each[pair.name], each[pair.than]
            ratio = programs.summary(times["wall"][pair.name] / times["wall"][pair.than] / pair.steps)
            line: dict[str, Any] = {"model": name, "case": pair.name, "batch_size": size, "ratio": ratio}
            line |= {"than": pair.than, "most": pair.most} | programs.costs(program, times, pair.than)
            line["than_temp_bytes"], line["than_seconds"] = other.temp_bytes, other.seconds
            line["verdict"] = programs.verdict(ratio, pair.most, settings.rounds)
            programs.append_lines(settings.out, [line | about])
            result.add_row(
                f"{name}, {size}",
                pair.name,
                f"{programs.spread(ratio)} {pair.than}",
                f"{pair.most:g}",
                line["verdict"],
                f"{program.temp_bytes / 1e6:.0f} / {other.temp_bytes / 1e6:.0f}",
                f"{sum(program.seconds.values()):.1f} / {sum(other.seconds.values()):.1f}",
            )
    Console(width=None if sys.stdout.isatty() else 200).print(result)


def _compiled(name: str, build: Build, problem: models.Problem) -> Program:
    init, step = build(problem.losses, usual_base())
    return Program(name, step, (problem.params, problem.stats, init(problem.params)), problem.batch)


if __name__ == "__main__":
    main(tyro.cli(Settings))
