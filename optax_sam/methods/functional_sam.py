"""Functional SAM: SAM without what it does to the logits."""

from collections.abc import Callable
from typing import Any

from optax_sam.engine.assembly import SharpnessAware, sharpness_aware
from optax_sam.engine.hyperparameters import Radius
from optax_sam.pieces.ascents import to_radius
from optax_sam.pieces.selections import through_outputs


def functional_sam(
    outputs: Callable[..., Any],
    output_losses: Callable[[Any, Any], Any],
    rho: Radius = 0.05,
) -> SharpnessAware:
    """Functional SAM: the Jacobian at the perturbed point, the loss's own gradient at the clean one.

    SAM can lower its loss by other logits alone, without a flatter network. The paper finds that this is most
    of what it does in language models. Here the perturbation moves the Jacobian, but not the gradient of the
    loss by the logits.

    `e = rho g / ||g||`, `g = grad L(w)`; descent `g' = J(w + e)^T dl/dz (z(w))`, with the outputs `z`, their
    Jacobian `J` by the parameters, and `L(w) = mean l(z(w))`.

    Args:
      outputs: `outputs(params, batch)`, `z`: a tree of float arrays, such as logits. It is called with all
        arguments of the loss function.
      output_losses: `output_losses(outputs, batch)`, `l`: one loss per example, shape `[batch]`, or their
        mean.
      rho: radius, in the L2 norm over all parameters. A number or a schedule of the step.

    Returns:
      A `SharpnessAware` transformation, to stand first in an `optax.chain`. It needs an oracle.

    Raises:
      TypeError: `outputs` or `output_losses` is no function.
      ValueError: `rho` is negative.

    Cost:
      2 gradients and a forward pass per step; no parameter-sized buffer.

    Guarantees:
      `rho=0` is the base optimizer. It is SAM where the losses are linear in the outputs.

    Example:
      >>> import optax, optax_sam
      >>> logits = lambda params, batch: batch["x"] @ params["w"]
      >>> cross_entropy = optax.softmax_cross_entropy_with_integer_labels
      >>> sam = optax_sam.functional_sam(logits, lambda z, batch: cross_entropy(z, batch["y"]), rho=0.05)
      >>> tx = optax.chain(sam, optax.adamw(1e-3))

    References:
      Sidak Pal Singh, Hossein Mobahi, Atish Agarwala, Yann Dauphin, `Avoiding Spurious Sharpness Minimization
      Broadens Applicability of SAM <https://arxiv.org/abs/2502.02407>`_, 2025.

    Limits:
      The loss function of the step must be `output_losses(outputs(params, batch), batch)`. A term beside it,
      such as weight decay in the loss, would count in the ascent alone. Put weight decay behind the method.

    Deviations:
      Only the abstract of the paper was read, and the equation at second hand. Its code is not public.
    """
    return sharpness_aware(to_radius(rho), selection=through_outputs(outputs, output_losses))
