"""One page about a trained network: its usual numbers, measured, printed and drawn."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.tree_util import Partial

from optax_sam.engine import checks
from optax_sam.sharpness.along import BatchSharpness, batch_sharpness
from optax_sam.sharpness.balls import Rise, surrogate_gap
from optax_sam.sharpness.critical import CriticalSharpness, critical_sharpness
from optax_sam.sharpness.eigenvalues import Eigenvalues, top_eigenvalues
from optax_sam.sharpness.layers import Layers, by_layer
from optax_sam.sharpness.problem import Problem
from optax_sam.sharpness.spectrum import SpectralDensity, Trace, spectral_density, trace

RADII = (0.01, 0.02, 0.05, 0.1, 0.2)
"""At which the loss is looked at."""


@dataclasses.dataclass(frozen=True)
class Report:
    """What `report` found.

    Attributes:
      loss: mean over all examples.
      size: float parameters.
      eigenvalues: the two largest and the two most negative ones.
      trace: of the Hessian.
      density: of its eigenvalues.
      radii: at which the loss was looked at.
      rises: of the batches' losses at SAM's perturbation, one for each radius.
      critical: sharpness along the gradient.
      batch: sharpness of the batches.
      layers: curvature by layer.
      learning_rate: None if not known.
      seconds: that it took.
    """

    loss: float
    size: int
    eigenvalues: Eigenvalues
    trace: Trace
    density: SpectralDensity = dataclasses.field(repr=False)
    radii: tuple[float, ...]
    rises: tuple[Rise, ...]
    critical: CriticalSharpness
    batch: BatchSharpness
    layers: Layers
    learning_rate: float | None
    seconds: float

    def rows(self) -> dict[str, str]:
        """Each number with its error, by the name of its measure."""
        values, residuals = self.eigenvalues.values, self.eigenvalues.residuals
        ends = [f"{v:.4g} ± {r:.1g}" for v, r in zip(values, residuals, strict=True)]
        low, high = self.critical.interval
        value = "hidden by rounding" if np.isnan(self.critical.value) else f"{self.critical.value:.4g}"
        edge = {} if self.learning_rate is None else {"2 / learning rate": f"{2 / self.learning_rate:.4g}"}
        products = f"not converged after {self.eigenvalues.products} products"
        return {
            "parameters": f"{self.size:,}",
            "loss": f"{self.loss:.4g}",
            "largest eigenvalues": ", ".join(ends[: len(ends) // 2]),
            "smallest eigenvalues": ", ".join(ends[len(ends) // 2 :]),
            **({} if self.eigenvalues.converged else {"eigenvalues": products}),
            "trace": f"{self.trace.value:.4g} ± {self.trace.standard_error:.1g}",
            "critical sharpness": f"{value} ({2 / high:.4g} to {_over(low):.4g})",
            "batch sharpness": f"{self.batch.value:.4g} ± {self.batch.standard_error:.1g}",
            **edge,
            **{
                f"rise at {rho:g}": f"{rise.value:.4g} ± {rise.standard_error:.1g}"
                for rho, rise in zip(self.radii, self.rises, strict=True)
            },
        }

    def __str__(self) -> str:
        lines = [f"{name:<22} {text}" for name, text in self.rows().items()]
        return "\n".join([*lines, "", str(self.layers), f"({self.seconds:.0f} s)"])


def report(
    loss_fn: Callable[[Any, Any], Any],
    params: Any,
    batches: Any,
    *,
    learning_rate: float | None = None,
    radii: Sequence[float] = RADII,
    picture: str | Path | None = None,
    seed: int = 0,
) -> Report:
    """One page about a network: prints its numbers with their errors, and draws them.

    The page has both ends of the spectrum, its trace and its density. It has the rise of the loss at SAM's
    perturbation for several radii. It has the critical sharpness along the gradient and the batch sharpness,
    beside `2 / learning_rate`. And it has the curvature by layer.

    Args:
      loss_fn: see `top_eigenvalues`.
      params: the parameters, two or more.
      batches: one batch, or many, of the size of training's. See `top_eigenvalues`. Errors over batches need
        two.
      learning_rate: of training, if known.
      radii: of SAM's perturbation, each 0 or more.
      picture: a file for the picture, such as "sharpness.png". Without a file, the picture stays open in
        pyplot, where a notebook shows it. Without matplotlib there is no picture.
      seed: of the random vectors.

    Returns:
      A `Report`, on the host. `plots.report` draws one again, or several beside each other.

    Raises:
      ValueError: the loss or a product is not finite, the gradient is zero, or an argument is out of range.
        Also what `hessian_vector_product` refuses.
      ImportError: `picture` is given, and matplotlib is not installed.

    Cost:
      At most 130 products with the Hessian and 15 for each layer, and about 15 gradients.
    """
    found = measured(loss_fn, params, batches, learning_rate=learning_rate, radii=radii, seed=seed)
    print(found)
    try:
        from optax_sam.sharpness import plots  # here, because matplotlib is an extra
    except ImportError:
        if picture is not None:
            raise
        return found
    figure = plots.report(found)
    if picture is not None:
        figure.savefig(picture, dpi=150)
        plots.pyplot.close(figure)
    return found


def measured(
    loss_fn: Callable[[Any, Any], Any],
    params: Any,
    batches: Any,
    *,
    learning_rate: float | None = None,
    radii: Sequence[float] = RADII,
    seed: int = 0,
) -> Report:
    """What `report` prints and draws."""
    start = time.perf_counter()
    checks.optional_positive("learning_rate", learning_rate)
    problem = Problem.of(loss_fn, params, batches)
    # As a Partial, a function is compiled once for all measurements.
    once = jax.tree.map(lambda x: Partial(x) if callable(x) else x, loss_fn), params, batches
    ends = min(2, problem.size // 2)
    rises = tuple(surrogate_gap(*once, rho) for rho in radii)
    eigenvalues = top_eigenvalues(*once, ends, which="both", max_products=60, seed=seed)
    return Report(
        float(np.mean([rise.loss for rise in rises])) if rises else problem.finite_loss(),
        problem.size,
        eigenvalues,
        trace(*once, num_products=20, seed=seed),
        spectral_density(*once, num_vectors=1, num_steps=30, seed=seed),
        tuple(float(rho) for rho in radii),
        rises,
        critical_sharpness(*once, learning_rate=learning_rate or 1.0),
        batch_sharpness(*once),
        by_layer(*once, seed=seed),
        learning_rate,
        time.perf_counter() - start,
    )


def _over(step: float) -> float:
    return 2 / step if step else float("inf")
