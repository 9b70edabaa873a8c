"""Training steps compiled for GPUs and TPUs that are not there: what their programs consist of.

    make accelerators

Nothing is run. Loops, conditionals, kernels, exchanges, memory and donation are read from the compiled
program. Beside them stand SAM and its kin, written by hand in plain JAX. Times, numerics and the choices of
autotuning cannot be known in this way.
"""

import dataclasses
import itertools
import json
import math
import sys
import time
from pathlib import Path
from typing import Any, Literal

from experiments.running import topologies  # which sets the environment that libtpu reads

# isort: split
import jax
import jax.numpy as jnp
import optax
import tyro
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from rich import box
from rich.console import Console
from rich.progress import track

import optax_sam
from benchmarks import by_hand, models, roofline
from benchmarks.cases import Case, ours, usual_base
from benchmarks.catalogue import NUM_EXAMPLES, all_cases
from benchmarks.collectives import traffic
from benchmarks.programs import append_lines, environment
from benchmarks.promises import missed, table
from experiments.running.devices import sharding
from experiments.running.figures import figures

IN_STRATA = "ausam(strata=chips)"
HEADLINE = ("sam", "momentum_sam", "rst", "vsam(window=10)", IN_STRATA, "optax.contrib.sam, opaque")
BATCH_SIZES = {"decoder": 4, "decoder_1b": 1, "vit_l": 32}
OTHERS_BATCH_SIZE = 128


@dataclasses.dataclass(frozen=True)
class Settings:
    """Compile training steps for accelerators that are not there, and read the programs."""

    machines: tuple[str, ...] = ("h100:1x1x1",)
    """Kinds and shapes: h100:1x1x8, v5e:16x16, v5p:8x8x8, v6e:16x16."""
    models: tuple[str, ...] = ("mlp", "resnet", "transformer")
    """Networks, also decoder, decoder_1b, vit_l. They compute in bfloat16. Parameters are float32."""
    parameters: tuple[Literal["copied", "split"], ...] = ("copied",)
    """Where the parameters are: on all chips, or split over them (FSDP)."""
    axes: tuple[Literal["auto", "explicit"], ...] = ("auto",)
    """Kinds of the mesh's axes. The decoders are written for both."""
    only: tuple[str, ...] = ()
    """Steps by their names in the table, beside the base and what they are compared with. By default the
    headline ones."""
    every: bool = False
    """Compile every public method."""
    out: Path = Path("runs/benchmarks/accelerators.jsonl")
    """JSON lines, one for each program, are added to this file. Programs that it holds are not compiled
    again."""
    check: bool = False
    """Exit with 1 where a promise is missed."""


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a step is compiled for, and what it trains.

    Attributes:
      machine: such as `h100:1x1x8`.
      model: the network's name.
      parameters: `copied` or `split`.
      axes: `auto` or `explicit`.
    """

    machine: str
    model: str
    parameters: str
    axes: str

    def mesh(self) -> Mesh:
        """All chips of the machine."""
        return topologies.mesh(self.machine, AxisType[self.axes.capitalize()])

    @property
    def chips(self) -> int:
        """How many there are."""
        return math.prod(int(size) for size in self.machine.partition(":")[2].split("x"))

    @property
    def examples(self) -> int:
        """Of one chip."""
        return BATCH_SIZES.get(self.model, OTHERS_BATCH_SIZE)

    def title(self) -> str:
        """For people."""
        return f"{self.machine}, {self.model}, parameters {self.parameters}, {self.axes} axes"


def compile_case(case: Case, problem: models.Problem, place: Place) -> dict[str, Any]:
    """What one compiled step consists of, or why it cannot be compiled."""
    mesh = place.mesh()
    line: dict[str, Any] = dataclasses.asdict(place) | {"step": case.name}
    begin = time.perf_counter()
    try:
        with jax.set_mesh(mesh), topologies.asked_about(mesh):
            traced, kept = traced_step(case, problem, place, mesh)
            traced_seconds = time.perf_counter() - begin
            compiled = traced.lower().compile()
    except Exception as error:  # it is told, and the others go on
        return line | {"error": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"}
    line["trace_seconds"] = round(traced_seconds, 1)
    line["compile_seconds"] = round(time.perf_counter() - begin - traced_seconds, 1)
    flops = roofline.product_flops(traced.jaxpr.jaxpr) / mesh.size
    return line | counts(compiled, place.machine, flops) | {"kept_mb": kept / 1e6, "compiled": environment()}


def traced_step(case: Case, problem: models.Problem, place: Place, mesh: Mesh) -> tuple[Any, int]:
    """The step for the shapes of a problem, and the bytes that a chip keeps from one step to the next."""
    rows = NamedSharding(mesh, PartitionSpec("data"))
    size = place.examples * mesh.size
    batch = {
        key: jax.ShapeDtypeStruct((size, *x.shape[1:]), x.dtype, sharding=rows)
        for key, x in problem.batch.items()
    }
    big = place.model in (*models.DECODERS, "vit_l")
    init, step = case.build(problem.losses, optax.adamw(1e-3) if big else usual_base())
    state = jax.eval_shape(init, problem.params)

    def placed(x):
        where = sharding(x, mesh, place.parameters == "split")
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)

    kept = jax.tree.map(placed, (problem.params, problem.stats, state))
    options: dict[str, Any] = {"exec_time_optimization_effort": -1.0}
    if topologies.is_gpu(place.machine):
        # Triton finds no tiles for the products of 197 tokens.
        options = {"xla_gpu_enable_triton_gemm": False} if place.model == "vit_l" else {}
    jitted = jax.jit(step, donate_argnums=(0, 1, 2), compiler_options=options)
    parts = [(x.sharding.shard_shape(x.shape), x.dtype.itemsize) for x in jax.tree.leaves(kept)]
    return jitted.trace(*kept, batch), sum(math.prod(shape) * width for shape, width in parts)


def counts(compiled: Any, machine: str, flops: float) -> dict[str, Any]:
    """What stands in a compiled program; `flops` of its products on one chip."""
    memory, read = compiled.memory_analysis(), figures(compiled)
    moved = (compiled.cost_analysis() or {}).get("bytes accessed")
    # A loop's body counts once there: at least the arguments are read, and the temporaries written and read.
    size = max(moved or 0, read.arguments + memory.output_size_in_bytes + 2 * read.temporaries)
    return {
        "loops": read.loops,
        "conditionals": read.conditionals,
        "kernels": read.operations["fusion"],
        "copies": read.operations["copy"],
        "sorts": read.operations["sort"],
        "collectives": {kind: list(found) for kind, found in read.collectives.items()},
        "small_collectives": read.small,
        "summed_in": read.summed_in,
        "temporaries_mb": read.temporaries / 1e6,
        "peak_mb": memory.peak_memory_in_bytes / 1e6,
        "donated_mb": memory.alias_size_in_bytes / 1e6,
        "product_flops": flops,
        "compiler_flops": read.flops,
        "compiler_bytes": moved,
        "at_best_ms": roofline.limits(machine, flops, size, traffic(compiled.as_text()).sent),
    }


def places(settings: Settings) -> list[Place]:
    """All that is asked for."""
    product = itertools.product(settings.machines, settings.models, settings.parameters, settings.axes)
    return [Place(*each) for each in product]


def place_of(line: dict[str, Any]) -> Place:
    """Where the program of a line was compiled for."""
    return Place(*(line[field.name] for field in dataclasses.fields(Place)))


def cases(settings: Settings, place: Place) -> list[Case]:
    """The steps that are asked for, behind those by hand that they are compared with."""
    wanted = settings.only or HEADLINE
    found = [case for case in all_cases() if settings.every or case.name in wanted]
    found = [case for case in found if not case.name.startswith("sgd")]
    if place.examples > 1 and (settings.every or IN_STRATA in wanted):
        scores = max(NUM_EXAMPLES, place.examples * place.chips)
        found.append(Case(IN_STRATA, ours(optax_sam.ausam(scores, strata=place.chips)), 1))
    needed = {by_hand.BASE, *(by_hand.LIKE.get(case.name) for case in found)}
    return [*(case for case in by_hand.CASES if case.name in needed), *found]


def main(settings: Settings) -> None:
    """Compiles what is not there yet, prints tables, and says which promises are missed."""
    lines = [json.loads(x) for x in settings.out.read_text().splitlines()] if settings.out.exists() else []
    done = {(place_of(x), x["step"]) for x in lines}
    all_places = places(settings)
    work = [(place, case) for place in all_places for case in cases(settings, place)]
    settings.out.parent.mkdir(parents=True, exist_ok=True)
    problems: dict[str, models.Problem] = {}
    to_do = [(place, case) for place, case in work if (place, case.name) not in done]
    for place, case in track(to_do, "compiling", console=Console(stderr=True)):
        if place.model not in problems:
            problems[place.model] = models.make(
                place.model, 8, dtype=jnp.bfloat16, make_arrays=jax.eval_shape
            )
        lines.append(compile_case(case, problems[place.model], place))
        append_lines(settings.out, lines[-1:])
    asked = {(place, case.name) for place, case in work}
    lines = [x for x in lines if (place_of(x), x["step"]) in asked]
    for place in all_places:
        of_place = [x for x in lines if place_of(x) == place]
        frame, width = (box.HEAVY_HEAD, None) if sys.stdout.isatty() else (box.MARKDOWN, 180)
        Console(width=width).print(table(of_place, place.title(), frame))
    for promise in (promises := missed(lines)):
        print("missed:", promise)
    if settings.check and promises:
        sys.exit(1)


if __name__ == "__main__":
    main(tyro.cli(Settings))
