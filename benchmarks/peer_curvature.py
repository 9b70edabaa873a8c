"""Top eigenvalue and trace here and by PyTorch's curvlinops: the same small network, weights and data.

    python3 -m venv /tmp/peer
    /tmp/peer/bin/pip install torch==2.13.0 curvlinops-for-pytorch
    python -m benchmarks.peer_curvature --python /tmp/peer/bin/python

Each side runs in its own process, one after the other. Each runs once before it is timed.
"""

import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from jax.flatten_util import ravel_pytree
from jax.tree_util import Partial
from rich.console import Console
from rich.table import Table

from benchmarks import programs
from optax_sam import sharpness

SIZES = (32, 24, 10)
"""Inputs, hidden units, classes."""

EXAMPLES = 256
TOLERANCE = 1e-4
PRODUCTS = 60
PEER = Path(__file__).with_name("peer_in_torch.py")


@dataclasses.dataclass(frozen=True)
class Settings:
    """Measure the curvature of one network by both libraries."""

    python: Path
    """The Python of an environment with torch and curvlinops."""
    rounds: int = 10
    """How often each is timed."""
    out: Path = Path("runs/benchmarks/peer_curvature.jsonl")
    """JSON lines are added to this file."""


def arrays() -> dict[str, np.ndarray]:
    """Weights and data, from NumPy."""
    rng, (inputs, hidden, classes) = np.random.default_rng(0), SIZES
    found = {
        "first": rng.normal(size=[inputs, hidden]) / np.sqrt(inputs),
        "bias": rng.normal(size=hidden) / 10,
        "last": rng.normal(size=[hidden, classes]) / np.sqrt(hidden),
        "last_bias": rng.normal(size=classes) / 10,
        "x": rng.normal(size=[EXAMPLES, inputs]),
    }
    label = {"label": rng.integers(0, classes, size=EXAMPLES)}
    return {name: value.astype(np.float32) for name, value in found.items()} | label


def losses(params: Any, batch: Any) -> jax.Array:
    """Cross entropy of a network with one hidden layer."""
    hidden = jnp.tanh(batch["x"] @ params["first"] + params["bias"][None])
    logits = hidden @ params["last"] + params["last_bias"][None]
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])


def here(given: dict[str, np.ndarray], rounds: int) -> dict[str, Any]:
    """What this library finds, and how long it takes."""
    batch = {name: jnp.asarray(given[name]) for name in ("x", "label")}
    params = {name: jnp.asarray(value) for name, value in given.items() if name not in batch}
    at = (Partial(losses), params, batch)
    flat, unravel = ravel_pytree(params)
    hessian = jax.hessian(lambda v: losses(unravel(v), batch).mean())(flat)
    top, top_seconds = timed(lambda: sharpness.top_eigenvalues(*at, tolerance=TOLERANCE), rounds)
    trace, trace_seconds = timed(lambda: sharpness.trace(*at, num_products=PRODUCTS, method="xtrace"), rounds)
    return {
        "top": float(top.values[0]),
        "top_products": top.products,
        "top_seconds": top_seconds,
        "trace": trace.value,
        "trace_error": trace.standard_error,
        "trace_seconds": trace_seconds,
        "exact_top": float(np.linalg.eigvalsh(np.asarray(hessian, float))[-1]),
        "exact_trace": float(np.trace(np.asarray(hessian, float))),
    }


def timed(call: Callable[[], Any], rounds: int) -> tuple[Any, list[float]]:
    """What a call returns, and the CPU seconds of some calls after the first."""
    found, seconds = call(), []
    for _ in range(rounds):
        begin = time.process_time()
        call()
        seconds.append(time.process_time() - begin)
    return found, seconds


def main(settings: Settings) -> None:
    """Measures, prints and writes all."""
    about, given = programs.environment(), arrays()
    file = settings.out.with_suffix(".npz")
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez(file, **given)  # pyrefly: ignore[bad-argument-type]
    ours = here(given, settings.rounds)
    command = [
        str(settings.python),
        str(PEER),
        str(file),
        str(settings.rounds),
        str(TOLERANCE),
        str(PRODUCTS),
    ]
    there = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    programs.append_lines(settings.out, [{"here": ours, "peer": there} | about])
    table = Table(title=f"one network, {settings.rounds} rounds, CPU seconds")
    for heading in ("", "exact", "optax_sam", "seconds", there["versions"], "seconds"):
        table.add_column(heading, justify="right")
    for name in ("top", "trace"):
        spreads = [programs.spread(programs.summary(np.array(x[f"{name}_seconds"]))) for x in (ours, there)]
        exact, one, other = (f"{x:.6g}" for x in (ours[f"exact_{name}"], ours[name], there[name]))
        table.add_row(name, exact, one, spreads[0], other, spreads[1])
    Console(width=None if sys.stdout.isatty() else 140).print(table)


if __name__ == "__main__":
    main(tyro.cli(Settings))
