"""Which radius to begin with, from how the loss rises around parameters some way into training."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from optax_sam.engine import checks
from optax_sam.sharpness.balls import climbed
from optax_sam.sharpness.eigenvalues import top_eigenvalues
from optax_sam.sharpness.problem import NotFiniteError, Problem, norm
from optax_sam.sharpness.progress import shown
from optax_sam.sharpness.standard_errors import standard_error

RADII = tuple(float(f"{10 ** (n / 4 - 3):.3g}") for n in range(19))
"""0.001 to 31.6, four in each factor of ten."""

RELATIVE_RISE = 0.75
"""The rise, as a part of the loss, at the radius that is recommended."""

APART = 0.5
"""How far the rise is from its first-order prediction where the two part, as a part of the prediction."""


@dataclasses.dataclass(frozen=True)
class RadiusTest:
    """How the loss rises with the radius, batch by batch.

    Attributes:
      radii: `float64[n]`, ascending.
      rises: `float64[n]`, the mean over batches of `L_B(w + rho g_B / ||g_B||) - L_B(w)`. Infinite where a
        loss was not finite.
      standard_errors: `float64[n]`, of these means. NaN with one batch.
      predicted: `float64[n]`, the first-order prediction `rho ||g_B||`, the same mean.
      loss: at the parameters.
      gradient_norm: the mean of `||g_B||` over batches.
      eigenvalue: the largest of the Hessian of the mean loss. NaN where it was not asked for.
      edges: `float64[n]`, the eigenvalue at which SAM with this radius and learning rate comes to rest. NaN
        without a learning rate.
      recommended: the radius at which the loss rises by three quarters, or the last one before the loss is
        infinite. NaN if the loss does neither, or rises by more at all radii.
      parts_at: the first radius at which the rise differs from its prediction by more than half of the
        prediction, between the measured ones. The first infinite one if the rise is nearer before that. The
        first of all if it differs by more there. NaN if it does so at none.
    """

    radii: np.ndarray
    rises: np.ndarray
    standard_errors: np.ndarray
    predicted: np.ndarray
    loss: float
    gradient_norm: float
    eigenvalue: float
    edges: np.ndarray
    recommended: float
    parts_at: float

    @property
    def relative_rises(self) -> np.ndarray:
        """The rises as a part of the loss, `float64[n]`: what a radius does."""
        return self.rises / self.loss

    def __str__(self) -> str:
        lines = [f"{'rho':>8} {'rise / loss':>12} {'rise / predicted':>17}"]
        rows = zip(self.radii, self.relative_rises, self.rises / self.predicted, strict=True)
        lines += [f"{rho:>8.3g} {relative:>12.3g} {bent:>17.3g}" for rho, relative, bent in rows]
        return "\n".join([*lines, self.reason])

    @property
    def reason(self) -> str:
        """What is recommended, and why, in a sentence."""
        if np.isnan(self.recommended):
            low = self.relative_rises[0] >= RELATIVE_RISE
            return (
                f"No radius is recommended: the loss rises by {'more' if low else 'less'} than "
                f"{RELATIVE_RISE:.0%} at all of them. Try {'smaller' if low else 'larger'} radii."
            )
        measured = self.relative_rises[self.radii == self.recommended]
        if any(measured < RELATIVE_RISE):
            rise = measured[0]
            return (
                f"Begin with rho = {self.recommended:.2g}: a batch's loss rises there by {rise:.2g} of "
                "itself, and is infinite at the next radius. Try radii between the two."
            )
        return (
            f"Begin with rho = {self.recommended:.2g}: a batch's loss rises there by {RELATIVE_RISE:.0%}, as "
            "about at the radii that were best on three small tasks."
        )


def radius_test(
    loss_fn: Callable[[Any, Any], Any],
    params: Any,
    batches: Any,
    *,
    radii: Sequence[float] = RADII,
    learning_rate: float | None = None,
    eigenvalue: bool = True,
    progress: bool = False,
) -> RadiusTest:
    """How much the loss of a batch rises with SAM's radius, and which radius to begin with.

    The rise is `L_B(w + rho u) - L_B(w) = rho ||g|| + rho^2 u^T H u / 2 + ...` along the normalized gradient
    `u = g / ||g||` of a batch. The recommended radius is the one at which the loss rises by three quarters.
    The number three quarters was chosen by hand on three small tasks. Where labels are wrong, the radius may
    be far too large. On MNIST-1D with a fifth of wrong labels it was ten times the tuned radius
    (docs/radius.md).

    Take the parameters after a tenth of the training with the base optimizer. Later the loss is smaller, and
    the same relative rise is reached at a smaller radius.

    Args:
      loss_fn: see `top_eigenvalues`.
      params: the parameters, after about a tenth of the base optimizer's training.
      batches: one batch, or many, of the size of training's. See `top_eigenvalues`. Ten are enough.
      radii: in ascending order, above 0.
      learning_rate: of gradient descent as the base optimizer. With it, `edges` tells at which eigenvalue SAM
        comes to rest, `(||g|| / 2 rho) (sqrt(1 + 8 rho / (learning_rate ||g||)) - 1)`. A radius has an effect
        if its edge is below the measured eigenvalue. Before a momentum `beta` pass
        `learning_rate / (1 + beta)`, as the edge of gradient descent moves by it. For Adam there is no such
        formula.
      eigenvalue: whether to measure the largest eigenvalue, too.
      progress: whether a bar is shown.

    Returns:
      A `RadiusTest`, on the host. `print` shows its table and the reason of what is recommended.

    Raises:
      ValueError: the loss or its gradient is not finite at the parameters, the loss is not above 0, or the
        gradient is zero. An argument is out of range. Also what `hessian_vector_product` refuses.
      TypeError: an argument is of another kind.

    Cost:
      A gradient and `len(radii) + 1` forward passes. The eigenvalue takes up to 25 Hessian products.

    Example:
      >>> import jax.numpy as jnp
      >>> from optax_sam import sharpness
      >>> loss_fn = lambda w, scale: scale @ w**2
      >>> found = sharpness.radius_test(loss_fn, jnp.ones(1), jnp.array([[1.0]]))
      >>> print(round(found.recommended, 2))
      0.32

    References:
      Philip M. Long, Peter L. Bartlett, `Sharpness-Aware Minimization and the Edge of Stability
      <https://arxiv.org/abs/2309.12488>`_, 2023: `edges`.
    """
    distances = _checked(radii)
    if learning_rate is not None:
        checks.number("learning_rate", learning_rate, low=0)
    checks.boolean("eigenvalue", eigenvalue)
    problem = Problem.of(loss_fn, params, batches)
    rises, norms, losses, sizes = [], [], [], []
    with shown(progress, "radii", problem.count and problem.count * len(distances)) as steps:
        for part, size in problem.parts(None):
            here, gradient = part.finite_loss(), part.gradient()
            there = []
            for rho in distances:
                moved = part.point.moved(climbed(part, gradient, float(rho)))
                there.append(part.at(moved).loss() - here)
                steps.advance()
            rises.append(np.where(np.isnan(there), np.inf, there))
            norms.append(float(norm(gradient)))
            losses.append(here)
            sizes.append(size)
    if not np.all(np.isfinite(norms)) or not np.any(norms):
        raise NotFiniteError("the gradient at params is zero or not finite: measure some way into training.")
    mean = np.average(rises, axis=0, weights=sizes)
    with np.errstate(invalid="ignore"):  # where a rise is infinite
        errors = [standard_error(list(each), sizes) for each in np.transpose(rises)]
    length, loss = (float(np.average(x, weights=sizes)) for x in (norms, losses))
    if loss <= 0:
        raise ValueError(f"the loss at params is {loss:g}: it must be above 0 to rise by a part of itself.")
    top = top_eigenvalues(loss_fn, params, batches).values[0] if eigenvalue else np.nan
    return RadiusTest(
        distances,
        mean,
        np.array(errors),
        distances * length,
        loss,
        length,
        float(top),
        edge_of_stability(distances, length, learning_rate),
        np.nan if mean[0] / loss >= RELATIVE_RISE else crossing(distances, mean / loss, RELATIVE_RISE),
        crossing(distances, np.abs(mean / (distances * length) - 1), APART, before_infinity=False),
    )


def edge_of_stability(radii: np.ndarray, gradient_norm: float, learning_rate: float | None) -> np.ndarray:
    """The largest eigenvalue at which SAM comes to rest, for each radius."""
    if not learning_rate:
        return np.full(len(radii), np.nan)
    ratio = gradient_norm / (2 * radii)
    return ratio * (np.sqrt(1 + 4 / (learning_rate * ratio)) - 1)


def crossing(radii: np.ndarray, values: np.ndarray, level: float, before_infinity: bool = True) -> float:
    """The first radius at which the values reach a level, between the measured ones. NaN if none.

    Where the values jump to infinity, the last radius before that, or the first one there. The first one of
    all if they are above the level all along.
    """
    above = np.flatnonzero(values >= level)
    if not len(above):
        return float("nan")
    if above[0] == 0:
        return float(radii[0])
    low, high = above[0] - 1, above[0]
    if not np.isfinite(values[high]):
        return float(radii[low] if before_infinity else radii[high])
    place = np.interp(level, values[[low, high]], np.log(radii[[low, high]]))
    return float(np.exp(place))


def _checked(radii: Sequence[float]) -> np.ndarray:
    """The radii as an array, if they are above 0 and ascend."""
    found = np.asarray(radii, dtype=np.float64)
    if (
        found.ndim != 1
        or not len(found)
        or not np.all(np.isfinite(found))
        or found[0] <= 0
        or np.any(np.diff(found) <= 0)
    ):
        raise ValueError(
            f"radii={radii} are not numbers above 0 in ascending order: give some, such as RADII."
        )
    return found
