"""Training steps compiled for GPUs and TPUs that are not there: what their programs consist of.

    make accelerators

Nothing is run: loops, conditionals, kernels, collectives, memory and donation are read from the compiled
program, and beside them SAM and a gate as they are written by hand in plain JAX. Times, numerics and what
autotuning would choose cannot be known so.
"""

import dataclasses
import json
import math
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.running import topologies  # which sets the environment that libtpu reads

# isort: split
import jax
import jax.numpy as jnp
import optax
import tyro
from jax.sharding import NamedSharding, PartitionSpec
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks import models
from benchmarks.cases import RHO, Case, base, sgd
from benchmarks.catalogue import all_cases
from benchmarks.programs import append_lines, environment

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
MOST_TEMPORARIES, MOST_KERNELS = 1.05, 1.35
HEADLINE = ("sam", "momentum_sam", "rst", "vsam")


@dataclasses.dataclass(frozen=True)
class Settings:
    """Compile training steps for accelerators that are not there, and read the programs."""

    machines: tuple[str, ...] = ("h100:1x1x1",)
    """Kinds and shapes: h100:1x1x8, v5e:16x16, v5p:8x8x8, v6e:16x16."""
    models: tuple[str, ...] = ("mlp", "resnet", "transformer")
    """Networks; computing in bfloat16, parameters in float32 on all chips."""
    only: tuple[str, ...] = ()
    """Steps by their names in the table, beside SGD and those by hand; the headline ones by default."""
    every: bool = False
    """Every public method."""
    batch_size: int = 128
    """Examples on each chip."""
    out: Path = Path("runs/benchmarks/accelerators.jsonl")
    """JSON lines, one for each program, are added to this file; those that stand in it are not made again."""
    check: bool = False
    """Exit with 1 where a promise is missed."""


def sam_by_hand(losses: Any) -> Any:
    """SAM in plain JAX."""
    tx = base()

    def step(params, stats, state, batch):
        gradient = jax.value_and_grad(lambda p: _mean(losses, stats, batch, p), has_aux=True)
        (loss, stats), grads = gradient(params)
        grads = gradient(_moved(params, grads))[1]
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), stats, state, loss

    return tx.init, step


def gate_by_hand(losses: Any) -> Any:
    """The same with the second gradient inside a conditional, in every second step."""
    tx = base()

    def init(params):
        return jnp.zeros([], jnp.int32), tx.init(params)

    def step(params, stats, state, batch):
        number, state = state
        gradient = jax.value_and_grad(lambda p: _mean(losses, stats, batch, p), has_aux=True)
        (loss, stats), grads = gradient(params)
        is_due = number % 2 == 0
        grads = jax.lax.cond(is_due, lambda: gradient(_moved(params, grads))[1], lambda: grads)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), stats, (number + 1, state), loss

    return init, step


def _mean(losses, stats, batch, params):
    found, stats = losses(params, stats, batch)
    return found.mean(), stats


def _moved(params, grads):
    norm = optax.tree.norm(grads)
    return jax.tree.map(lambda w, g: w + RHO * g / norm, params, grads)


BY_HAND = (
    Case("sgd", sgd, 1),
    Case("sam, by hand", sam_by_hand, 2),
    Case("gate, by hand", gate_by_hand, None),
)


def compile_case(case: Case, problem: models.Problem, machine: str, batch_size: int) -> dict[str, Any]:
    """What one compiled step consists of, or why it cannot be compiled."""
    mesh = topologies.mesh(machine)
    whole, split = (NamedSharding(mesh, PartitionSpec(*spec)) for spec in ((), ("data",)))
    line: dict[str, Any] = {"machine": machine, "model": problem.name, "step": case.name}

    def like(tree, sharding):
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)

    rows = batch_size * mesh.size
    batch = {
        key: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype, sharding=split)
        for key, x in problem.batch.items()
    }
    init, step = case.build(problem.losses)
    kept = like((problem.params, problem.stats, jax.eval_shape(init, problem.params)), whole)
    options = {} if topologies.is_gpu(machine) else {"exec_time_optimization_effort": -1.0}
    begin = time.perf_counter()
    try:
        with jax.set_mesh(mesh):
            jitted = jax.jit(step, donate_argnums=(0, 1, 2), compiler_options=options)
            compiled = jitted.lower(*kept, batch).compile()
    except Exception as error:  # it is told, and the others go on
        return line | {"error": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"}
    line["compile_seconds"] = round(time.perf_counter() - begin, 1)
    sizes = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(kept))
    return line | counts(compiled) | {"kept_mb": sizes / 1e6, **environment()}


def counts(compiled: Any) -> dict[str, Any]:
    """What stands in a compiled program."""
    text, memory = compiled.as_text(), compiled.memory_analysis()
    operations = re.findall(r"^ +(?:ROOT )?%?[\w.\-]+ = .*? ([a-z][\w\-]*)\(", text, flags=re.MULTILINE)
    number = {name: operations.count(name) for name in ("while", "conditional", "fusion", "copy", "sort")}
    costs = compiled.cost_analysis() or {}
    return {
        "loops": number["while"],
        "conditionals": number["conditional"],
        "kernels": number["fusion"],
        "copies": number["copy"],
        "sorts": number["sort"],
        "collectives": {
            name: n
            for name in COLLECTIVES
            if (n := operations.count(name) + operations.count(f"{name}-start"))
        },
        "temporaries_mb": memory.temp_size_in_bytes / 1e6,
        "donated_mb": memory.alias_size_in_bytes / 1e6,
        "flops": costs.get("flops"),
        "bytes": costs.get("bytes accessed"),
    }


def missed(lines: Sequence[dict[str, Any]]) -> list[str]:
    """The promises that are not kept: all state is donated; SAM and its kin are as lean as by hand."""
    found = []
    for line in lines:
        name = f"{line['step']} for {line['machine']}, {line['model']}"
        if "error" in line:
            found.append(f"{name}: {line['error']}")
            continue
        if line["donated_mb"] < 0.99 * line["kept_mb"]:
            found.append(f"{name}: {line['donated_mb']:.1f} of {line['kept_mb']:.1f} MB are donated")
        by_hand = "gate, by hand" if line["conditionals"] else "sam, by hand"
        (other,) = [
            x for x in lines if x["step"] == by_hand and all(x[k] == line[k] for k in ("machine", "model"))
        ] or [None]
        if line["step"] not in ("sam", "momentum_sam", "rst") or other is None:
            continue
        for key, most in (("temporaries_mb", MOST_TEMPORARIES), ("kernels", MOST_KERNELS)):
            if line[key] > most * other[key]:
                found.append(
                    f"{name}: {key} {line[key]:.4g}, by hand {other[key]:.4g} (at most {most:g} times)"
                )
        if line["loops"] > other["loops"]:
            found.append(f"{name}: {line['loops']} loops, by hand {other['loops']}")
    return found


def table(lines: Sequence[dict[str, Any]], machine: str, model: str) -> Table:
    """The figures of one machine and network."""
    heads = ("step", "loops", "conds", "kernels", "collectives", "temp. MB", "kept twice MB")
    result = Table(*heads, title=f"{machine}, {model}")
    for line in lines:
        if (line["machine"], line["model"]) != (machine, model):
            continue
        if "error" in line:
            result.add_row(line["step"], line["error"])
            continue
        sent = ", ".join(f"{n} {name}" for name, n in line["collectives"].items())
        lost = line["kept_mb"] - line["donated_mb"]
        figures = (line["loops"], line["conditionals"], line["kernels"], sent)
        result.add_row(
            line["step"], *map(str, figures), f"{line['temporaries_mb']:.1f}", f"{max(lost, 0):.1f}"
        )
    return result


def main(settings: Settings) -> None:
    """Compiles what is not there yet, prints tables, and says which promises are missed."""
    known = [json.loads(x) for x in settings.out.read_text().splitlines()] if settings.out.exists() else []
    done = {(x["machine"], x["model"], x["step"]) for x in known}
    wanted = settings.only or (() if settings.every else HEADLINE)
    others = [
        c for c in all_cases() if c.name not in ("sgd", "sgd, again") and (not wanted or _name(c) in wanted)
    ]
    cases = [*BY_HAND, *others]
    work = [
        (machine, model, case)
        for machine in settings.machines
        for model in settings.models
        for case in cases
        if (machine, model, case.name) not in done
    ]
    settings.out.parent.mkdir(parents=True, exist_ok=True)
    problems: dict[str, models.Problem] = {}
    for machine, model, case in track(work, "compiling", console=Console(stderr=True)):
        if model not in problems:
            problems[model] = models.make(model, 8, dtype=jnp.bfloat16)
        line = compile_case(case, problems[model], machine, settings.batch_size)
        append_lines(settings.out, [line])
        known.append(line)
    for machine in settings.machines:
        for model in settings.models:
            Console().print(table(known, machine, model))
    for promise in (promises := missed(known)):
        print("missed:", promise)
    if settings.check and promises:
        sys.exit(1)


def _name(case: Case) -> str:
    """The method of a case."""
    return re.split("[,(]", case.name)[0]


if __name__ == "__main__":
    main(tyro.cli(Settings))
