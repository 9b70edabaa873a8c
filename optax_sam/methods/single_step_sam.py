"""S2-SAM, single-step SAM, and its friendly form."""

from optax_sam.engine import checks
from optax_sam.engine.assembly import SharpnessAware, sharpness_aware
from optax_sam.engine.hyperparameters import FixedProbability, Radius
from optax_sam.pieces.ascents import to_radius
from optax_sam.pieces.directions import batch_specific, gradient, previous_descent
from optax_sam.pieces.starts import ahead


def single_step_sam(
    rho: Radius = 0.05, friendly: bool = False, decay: FixedProbability = 0.99
) -> SharpnessAware:
    """S2-SAM: climbs along the last step's gradient, and takes one gradient itself.

    The gradient of the step before points uphill well enough. It is at hand, so that a step costs what SGD's
    costs.

    `e = rho d / ||d||`, `d` the last descent (zero at first); descent `g = grad L(w + e)`. Friendly:
    `d` minus the running mean of the descents before.

    Args:
      rho: radius, in the L2 norm over all parameters. A number or a schedule of the step.
      friendly: whether `d` is what was particular to the last batch (S2FSAM).
      decay: of that mean, from 0 to 1.

    Returns:
      A `SharpnessAware` transformation, to stand first in an `optax.chain`. It needs an oracle.

    Raises:
      ValueError: a number is outside its range. `grad_fn` comes in place of an oracle.
      TypeError: `friendly` is no Python bool.

    Cost:
      1 gradient per step; one parameter-sized buffer (friendly: two).

    Guarantees:
      `rho=0` is the base optimizer. `loss` is that of the perturbed point.

    Example:
      >>> import optax, optax_sam
      >>> tx = optax.chain(optax_sam.single_step_sam(0.05), optax.sgd(0.1, momentum=0.9))

    References:
      Jie Ji, Gen Li, Jingjing Fu, Fatemeh Afghah, Linke Guo, Xiaoyong Yuan, Xiaolong Ma, `A
      Single-Step, Sharpness-Aware Minimization is All You Need to Achieve Efficient and Accurate Sparse
      Training <https://openreview.net/forum?id=MJgMMqMDu4>`_, NeurIPS 2024.

    Deviations:
      The direction of the friendly form uses the mean before the last descent, as Friendly SAM here.
    """
    checks.number("decay", decay, low=0, high=1)
    checks.boolean("friendly", friendly)
    made = batch_specific(1.0, decay) if friendly else gradient()
    return sharpness_aware(to_radius(rho), direction=previous_descent(made), start=ahead())
