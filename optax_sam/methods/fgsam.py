"""Fast Graph SAM: the second gradient from a cheap surrogate that shares the parameters."""

from collections.abc import Callable
from typing import Any

from optax_sam.engine import checks
from optax_sam.engine.assembly import SharpnessAware, sharpness_aware
from optax_sam.engine.hyperparameters import Count, Number, Radius
from optax_sam.pieces.ascents import to_radius
from optax_sam.pieces.combinations import plus
from optax_sam.pieces.gates import every
from optax_sam.pieces.reuses import components_beyond
from optax_sam.pieces.selections import on_surrogate
from optax_sam.pieces.starts import on_surrogate_between


def fgsam(
    surrogate_losses: Callable[[Any, Any], Any],
    rho: Radius = 0.05,
    mix: Number = 0.5,
) -> SharpnessAware:
    """FGSAM: the sharpness part from a cheap model with the same parameters.

    A graph network without its message passing is a plain network with the same weights, and far cheaper. Its
    gradient at the perturbed point is good enough. You can use any pair of losses that share parameters.

    `e = rho g / ||g||`, `g = grad L(w)`; `g_s = grad L_s(w + e)` of the surrogate; descent
    `mix g + g_s`.

    Args:
      surrogate_losses: the cheap `losses(params, batch)`, called and returning as the loss function of
        `value_and_grad`.
      rho: radius, in the L2 norm over all parameters. A number or a schedule of the step.
      mix: weight of the first gradient. A number or a schedule of the step.

    Returns:
      A `SharpnessAware` transformation, to stand first in an `optax.chain`. It needs an oracle.

    Raises:
      TypeError: `surrogate_losses` is no function.
      ValueError: `rho` is negative.

    Cost:
      1 gradient of the loss and 1 of the surrogate per step (`info` counts both as one); no
      parameter-sized buffer.

    Guarantees:
      With the loss itself as surrogate and `mix=0` it is SAM.

    Example:
      >>> import jax.numpy as jnp, optax, optax_sam
      >>> coarse = lambda params, batch: jnp.square(batch["x"][:, ::2] @ params[::2] - batch["y"])
      >>> tx = optax.chain(optax_sam.fgsam(coarse), optax.adam(5e-3))

    References:
      Yihong Luo, Yuhan Chen, Siya Qiu, Yiwei Wang, Chen Zhang, Yan Zhou, Xiaochun Cao, Jing Tang, `Fast
      Graph Sharpness-Aware Minimization for Enhancing and Accelerating Few-Shot Node Classification
      <https://arxiv.org/abs/2410.16845>`_, 2024.

    Deviations:
      The uploaded code mixes by `(1 - mix) g + mix g_s`. The algorithm of the paper is followed here.
    """
    checks.number_or_schedule("mix", mix)
    return sharpness_aware(to_radius(rho), selection=on_surrogate(surrogate_losses), combination=plus(mix))


def fgsam_plus(
    surrogate_losses: Callable[[Any, Any], Any],
    rho: Radius = 0.05,
    mix: Number = 0.5,
    every_k: Count = 2,
    alpha: Number = 0.7,
) -> SharpnessAware:
    """FGSAM+: the full model in every k-th step, the surrogate alone in between.

    What the surrogate's gradient lacks changes slowly. It is kept from the last full step. The steps in
    between take the surrogate's gradient alone, and add what was kept.

    In steps `t % k == 0`: FGSAM, and with `m = grad L_s(w)` the parts `u` of `g` and `v` of `g_s`
    orthogonal to `m` are kept. In the others: descent
    `m + alpha (||m|| / ||v||) v + mix (m + (||m|| / ||u||) u)`.

    Args:
      surrogate_losses: the cheap `losses(params, batch)`. It returns what the loss function of
        `value_and_grad` returns, auxiliary values of the same shapes included.
      rho: radius, in the L2 norm over all parameters. A number or a schedule of the step.
      mix: weight of the first gradient. A number or a schedule of the step.
      every_k: `k`, 1 or more.
      alpha: how much of the kept perturbed part is reused. A number or a schedule of the step.

    Returns:
      A `SharpnessAware` transformation, to stand first in an `optax.chain`. It needs an oracle.

    Raises:
      TypeError: `surrogate_losses` is no function, `every_k` no Python integer.
      ValueError: `rho` is negative or `every_k` below 1.

    Cost:
      every k-th step 1 gradient of the loss and 2 of the surrogate, else 1 of the surrogate (`info`
      counts each as one); two parameter-sized buffers.

    Guarantees:
      `every_k=1` is FGSAM. `loss` is the surrogate's in the steps between.

    Example:
      >>> import jax.numpy as jnp, optax, optax_sam
      >>> coarse = lambda params, batch: jnp.square(batch["x"][:, ::2] @ params[::2] - batch["y"])
      >>> tx = optax.chain(optax_sam.fgsam_plus(coarse), optax.adam(5e-3))

    References:
      Yihong Luo, Yuhan Chen, Siya Qiu, Yiwei Wang, Chen Zhang, Yan Zhou, Xiaochun Cao, Jing Tang, `Fast
      Graph Sharpness-Aware Minimization for Enhancing and Accelerating Few-Shot Node Classification
      <https://arxiv.org/abs/2410.16845>`_, 2024.

    Deviations:
      The uploaded code takes norms leaf by leaf, and falls back to stale weights between. The algorithm of
      the paper is followed here.
    """
    checks.integer("every_k", every_k, low=1)
    checks.number_or_schedule("mix", mix)
    return sharpness_aware(
        to_radius(rho),
        start=on_surrogate_between(surrogate_losses),
        gate=every(every_k),
        selection=on_surrogate(surrogate_losses),
        combination=plus(mix),
        reuse=components_beyond(surrogate_losses, mix, alpha),
    )
