"""How far a perturbation goes in 16 bits: to the nearest number, rounded by chance, and cast by the loss.

`python -m benchmarks.rounding` prints the distances as parts of the radius.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console
from rich.table import Table

import optax_sam
from optax_sam.arithmetic import trees
from optax_sam.pieces.ascents import chained, rounded_by_chance, to_radius

WEIGHTS, SEEDS = 200_000, 3


class Distance(NamedTuple):
    """How far the perturbed point is from the parameters.

    Attributes:
      along: the direction.
      whole: in the L2 norm.
      told: by `optax_sam.info`.
    """

    along: float
    whole: float
    told: float


def params_of(dtype: Any, size: int = WEIGHTS) -> dict[str, jax.Array]:
    """As many normal weights, of deviation 0.02, as those of a transformer have at first."""
    return {"kernel": (0.02 * jax.random.normal(jax.random.key(0), (size,))).astype(dtype)}


def losses(params: Any, batch: jax.Array) -> jax.Array:
    """Any function with a gradient in each entry."""
    return batch * jnp.sum(jnp.sin(50.0 * params["kernel"].astype(jnp.float32)))


def moved(
    ascent: optax.GradientTransformationExtraArgs, params: Any, seed: int = 0, read_as: Any = None
) -> Distance:
    """The distance of one perturbation, as a loss sees it that reads the parameters as another dtype."""
    method = optax_sam.sharpness_aware(ascent, seed=seed)

    @jax.jit
    def step(params):
        state = method.init(params)
        _, grads, oracle = method.value_and_grad(losses)(params, jnp.ones(2), state=state)
        _, state = method.update(grads, state, params, oracle=oracle)
        return grads, optax_sam.info(state)["perturbation_norm"]

    grads, told = step(params)
    key = jax.random.key(seed)
    perturbation, _ = ascent.update(grads, ascent.init(params), params, step=0, key=key)
    point = trees.add_perturbation(params, perturbation)
    way, unit = (
        np.asarray(x["kernel"].astype(read), np.float64) - np.asarray(y["kernel"].astype(read), np.float64)
        for x, y, read in (
            (point, params, read_as or params["kernel"].dtype),
            (grads, jax.tree.map(jnp.zeros_like, grads), jnp.float32),
        )
    )
    return Distance(way @ unit / np.linalg.norm(unit), float(np.linalg.norm(way)), float(told))


def main() -> None:
    """Prints the table."""
    table = Table("radius", "radius of 20 million weights", "rounding", "along the direction", "whole")
    narrow, wide = params_of(jnp.bfloat16), params_of(jnp.float32)
    for rho in (0.05, 0.005, 0.0005):
        for name, ascent, params in (
            ("nearest", to_radius(rho), narrow),
            ("by chance", _by_chance(rho), narrow),
            ("float32, cast by the loss", to_radius(rho), wide),
        ):
            found = [moved(ascent, params, seed, jnp.bfloat16)[:2] for seed in range(SEEDS)]
            found = np.array(found) / rho
            mean, spread = found.mean(0), found.std(0, ddof=1)
            cells = [f"{m:.3f} ± {s:.3f}" for m, s in zip(mean, spread, strict=True)]
            table.add_row(f"{rho:g}", f"{10 * rho:g}", name, *cells)
    table.caption = f"{WEIGHTS} weights of deviation 0.02, read in bfloat16; parts of the radius, n = {SEEDS}"
    Console(width=110).print(table)


def _by_chance(rho: float) -> optax.GradientTransformationExtraArgs:
    return chained(to_radius(rho), rounded_by_chance())


if __name__ == "__main__":
    main()
