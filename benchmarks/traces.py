"""How far each estimate of a trace is off, for the same number of products.

    python -m benchmarks.traces

The matrices have 400 rows and known eigenvalues. These are about alike, or fall as a power, or are ten large
ones beside a bulk around zero, as in trained networks.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Any, Literal, get_args

import jax.numpy as jnp
import numpy as np
import tyro
from jax.tree_util import Partial
from rich.console import Console
from rich.table import Table

from benchmarks import programs
from optax_sam import sharpness

Method = Literal["hutchinson", "hutch++", "xtrace"]

SIZE = 400

SPECTRA = {
    "flat": np.linspace(0.5, 1.5, SIZE),
    "power": 1 / np.arange(1, SIZE + 1),
    "outliers": np.r_[np.linspace(100, 10, 10), 0.02 * np.sin(np.arange(SIZE - 10))],
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """Measure the error of traces."""

    products: tuple[int, ...] = (12, 30)
    """Products for each estimate."""
    seeds: int = 20
    """Estimates of each kind."""
    out: Path = Path("runs/benchmarks/traces.jsonl")
    """JSON lines are added to this file."""


def loss_of(spectrum: np.ndarray) -> Partial:
    """A quadratic loss whose Hessian has these eigenvalues."""
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=[SIZE, SIZE]))[0]
    matrix = jnp.asarray(rotation * spectrum @ rotation.T, jnp.float32)
    return Partial(lambda a, w, batch: batch * (w @ a @ w / 2), matrix)


def measure(spectrum: np.ndarray, method: Method, products: int, seeds: int) -> dict[str, Any]:
    """The error of a method, as a part of the sum of the eigenvalues' sizes, and how it judged itself."""
    loss_fn, scale = loss_of(spectrum), np.abs(spectrum).sum()
    found = [
        sharpness.trace(
            loss_fn, jnp.zeros(SIZE), jnp.ones(1), num_products=products, method=method, seed=seed
        )
        for seed in range(seeds)
    ]
    errors = np.array([each.value - spectrum.sum() for each in found])
    told = np.array([each.standard_error for each in found])
    return {
        "error": float(np.sqrt(np.mean(errors**2)) / scale),
        "told": float(np.sqrt(np.mean(told**2)) / scale),
        "within_two": float(np.mean(np.abs(errors) <= 2 * told + 1e-6 * scale)),
    }


def main(settings: Settings) -> None:
    """Measures, prints and writes all."""
    about = programs.environment()
    table = Table(title=f"error of a trace as a part of it, {settings.seeds} seeds (standard error it tells)")
    for heading in ("eigenvalues", "products", *get_args(Method)):
        table.add_column(heading, justify="right")
    for name, spectrum in SPECTRA.items():
        for products in settings.products:
            lines = {m: measure(spectrum, m, products, settings.seeds) for m in get_args(Method)}
            programs.append_lines(settings.out, [{"spectrum": name, "products": products} | lines | about])
            cells = [f"{line['error']:.1e} ({line['told']:.1e})" for line in lines.values()]
            table.add_row(name, str(products), *cells)
    Console(width=None if sys.stdout.isatty() else 140).print(table)


if __name__ == "__main__":
    main(tyro.cli(Settings))
