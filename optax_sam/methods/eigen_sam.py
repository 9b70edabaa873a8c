"""Eigen-SAM: the direction of largest curvature beside the gradient."""

from optax_sam.engine import checks
from optax_sam.engine.assembly import SharpnessAware, sharpness_aware
from optax_sam.engine.hyperparameters import Count, Number, Radius, Seed
from optax_sam.pieces.ascents import in_proportion
from optax_sam.pieces.directions import with_top_eigenvector


def eigen_sam(
    rho: Radius = 0.1,
    alpha: Number = 0.2,
    refresh_steps: Count = 100,
    power_iterations: Count = 5,
    seed: Seed = 0,
) -> SharpnessAware:
    """Eigen-SAM: climbs along the gradient and along the Hessian's top eigenvector.

    SAM lowers the largest eigenvalue of the Hessian only where the gradient leans to its eigenvector.
    Eigen-SAM estimates the eigenvector from time to time, and adds it on the side where the loss rises.

    `e = rho (g / ||g|| + alpha sign(<g, v>) v)`; descent `grad L(w + e)`. In every `refresh_steps`-th step
    `v <- H v / ||H v||`, `power_iterations` times, `H` the Hessian of the batch at `w`; at first `v` is a
    random unit vector.

    Args:
      rho: length of the gradient's part, in the L2 norm. A number or a schedule of the step.
      alpha: length of the eigenvector's part, in units of `rho`. A number or a schedule of the step.
      refresh_steps: 1 or more.
      power_iterations: 1 or more.
      seed: of the first vector. An integer, or an integer array.

    Returns:
      A `SharpnessAware` transformation, to stand first in an `optax.chain`.

    Raises:
      ValueError: `rho` is negative, or `refresh_steps` or `power_iterations` is below 1.
      TypeError: `refresh_steps` or `power_iterations` is no Python integer.

    Cost:
      2 + 2 power_iterations / refresh_steps gradients per step (a Hessian product counts as two); one
      parameter-sized buffer.

    Guarantees:
      `v` has length one, over slices, devices and draws too. `rho=0` is the base optimizer, `alpha=0` is SAM.

    Example:
      >>> import optax, optax_sam
      >>> tx = optax.chain(optax_sam.eigen_sam(rho=0.1, alpha=0.2), optax.sgd(0.1, momentum=0.9))

    References:
      Haocheng Luo, Tuan Truong, Tung Pham, Mehrtash Harandi, Dinh Phung, Trung Le, `Explicit Eigenvalue
      Regularization Improves Sharpness-Aware Minimization <https://arxiv.org/abs/2501.12666>`_, 2025;
      code github.com/RitianLuo/EigenSAM.

    Deviations:
      The authors' code adds the part of `v` that is orthogonal to `g`, and takes the Hessian product in
      evaluation mode. Here `v` itself is added, and the loss is the one that is trained.
    """
    checks.number_or_schedule("rho", rho, low=0)
    direction = with_top_eigenvector(alpha, refresh_steps, power_iterations)
    return sharpness_aware(in_proportion(rho), direction=direction, seed=seed)
