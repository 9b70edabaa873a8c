"""How far uphill, in which geometry: Optax transformations from a direction to a perturbation."""

import dataclasses
from typing import Any

import optax

from optax_sam import checks, trees
from optax_sam.geometry import Geometry, euclidean
from optax_sam.hyperparameters import ScalarOrSchedule, at_step


@dataclasses.dataclass(frozen=True)
class ToRadius:
    """See `to_radius`."""

    rho: ScalarOrSchedule
    geometry: Geometry

    def init(self, params: Any) -> optax.EmptyState:
        del params
        return optax.EmptyState()

    def update(self, updates: Any, state: Any, params: Any = None, *, step: Any = None, **extra_args):
        del extra_args
        if callable(self.rho) and step is None:
            raise ValueError("rho is a schedule, but step=None: pass the step count, update(..., step=step).")
        rho = at_step(self.rho, step)
        dual, norm = self.geometry.steepest(updates, params)
        unit = trees.divide(dual, norm)
        return trees.map_wide(lambda x: trees.times(rho, x), unit), state


def to_radius(
    rho: ScalarOrSchedule, geometry: Geometry | None = None
) -> optax.GradientTransformationExtraArgs:
    """`e = rho d / ||d||`: a perturbation of size `rho`, and zero where the direction is zero.

    Args:
      rho: the radius, 0 or more, in the norm of the geometry; a number, or a schedule of the step
        count, which `sharpness_aware` passes as the extra argument `step`. The count is that of the
        training steps, perturbed or not.
      geometry: what "size" means; `euclidean()` by default.

    Returns:
      An Optax transformation without state.

    Raises:
      ValueError: `rho` is negative.
    """
    checks.number_or_schedule("rho", rho, low=0)
    ascent = ToRadius(rho, euclidean() if geometry is None else geometry)
    return optax.GradientTransformationExtraArgs(ascent.init, ascent.update)
