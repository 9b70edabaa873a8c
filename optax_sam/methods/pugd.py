"""PUGD, perturbed unit gradient descent ("Update in Unit Gradient")."""

from optax_sam.engine import checks
from optax_sam.engine.assembly import SharpnessAware, sharpness_aware
from optax_sam.engine.hyperparameters import Radius
from optax_sam.pieces.ascents import to_radius
from optax_sam.pieces.combinations import unit, unit_sum
from optax_sam.pieces.geometries import magnitude


def pugd(radius: Radius = 1.0, sum_gradients: bool = True) -> SharpnessAware:
    """PUGD: ascent and descent are both steps of unit length.

    The perturbation is larger where weights are larger. The descent is the direction of the sum of both
    gradients. So the step length is the learning rate alone.

    `e = radius |w| g / || |w| g ||`, `g' = grad L(w + e)`, descent `(g + g') / ||g + g'||`; norms over
    all parameters.

    Args:
      radius: L2 norm of the perturbation. 1 in the paper. A number or a schedule of the step.
      sum_gradients: False descends along `g' / ||g'||`, without the sum.

    Returns:
      A `SharpnessAware` transformation, to stand first in an `optax.chain`.

    Raises:
      ValueError: `radius` is negative.

    Cost:
      2 gradients per step; no parameter-sized buffer between steps.

    Guarantees:
      The descent has norm 1 (0 where the gradients vanish), whatever the scale of the loss. Weights
      that are zero are not perturbed. `radius=0` gives the unit gradient, not the base optimizer.

    Example:
      >>> import optax, optax_sam
      >>> tx = optax.chain(optax_sam.pugd(), optax.sgd(0.1, momentum=0.9))

    References:
      Ching-Hsun Tseng, Liu-Hsueh Cheng, Shin-Jye Lee, Xiaojun Zeng, `Perturbated Gradients Updating
      within Unit Space for Deep Learning <https://arxiv.org/abs/2110.00199>`_, 2021; its first version
      was called Update in Unit Gradient.

    Deviations:
      This is the method of the paper's second version and of the authors' code. The code updates batch
      statistics in both passes. Here they come from the first pass, as in all methods.
    """
    checks.number_or_schedule("radius", radius, low=0)
    checks.boolean("sum_gradients", sum_gradients)
    combination = unit_sum() if sum_gradients else unit()
    return sharpness_aware(to_radius(radius, magnitude()), combination=combination)
