"""EXTRAP: extrapolation before the gradient, for large batches."""

from typing import Literal

from optax_sam.engine import checks
from optax_sam.engine.assembly import SharpnessAware, sharpness_aware
from optax_sam.engine.hyperparameters import FixedProbability, Number, Seed, scaled
from optax_sam.pieces.ascents import in_proportion
from optax_sam.pieces.directions import descent_momentum, gaussian, gradient, previous_descent
from optax_sam.pieces.starts import ahead


def extrapolation(
    step_size: Number,
    source: Literal["previous_gradient", "momentum", "noise", "gradient"] = "previous_gradient",
    momentum: FixedProbability = 0.9,
    seed: Seed = 0,
) -> SharpnessAware:
    """EXTRAP-SGD: the gradient a step further down, which smooths the loss of large batches.

    A look ahead along a stale gradient, the momentum or noise averages the loss over a neighbourhood. Large
    batches may then take larger steps. The way ahead points downhill.

    Descent `grad L(w - step_size z)`, with `z` by `source`: "previous_gradient", the last descent (zero
    at first); "momentum", `v = momentum v + descent`; "noise", `z_f = ||w_f|| N(0, I)` in each output
    filter; "gradient", `grad L(w)` itself (the extragradient method).

    Args:
      step_size: of the extrapolation, in the units of a learning rate. A number or a schedule. No
        default is published.
      source: what points ahead.
      momentum: for the source "momentum", from 0 to 1, where the base optimizer has none of its own.
      seed: of the noise. An integer, or an integer array.

    Returns:
      A `SharpnessAware` transformation, to stand first in an `optax.chain`. It needs an oracle, except for
      the source "gradient".

    Raises:
      ValueError: `source` is unknown. `grad_fn` comes in place of an oracle.

    Cost:
      1 gradient per step (2 with "gradient"); one parameter-sized buffer with "previous_gradient" and
      "momentum".

    Guarantees:
      `step_size=0` is the base optimizer. With "gradient" it is `usam(-step_size)`.

    Example:
      >>> import optax, optax_sam
      >>> tx = optax.chain(optax_sam.extrapolation(0.1), optax.sgd(0.1))

    References:
      Tao Lin, Lingjing Kong, Sebastian U. Stich, Martin Jaggi, `Extrapolation for Large-batch Training
      in Deep Learning <https://arxiv.org/abs/2006.05720>`_, 2020.

    Deviations:
      Written from the abstract and the reviews, since no code is known. The previous gradient is that of the
      whole batch. In the paper each worker has its own, and `per_device` cannot keep one for each.
    """
    checks.one_of("source", source, ("previous_gradient", "momentum", "noise", "gradient"))
    checks.number_or_schedule("step_size", step_size)
    checks.number("momentum", momentum, low=0, high=1)
    ascent = in_proportion(scaled(step_size, -1), to_filters=source == "noise")
    if source == "gradient":
        return sharpness_aware(ascent, direction=gradient())
    if source == "momentum":
        # That momentum points downhill already.
        ascent, direction = in_proportion(step_size), descent_momentum(momentum)
    else:
        direction = previous_descent() if source == "previous_gradient" else gaussian()
    return sharpness_aware(ascent, direction=direction, start=ahead(), seed=seed)
