"""SAM with a radius for each layer, which holds for networks of any width."""

from optax_sam.engine.assembly import SharpnessAware, sharpness_aware
from optax_sam.engine.hyperparameters import Radius
from optax_sam.pieces.ascents import to_radius
from optax_sam.pieces.geometries import fan_scaled


def fan_scaled_sam(rho: Radius = 0.01, outputs_first: bool = False) -> SharpnessAware:
    """Fan-scaled SAM: each layer has a radius of its own, by the sizes of its input and output.

    In a wide network, SAM's single radius moves the outputs of the last layer alone. With these radii all
    layers take part, whatever their width. A radius found on a narrow network therefore serves a wide one
    (muP^2).

    `e = rho sqrt(fan_out / fan_in) g / ||g||` in each leaf, the norm that of the leaf; descent
    `g' = grad L(w + e)`. Vectors have `fan_in = 1`.

    Args:
      rho: radius of a layer: how far the entries of its output move, in proportion to those of its input. A
        number or a schedule of the step.
      outputs_first: whether the first axis of a kernel counts its outputs, as in Equinox. Otherwise the last
        axis does, as in Flax and Haiku.

    Returns:
      A `SharpnessAware` transformation, to stand first in an `optax.chain`.

    Raises:
      ValueError: `rho` is negative.
      TypeError: `outputs_first` is no Python bool.

    Cost:
      2 gradients per step; no parameter-sized buffer.

    Guarantees:
      The perturbation of each leaf has the Frobenius norm `rho sqrt(fan_out / fan_in)`, and is zero for a
      zero gradient. `rho=0` is the base optimizer.

    Example:
      >>> import optax, optax_sam
      >>> tx = optax.chain(optax_sam.fan_scaled_sam(0.01), optax.sgd(0.1, momentum=0.9))

    References:
      Moritz Haas, Jin Xu, Volkan Cevher, Leena Chennuru Vankadara, `muP^2: Effective Sharpness Aware
      Minimization Requires Layerwise Perturbation Scaling <https://arxiv.org/abs/2411.00075>`_, 2024.

    Limits:
      A radius is transferred where initialization and learning rates are those of muP. Kernels with several
      output axes, transposed convolutions, stacked layers and look-up tables: see `geometries.fan_scaled`.

    Deviations:
      Only the abstract of the paper was read. The rule of the layers is derived: the perturbation of a matrix
      should have a spectral norm in proportion to `sqrt(fan_out / fan_in)`. Where the gradient is of rank
      one, this is the Frobenius norm. Biases belong with the input layer, as in muP. The paper's own
      parameters of the layers and its global normalization are not here.
    """
    return sharpness_aware(to_radius(rho, fan_scaled(outputs_first)))
