"""What a method does beside the gradients, on 25 million parameters.

    python -m benchmarks.overhead

A dense network sees few examples, so that the gradients are cheap beside the parameters. The method's own
part is the difference to a program with the same gradients, the second at a given point, and plain SGD. What
is left are norms, the perturbed point, and what the method remembers. The unit is a program that reads and
writes the parameters, twice. The memory that a program works in is new to the process in each call, since XLA
on a CPU gives it back. Touching a new page costs more than copying it, so that pages are told too.
"""

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from rich.console import Console
from rich.table import Table

import optax_sam
from benchmarks import programs
from benchmarks.cases import RHO
from benchmarks.programs import Program

METHODS: dict[str, tuple[optax_sam.SharpnessAware, bool | None]] = {
    "sam": (optax_sam.sam(RHO), None),
    "asam": (optax_sam.asam(), None),
    "rst, open": (optax_sam.rst(RHO), True),
    "rst, closed": (optax_sam.rst(RHO), False),
    "vsam, open": (optax_sam.vsam(RHO), True),
    "vsam, closed": (optax_sam.vsam(RHO), False),
    "looksam, open": (optax_sam.looksam(RHO), True),
    "looksam, closed": (optax_sam.looksam(RHO), False),
    "gsam": (optax_sam.gsam(RHO), None),
    "friendly_sam": (optax_sam.friendly_sam(RHO), None),
    "vasso": (optax_sam.vasso(RHO), None),
}
"""Methods, and whether their gate stands open."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """Measure a method's own arithmetic, relative to reading and writing the parameters twice."""

    layers: int = 24
    """Layers of 1,024 x 1,024 parameters."""
    batch_size: int = 8
    """Examples."""
    rounds: int = 20
    """How often each is timed."""
    out: Path = Path("runs/benchmarks/overhead.jsonl")
    """JSON lines are added to this file."""


def loss(params: Any, inputs: jax.Array) -> jax.Array:
    """Of a dense network without biases."""
    for kernel in params:
        inputs = jax.nn.relu(inputs @ kernel)
    return jnp.mean(inputs**2)


gradient = jax.grad(loss)


def copied(params: Any) -> tuple[Any, jax.Array]:
    """Reads and writes all parameters, in place."""
    return optax.tree.scale(0.999, params), jnp.zeros([])


def one_gradient(params: Any, inputs: jax.Array) -> tuple[Any, jax.Array]:
    """A step of SGD."""
    return descended(params, gradient(params, inputs)), jnp.zeros([])


def two_gradients(params: Any, point: Any, inputs: jax.Array) -> tuple[Any, jax.Array]:
    """A step of SGD along the sum of two gradients, at the parameters and at a given point."""
    both = optax.tree.add(gradient(params, inputs), gradient(point, inputs))
    return descended(params, both), jnp.zeros([])


def with_method(method: optax_sam.SharpnessAware, perturb: bool | None) -> Callable[..., Any]:
    """A step of SGD behind a method."""

    def program(params, state, inputs):
        def grad_fn(params):
            return gradient(params, inputs)

        descent, state = method.update(grad_fn(params), state, params, grad_fn=grad_fn, perturb=perturb)
        return descended(params, descent), state, jnp.zeros([])

    return program


def descended(params: Any, descent: Any) -> Any:
    """The parameters after the step."""
    return jax.tree.map(lambda p, d: p - 1e-3 * d, params, descent)


def main(settings: Settings) -> None:
    """Measures, prints and writes all."""
    about = programs.environment()
    keys = jax.random.split(jax.random.key(0), settings.layers + 1)
    params = [jax.random.normal(key, (1024, 1024)) / 23 for key in keys[1:]]
    inputs = jax.random.normal(keys[0], (settings.batch_size, 1024))
    each = [
        Program("copied", copied, (params,)),
        Program("one gradient", one_gradient, (params,), inputs),
        Program("two gradients", two_gradients, (params,), params, inputs),
    ]
    for name, (method, perturb) in METHODS.items():
        each.append(Program(name, with_method(method, perturb), (params, method.init(params)), inputs))
    times = programs.measure(each, settings.rounds)
    size, unit = sum(x.size for x in params), times["wall"]["copied"]
    result = Table(
        title=f"{size:,} parameters, batch {settings.batch_size}, {settings.rounds} rounds",
        caption=f"to read and write the parameters twice: {2e3 * np.median(unit):.1f} ms",
    )
    for heading in ("method", "own part / twice", "CPU time", "ms", "new pages", "temp MB", "at most", ""):
        result.add_column(heading, justify="left" if heading in ("method", "") else "right")
    for program in each[1:]:
        line: dict[str, Any] = {"case": program.name, "parameters": size}
        line |= programs.costs(program, times, "copied")
        for clock in ("wall", "cpu"):
            gradients = "one gradient" if METHODS.get(program.name, (0, 0))[1] is False else "two gradients"
            own = times[clock][program.name] - times[clock][gradients]
            line[f"{clock}_own"] = programs.summary(own / times[clock]["copied"] / 2)
        is_method = program.name in METHODS
        line["verdict"] = programs.verdict(line["wall_own"], 1.0, settings.rounds) if is_method else ""
        programs.append_lines(settings.out, [line | about])
        result.add_row(
            program.name,
            *(programs.spread(line[f"{clock}_own"]) if is_method else "" for clock in ("wall", "cpu")),
            f"{line['milliseconds']['median']:.0f}",
            f"{line['pages']['median']:.0f}",
            f"{program.temp_bytes / 1e6:.0f}",
            "1" if is_method else "",
            line["verdict"],
        )
    Console(width=None if sys.stdout.isatty() else 140).print(result)


if __name__ == "__main__":
    main(tyro.cli(Settings))
