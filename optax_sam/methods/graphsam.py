"""GraphSAM: the mean of earlier perturbed gradients as the direction, for one gradient a step."""

from optax_sam.engine import checks
from optax_sam.engine.assembly import SharpnessAware, sharpness_aware
from optax_sam.engine.hyperparameters import Cap, Count, FixedProbability, Radius
from optax_sam.pieces.ascents import chained, to_radius, within_leaf_norm
from optax_sam.pieces.directions import mean_of_perturbed
from optax_sam.pieces.geometries import elementwise, euclidean
from optax_sam.pieces.starts import ahead


def graphsam(
    refresh_steps: Count,
    rho: Radius = 0.05,
    max_leaf_norm: Cap = 0.05,
    decay: FixedProbability = 0.99,
    adaptive: bool = True,
) -> SharpnessAware:
    """GraphSAM: climbs along past perturbed gradients, and looks at the present one once an epoch.

    Perturbed gradients change slowly, so that their mean can stand for the direction. The true gradient
    corrects it once in an epoch.

    In steps `t % refresh_steps == 0`: `d = grad L(w)`; else `d = decay d + (1 - decay) g' / ||g'||` with
    the last `g'`, leaf by leaf. `e = rho T^2 d / ||T d||`, each leaf of it shortened to the norm
    `max_leaf_norm`; descent `g' = grad L(w + e)`.

    Args:
      refresh_steps: the number of steps of an epoch.
      rho: radius. A number or a schedule of the step.
      max_leaf_norm: bound on the norm of each leaf of the perturbation. A number or a schedule.
      decay: from 0 to 1.
      adaptive: whether `T = |w|` (biases: 1). Otherwise `T = 1`.

    Returns:
      A `SharpnessAware` transformation, to stand first in an `optax.chain`. It needs an oracle.

    Raises:
      ValueError: a number is outside its range. `grad_fn` comes in place of an oracle.
      TypeError: `refresh_steps` is no Python integer, `adaptive` no bool.

    Cost:
      1 + 1/refresh_steps gradients per step; one parameter-sized buffer.

    Guarantees:
      `refresh_steps=1` is SAM in that geometry, with its leaves shortened. `rho=0` is the base optimizer.

    Example:
      >>> import optax, optax_sam
      >>> tx = optax.chain(optax_sam.graphsam(refresh_steps=100), optax.adam(1e-3))

    References:
      Yili Wang, Kaixiong Zhou, Ninghao Liu, Ying Wang, Xin Wang, `Efficient Sharpness-Aware
      Minimization for Molecular Graph Transformer Models <https://arxiv.org/abs/2406.13137>`_, 2024;
      code github.com/YL-wang/GraphSAM.

    Deviations:
      The authors' code normalizes by the gradient that its last backward pass left behind, not by `d`, and
      moves biases as weights. Both radii fall by a schedule of its own. Pass a schedule here.
    """
    checks.number_or_schedule("max_leaf_norm", max_leaf_norm, low=0, infinite_too=True)
    checks.boolean("adaptive", adaptive)
    ascent = chained(
        to_radius(rho, elementwise() if adaptive else euclidean()), within_leaf_norm(max_leaf_norm)
    )
    return sharpness_aware(ascent, direction=mean_of_perturbed(decay, refresh_steps), start=ahead())
