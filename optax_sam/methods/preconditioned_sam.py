"""SAM whose ascent is preconditioned as the descent of Adam is."""

from collections.abc import Callable

from optax_sam.engine.aliases import OptState, Params
from optax_sam.engine.assembly import SharpnessAware, sharpness_aware
from optax_sam.engine.hyperparameters import FixedPositive, FixedProbability, Radius
from optax_sam.pieces.ascents import to_radius
from optax_sam.pieces.directions import preconditioned


def preconditioned_sam(
    rho: Radius = 0.05,
    decay: FixedProbability = 0.999,
    epsilon: FixedPositive = 1e-8,
    read_second_moment: Callable[[OptState], Params] | None = None,
) -> SharpnessAware:
    """Preconditioned SAM: climbs along the gradient as Adam divides it.

    Adam gives each entry its own step. The ascent takes the same steps uphill. It uses the second moment that
    the base optimizer keeps anyway.

    `e = rho d / ||d||`, `d = g / (sqrt(v) + epsilon)`, `g = grad L(w)`, `v` the base's second moment before
    the step; descent `g' = grad L(w + e)`.

    Args:
      rho: radius, in the L2 norm over all parameters. A number or a schedule of the step.
      decay: of the method's own `v`, from 0 to 1, used where the base optimizer has none.
      epsilon: above 0, in the units of the gradient.
      read_second_moment: `read_second_moment(opt_state)` returns the base optimizer's second moment, a tree
        like the parameters. None searches for it by name.

    Returns:
      A `SharpnessAware` transformation, to stand first in an `optax.chain`. It needs an oracle.

    Raises:
      ValueError: `rho` is negative, `epsilon` not above 0, or `decay` outside [0, 1]. `grad_fn`, or an oracle
        made by hand, comes in place of the step's oracle. In a step, `opt_state` holds several second
        moments, or `read_second_moment` returns another tree.

    Cost:
      2 gradients per step; one parameter-sized buffer.

    Guarantees:
      The perturbation has norm `rho`, and is zero for a zero gradient. `rho=0` is the base optimizer. In the
      first step, where `v = 0`, it is SAM. `v` is the base optimizer's own (`nu`), if the optimizer state
      that `value_and_grad` was given has one shaped like the parameters. Otherwise it is the method's,
      `v = decay v + (1 - decay) g'^2`. `directions.where_second_moment_is(opt_state, params)` tells which one
      is used. With `read_second_moment` there is no buffer.

    Example:
      >>> import optax, optax_sam
      >>> nu = lambda opt_state: optax.tree.get(opt_state, "nu")
      >>> tx = optax.chain(optax_sam.preconditioned_sam(0.1, read_second_moment=nu), optax.adamw(1e-3))

    References:
      Sidak Pal Singh, Hossein Mobahi, Atish Agarwala, Yann Dauphin, `Avoiding Spurious Sharpness Minimization
      Broadens Applicability of SAM <https://arxiv.org/abs/2502.02407>`_, 2025.

    Limits:
      An entry that has had no gradient yet is divided by `epsilon` alone, and takes most of the radius. The
      rows of rare tokens in an embedding do so. A larger `epsilon` bounds their share. `optax.adamax`,
      `optax.sm3` and `optax.contrib.sophia` keep something else under the name `nu`. That of `optax.sm3` has
      both signs, and its root is NaN. `optax.rmsprop(centered=True)` divides
      by the variance, and its `nu` is the moment about zero.

    Deviations:
      Only the abstract of the paper was read, and the rule at second hand. How it treats the first steps and
      `epsilon` is not known here. The scale of `v`, and with it Adam's bias correction, cancels except in
      `epsilon`.
    """
    return sharpness_aware(to_radius(rho), direction=preconditioned(decay, epsilon, read_second_moment))
