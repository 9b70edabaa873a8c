"""Momentum SAM, MSAM: the perturbation along the momentum, for one gradient a step."""

from collections.abc import Callable

from optax_sam.engine.aliases import OptState, Params
from optax_sam.engine.assembly import SharpnessAware, sharpness_aware
from optax_sam.engine.hyperparameters import FixedProbability, Radius
from optax_sam.pieces.ascents import to_radius
from optax_sam.pieces.directions import descent_momentum
from optax_sam.pieces.starts import ahead


def momentum_sam(
    rho: Radius = 0.3,
    momentum: FixedProbability = 0.9,
    read_momentum: Callable[[OptState], Params] | None = None,
) -> SharpnessAware:
    """Momentum SAM: one gradient, taken ahead along the momentum.

    Seen from ahead, the momentum of the last steps points where the loss is high on average over batches. It
    is known before the step begins, so that one gradient is enough.

    `e = -rho v / ||v||`, `v` the momentum; descent `g = grad L(w + e)`.

    Args:
      rho: radius, in the L2 norm over all parameters. A number or a schedule of the step.
      momentum: of the method's own trace, from 0 to 1, used where the base optimizer has none.
      read_momentum: `read_momentum(opt_state)` returns the base optimizer's momentum, a tree like the
        parameters. None searches for it by name.

    Returns:
      A `SharpnessAware` transformation, to stand first in an `optax.chain`. It needs an oracle.

    Raises:
      ValueError: `rho` is negative, or `momentum` outside [0, 1]. `grad_fn`, or an oracle made by hand, comes
        in place of the step's oracle. In a step, `opt_state` holds several momenta, or `read_momentum`
        returns another tree.

    Cost:
      1 gradient per step; one parameter-sized buffer.

    Guarantees:
      `rho=0` is the base optimizer. The momentum is the base optimizer's own (`trace` or `mu`), if the
      optimizer state that `value_and_grad` was given has one shaped like the parameters. Otherwise it is the
      method's, `v = momentum v + g`. `directions.where_momentum_is(opt_state, params)` tells which one is
      used. With `read_momentum` there is no buffer. `loss` is that of the perturbed point.

    Example:
      >>> import optax, optax_sam
      >>> tx = optax.chain(optax_sam.momentum_sam(0.3), optax.sgd(0.1, momentum=0.9))

    References:
      Marlon Becker, Frederick Altrock, Benjamin Risse, `Momentum-SAM: Sharpness Aware Minimization
      without Computational Overhead <https://arxiv.org/abs/2401.12033>`_, 2024; code
      github.com/MarlonBecker/MSAM.

    Deviations:
      The parameters stay where they are, and the perturbed point is made anew in each step. Evaluate and
      store `params` as they are. The authors' code keeps the perturbed parameters, and decays those.
    """
    return sharpness_aware(to_radius(rho), direction=descent_momentum(momentum, read_momentum), start=ahead())
