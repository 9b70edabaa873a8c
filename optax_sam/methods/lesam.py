"""LE-SAM, SAM with a budget of loss in place of a radius."""

from optax_sam.engine.assembly import SharpnessAware, sharpness_aware
from optax_sam.engine.hyperparameters import Cap, NotNegative
from optax_sam.pieces.ascents import within_loss_budget


def lesam(budget: NotNegative = 0.35, max_rho: Cap = 0.3) -> SharpnessAware:
    """LE-SAM: perturbs as far as the loss rises by a given amount.

    At a fixed radius the loss rises by the radius times the norm of the gradient, to first order. SAM then
    mostly sees that norm. With a fixed rise it sees the curvature.

    `e = min(budget / ||g||, max_rho) g / ||g||`, the norm over all parameters; descent `g' = grad L(w + e)`.

    Args:
      budget: how far the loss may rise, in its own units. A number or a schedule of the step. The authors let
        it fall to 0 at the end: `schedules.cosine_at_end(0.35, total_steps)`.
      max_rho: largest radius, in the L2 norm over all parameters. A number or a schedule of the step.

    Returns:
      A `SharpnessAware` transformation, to stand first in an `optax.chain`.

    Raises:
      ValueError: `budget` or `max_rho` is negative.

    Cost:
      2 gradients per step; no parameter-sized buffer.

    Guarantees:
      `<g, e>` is at most `budget`, and the norm of the perturbation at most `max_rho`. One of the two bounds
      is reached. A zero gradient gives no perturbation. `budget=0` and `max_rho=0` are the base optimizer. It
      is SAM of radius `max_rho` while the gradient is shorter than `budget / max_rho`.

    Example:
      >>> import optax, optax_sam
      >>> budget = optax_sam.schedules.cosine_at_end(0.35, total_steps=1000)
      >>> tx = optax.chain(optax_sam.lesam(budget, max_rho=0.3), optax.sgd(0.1, momentum=0.9))

    References:
      Jinping Wang, Qinhan Liu, Zhiwu Xie, Zhiqiang Gao, `Fix the Loss, Not the Radius: Rethinking the
      Adversarial Perturbation of Sharpness-Aware Minimization <https://arxiv.org/abs/2605.10183>`_, 2026;
      code github.com/smithgun2005/LE-SAM-ICML2026.

    Limits:
      A budget belongs to a loss. At the start the loss is large and the gradient small, so that the radius is
      at its cap.

    Deviations:
      The abstract and the code of the paper were read, not the sections on its settings. The defaults are
      those of the code. Its README trains with `lesam_rho_max=999`, which is no cap. The code adds 1e-12 to
      the norm and to its square. Here a zero gradient gives no perturbation. The code lets the budget grow
      from 0 in the first 10 of 200 epochs. From epoch 160 on it lets the budget fall, once an epoch. The
      schedule here falls in every step, from the same part of the training on, and does not grow.
    """
    return sharpness_aware(within_loss_budget(budget, max_rho))
