"""What a training step of every method sends between devices, and computes on each, beside SGD.

    python -m benchmarks.devices

Eight devices are forced on one CPU. Parameters are on all of them, and the batch is split. Programs are
compiled and read, and none is run. The figures do not depend on the machine. Machine code is generated at its
lowest level, which changes neither FLOPs nor collectives.
"""

import os

DEVICES = 8
CHEAP = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
FORCED = f"--xla_force_host_platform_device_count={DEVICES} {CHEAP}"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FORCED}"
os.environ["JAX_PLATFORMS"] = "cpu"

import dataclasses  # noqa: E402
import sys  # noqa: E402
from collections.abc import Sequence  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any, Literal  # noqa: E402

import jax  # noqa: E402
import tyro  # noqa: E402
from jax.sharding import AxisType, NamedSharding, PartitionSpec  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from benchmarks import collectives, models, split_steps  # noqa: E402
from benchmarks.cases import usual_base  # noqa: E402
from benchmarks.programs import append_lines, environment  # noqa: E402

WIDTHS = {"mlp": 256, "resnet": 16}
AXES = {"automatic": AxisType.Auto, "explicit": AxisType.Explicit}
HEADINGS = ("all-reduced", "moved", "FLOPs")
CAPTION = (
    "all-reduced: elements / parameters; moved: bytes of gathers, exchanges and permutations / bytes of the "
    "global batch; FLOPs: on each device / SGD's. *: matrix products and convolutions alone, those in loops "
    "as often as they run, of a conditional the dearest branch."
)


@dataclasses.dataclass(frozen=True)
class Settings:
    """Count what training steps send between eight devices, and compute on each, relative to SGD."""

    models: tuple[Literal["mlp", "resnet"], ...] = ("mlp", "resnet")
    """mlp (784-256x3-10), resnet (three blocks with batch norm over the global batch, 32x32 images)."""
    axes: tuple[Literal["automatic", "explicit"], ...] = ("automatic", "explicit")
    """Types of the mesh's axis."""
    only: tuple[str, ...] = ()
    """Steps by their names in the table, beside SGD. All by default."""
    batch_size: int = 1024
    """Examples per step on all devices together, a multiple of 64."""
    out: Path = Path("runs/benchmarks/devices.jsonl")
    """JSON lines, one for each program, are added to this file."""
    check: bool = False
    """Exit with 1 where a promise is missed."""
    width: int | None = None
    """Features of the first layer. None is 256 for the MLP, 16 for the ResNet."""


def measure(name: str, build: Any, problem: models.Problem, axes: str, batch_size: int) -> dict[str, Any]:
    """What one compiled step sends and computes; or why it cannot be traced."""
    mesh = jax.make_mesh((DEVICES,), ("data",), axis_types=(AXES[axes],))
    whole, split = (NamedSharding(mesh, PartitionSpec(*spec)) for spec in ((), ("data",)))
    batch = {
        key: jax.ShapeDtypeStruct((batch_size, *x.shape[1:]), x.dtype, sharding=split)
        for key, x in problem.batch.items()
    }
    sizes = [x.size for x in jax.tree.leaves(problem.params)]
    line: dict[str, Any] = {"model": problem.name, "step": name, "axes": axes, "parameters": sum(sizes)}
    line["batch_bytes"] = sum(x.size * x.dtype.itemsize for x in batch.values())
    line["statistics"] = sum(x.size for x in jax.tree.leaves(problem.stats))
    with jax.set_mesh(mesh):
        params, stats = jax.device_put((problem.params, problem.stats), whole)
        init, step = build(problem.losses, usual_base())
        try:
            lowered = jax.jit(step).lower(params, stats, init(params), batch)
        except Exception as error:
            return line | {"error": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
        compiled = lowered.compile()
    costs, text = compiled.cost_analysis(), compiled.as_text()
    assert costs and text, "this backend does not tell what programs are and cost"
    return line | collectives.traffic(text)._asdict() | {"flops": costs["flops"]}


def compare(line: dict[str, Any], base: dict[str, Any], batch_size: int) -> dict[str, Any]:
    """The line in units of the parameters, the batch and SGD, and which promises it misses."""
    promise, missed = split_steps.PROMISES.get(line["step"]), []
    if "error" in line:
        return line | {"missed": ["does not trace"] if promise else []}
    flops = "product_flops" if line["repeated_work"] else "flops"
    ratios = {
        "all_reduced_ratio": line["all_reduced"] / line["parameters"],
        "moved_ratio": line["moved"] / line["batch_bytes"],
        "flops_ratio": line[flops] / base[flops],
    }
    if promise:
        most = 100 + promise.all_reduced * (line["parameters"] + 2 * line["statistics"])
        most += promise.per_example * batch_size + promise.rows * line["batch_bytes"] // (4 * batch_size)
        seen = {
            "all-reduced": (line["all_reduced"], most),
            "moved": (ratios["moved_ratio"], promise.moved),
            "FLOPs": (ratios["flops_ratio"], promise.flops),
        }
        missed = [f"{what} {got:.6g} > {most:.6g}" for what, (got, most) in seen.items() if got > most]
    return line | ratios | {"missed": missed}


def table(lines: Sequence[dict[str, Any]], title: str) -> Table:
    """One row for each step, with the columns of each type of axis."""
    axes = list(dict.fromkeys(line["axes"] for line in lines))
    result = Table("step", title=title, caption=CAPTION)
    for kind in axes:
        for heading in HEADINGS:
            result.add_column(f"{heading}\n{kind}", justify="right")
    result.add_column("promise")
    for step in dict.fromkeys(line["step"] for line in lines):
        found = {line["axes"]: line for line in lines if line["step"] == step}
        cells = [cell for kind in axes for cell in _cells(found.get(kind))]
        kept = "kept" if step in split_steps.PROMISES else ""
        result.add_row(
            step, *cells, "[red]MISSED" if any(line["missed"] for line in found.values()) else kept
        )
    return result


def _cells(line: dict[str, Any] | None) -> tuple[str, str, str]:
    if line is None:
        return "", "", ""
    if "error" in line:
        return "does not trace", "", ""
    mark = "*" if line["repeated_work"] else ""
    return (
        f"{line['all_reduced_ratio']:.3f}",
        f"{line['moved_ratio']:.4f}",
        f"{line['flops_ratio']:.3f}{mark}",
    )


def main(settings: Settings) -> bool:
    """Compiles, prints and writes all; returns whether every promise is kept."""
    about = environment() | {"devices": DEVICES, "batch_size": settings.batch_size}
    console, kept = Console(width=None if sys.stdout.isatty() else 180), True
    for model in settings.models:
        problem, lines = models.make(model, DEVICES, settings.width or WIDTHS[model]), []
        steps = split_steps.steps_on(DEVICES)
        wanted = [name for name in steps if not settings.only or name in ("sgd", *settings.only)]
        for axes in settings.axes:
            base = None
            for name in wanted:
                if name.endswith((", open", ", closed")) and axes != settings.axes[0]:
                    continue  # what the host decides is compiled once: the types of axes differ elsewhere
                line = measure(name, steps[name], problem, axes, settings.batch_size)
                base = base or line
                lines.append(compare(line, base, settings.batch_size))
                append_lines(settings.out, [lines[-1] | about])
        console.print(table(lines, f"{model}, {DEVICES} devices, batch {settings.batch_size}"))
        for line in lines:
            for reason in (*line["missed"], *([line["error"]] if "error" in line else [])):
                console.print(f"{line['step']}, {line['axes']} axes: {reason}", markup=False)
        kept = kept and not any(line["missed"] for line in lines)
    return kept


if __name__ == "__main__":
    chosen = tyro.cli(Settings)
    sys.exit(0 if main(chosen) or not chosen.check else 1)
