"""How far uphill, in which geometry: Optax transformations from a direction to a perturbation."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
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

    def update(
        self, updates: Any, state: Any, params: Any = None, *, step: Any = None, **extra_args: Any
    ) -> tuple[Any, Any]:
        del extra_args
        return self.climb(updates, params, step)[0], state

    def climb(self, direction: Any, params: Any, step: Any) -> tuple[Any, jax.Array]:
        """The perturbation, and its L2 norm."""
        if callable(self.rho) and step is None:
            raise ValueError("rho is a schedule, but step=None: pass the step count, update(..., step=step).")
        rho = at_step(self.rho, step)
        dual, norm, length = self.geometry.steepest(direction, params)
        perturbation = trees.map_wide(lambda x: trees.times(rho, x), trees.divide(dual, norm))
        perturbation = optax.tree.cast_like(perturbation, direction)
        return perturbation, trees.times(rho, trees.divide(length, norm))


def climb(
    ascent: optax.GradientTransformation, direction: Any, state: Any, params: Any, step: Any
) -> tuple[Any, Any, jax.Array]:
    """The perturbation of any ascent, its new state, and the L2 norm of the perturbation.

    Leaves that `optax.masked` leaves out of the ascent come back as they went in, and are not
    perturbed. Where the ascent knows that norm it is not computed: on a CPU, XLA would write the whole
    perturbation once more only to add up its squares.
    """
    known: Any = getattr(ascent.update, "__self__", None)
    if isinstance(known, ToRadius):
        perturbation, length = known.climb(direction, params, step)
        return perturbation, state, length
    ascent = optax.with_extra_args_support(ascent)
    perturbation, new_state = ascent.update(direction, state, params, step=step)
    if _has_mask(state):
        perturbation = jax.tree.map(lambda e, d: jnp.zeros_like(d) if e is d else e, perturbation, direction)
    return perturbation, new_state, trees.norm(perturbation)


def _has_mask(state: Any) -> bool:
    def is_masked(part):
        return isinstance(part, optax.MaskedState)

    return any(map(is_masked, jax.tree.leaves(state, is_leaf=is_masked)))


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
      TypeError: `geometry` is none.
    """
    checks.number_or_schedule("rho", rho, low=0)
    checks.piece("geometry", geometry, "steepest")
    ascent = ToRadius(rho, euclidean() if geometry is None else geometry)
    return optax.GradientTransformationExtraArgs(ascent.init, ascent.update)
