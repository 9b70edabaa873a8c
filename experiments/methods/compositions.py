"""Methods that nobody has published, each an assembly of public pieces."""

import optax_sam
from optax_sam import SharpnessAware


def drawn_vsam(num_examples: int, rho: float = 0.05, window: int = 50, seed: int = 0) -> SharpnessAware:
    """AUSAM's draw of examples; vSAM's windows decide when, and what the other steps reuse."""
    start, gate = optax_sam.starts.drawn_by_score(num_examples), optax_sam.gates.with_variance_rate(window)
    reuse = optax_sam.reuses.decayed_difference(0.7, steps=6)
    return optax_sam.sharpness_aware(
        optax_sam.ascents.to_radius(rho), start=start, gate=gate, reuse=reuse, seed=seed
    )


def friendly_looksam(rho: float = 0.1, every_k: int = 5, alpha: float = 0.7) -> SharpnessAware:
    """Friendly SAM's direction in every k-th step; LookSAM's component of its gradient in the others."""
    direction, reuse = optax_sam.directions.batch_specific(), optax_sam.reuses.orthogonal_component(alpha)
    gate = optax_sam.gates.every(every_k)
    return optax_sam.sharpness_aware(
        optax_sam.ascents.to_radius(rho), direction=direction, gate=gate, reuse=reuse
    )


def adaptive_rst(
    rho: float = 0.5, eta: float = 0.01, probability: float = 0.5, seed: int = 0
) -> SharpnessAware:
    """RST's coin in each step; ASAM's geometry in those that it perturbs."""
    ascent = optax_sam.ascents.to_radius(rho, optax_sam.geometries.elementwise(eta))
    return optax_sam.sharpness_aware(ascent, gate=optax_sam.gates.with_probability(probability), seed=seed)


def sharded_gsam(rho: float = 0.05, alpha: float = 0.4, num_microbatches: int = 5) -> SharpnessAware:
    """GSAM with a perturbation of its own for each slice of the batch."""
    return optax_sam.per_microbatch(optax_sam.gsam(rho, alpha), num_microbatches)
