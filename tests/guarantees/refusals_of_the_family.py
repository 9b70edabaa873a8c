"""What the arguments of the family's methods and pieces may not be."""

import jax.numpy as jnp
import numpy as np

import optax_sam
from tests.guarantees.refusals import (
    ANY_NUMBER,
    BOOL,
    COUNT,
    FRACTION,
    FUNCTION,
    METHOD,
    NUMBER,
    PIECE,
    PROBABILITY,
    RADIUS,
    SEED,
    STATIC_PROBABILITY,
    one_of,
)

SCALE = [*ANY_NUMBER, (1j, TypeError)]
POSITIVE = [
    ("0.1", TypeError),
    (None, TypeError),
    (0, ValueError),
    (-0.1, ValueError),
    (np.ones(2), ValueError),
]
BELOW_ONE = [*PROBABILITY, (1.0, ValueError)]
ASCENT = [(0.05, TypeError), (None, TypeError), (optax_sam.ascents.to_radius, TypeError)]
PART = [(2, ValueError), (-1, ValueError), (0.5, TypeError), (jnp.array(0), TypeError)]
PATTERN = [("2:x", ValueError), ("4:2", ValueError), ("0:4", ValueError), (None, ValueError), (2, ValueError)]
ORDER = [(1, ValueError), ("2", TypeError), (3, ValueError), (jnp.array(2.0), TypeError)]

LOOK = {"rho": RADIUS, "every_k": COUNT, "alpha": NUMBER}
GATE = {"total_steps": COUNT, "decay": PROBABILITY, "start_threshold": NUMBER, "end_threshold": NUMBER}
FISHER = {"sparsity": STATIC_PROBABILITY, "refresh_steps": COUNT, "num_samples": COUNT}
CHOSEN = {"fraction": FRACTION, "strata": COUNT}
PARTS = {"part": PART, "num_parts": COUNT, "strata": COUNT}
REWEIGHTED = {"weight": NUMBER, "difference_step": [*RADIUS, (0, ValueError)]}

FAMILY = {
    optax_sam.looksam: LOOK,
    optax_sam.look_layersam: LOOK,
    optax_sam.late_sam: {"start_step": RADIUS, "rho": RADIUS},
    optax_sam.aesam: {"rho": RADIUS, **GATE},
    optax_sam.aelooksam: {"rho": RADIUS, "alpha": NUMBER, **GATE},
    optax_sam.esam: {
        "rho": RADIUS,
        "weight_fraction": FRACTION,
        "example_fraction": FRACTION,
        "strata": COUNT,
        "seed": SEED,
    },
    optax_sam.ksam: {"rho": RADIUS, **CHOSEN},
    optax_sam.reweighted_sam: {"rho": RADIUS, **REWEIGHTED, "seed": SEED},
    optax_sam.friendly_sam: {"rho": RADIUS, "sigma": NUMBER, "decay": PROBABILITY},
    optax_sam.vasso: {"rho": RADIUS, "theta": PROBABILITY},
    optax_sam.fisher_sam: {"rho": RADIUS, "eta": RADIUS},
    optax_sam.usam: {"rho": SCALE},
    optax_sam.multistep_sam: {"rho": RADIUS, "num_steps": COUNT},
    optax_sam.sam_on: {"mask": FUNCTION, "rho": RADIUS, "eta": RADIUS, "order": ORDER},
    optax_sam.momentum_sam: {"rho": RADIUS, "momentum": PROBABILITY},
    optax_sam.single_step_sam: {"rho": RADIUS, "friendly": BOOL, "decay": PROBABILITY},
    optax_sam.extrapolation: {
        "step_size": NUMBER,
        "source": one_of("noise"),
        "momentum": PROBABILITY,
        "seed": SEED,
    },
    optax_sam.graphsam: {
        "refresh_steps": COUNT,
        "rho": RADIUS,
        "max_leaf_norm": RADIUS,
        "decay": PROBABILITY,
        "adaptive": BOOL,
    },
    optax_sam.gsam: {"rho": RADIUS, "alpha": NUMBER, "minimize_clean": BOOL},
    optax_sam.gradient_norm_penalty: {"rho": RADIUS, "alpha": NUMBER},
    optax_sam.wsam: {"rho": RADIUS, "gamma": BELOW_ONE},
    optax_sam.bilateral_sam: {"rho": RADIUS, "lower_rho": RADIUS},
    optax_sam.sparse_sam: {
        "rho": RADIUS,
        **FISHER,
        "mask": one_of("fisher"),
        "pattern": PATTERN,
        "drop_rate": PROBABILITY,
        "total_steps": COUNT[:3],
        "seed": SEED,
    },
    optax_sam.fisher_mask_sam: {"rho": RADIUS, **FISHER},
    optax_sam.fgsam: {"surrogate_losses": FUNCTION, "rho": RADIUS, "mix": NUMBER},
    optax_sam.fgsam_plus: {"surrogate_losses": FUNCTION, **LOOK, "mix": NUMBER},
    optax_sam.random_perturbation: {
        "noise_scale": RADIUS,
        "alpha": NUMBER,
        "split_batch": BOOL,
        "seed": SEED,
    },
    optax_sam.adaptive_random_perturbation: {
        "noise_scale": RADIUS,
        "fisher_weight": RADIUS,
        "fisher_decay": PROBABILITY,
        "alpha": STATIC_PROBABILITY,
        "seed": SEED,
    },
    optax_sam.random_sam: {"rho": RADIUS, "noise_scale": RADIUS, "seed": SEED},
    optax_sam.adasam: {
        "learning_rate": RADIUS,
        "rho": RADIUS,
        "b1": PROBABILITY,
        "b2": PROBABILITY,
        "epsilon": POSITIVE,
    },
    optax_sam.scale_by_adasam: {"b1": PROBABILITY, "b2": PROBABILITY, "epsilon": POSITIVE},
    optax_sam.bsam: {
        "num_examples": COUNT,
        "learning_rate": RADIUS,
        "rho": RADIUS,
        "b1": PROBABILITY,
        "b2": PROBABILITY,
        "prior_precision": [(-1, ValueError), ("1", TypeError), (jnp.ones([]), TypeError)],
        "damping": RADIUS,
        "initial_scale": POSITIVE,
        "augmentation_factor": [(0.5, ValueError), ("1", TypeError), (jnp.ones([]), TypeError)],
        "num_microbatches": COUNT,
        "seed": SEED,
    },
    optax_sam.followed_by: {"method": METHOD, "base": ASCENT},
    optax_sam.decoupled: {"method": METHOD, "base": ASCENT, "learning_rate": RADIUS},
    optax_sam.ascents.in_proportion: {"scale": NUMBER, "to_filters": BOOL},
    optax_sam.ascents.repeated: {"ascent": ASCENT, "num_steps": COUNT},
    optax_sam.ascents.within_leaf_norm: {"max_norm": RADIUS},
    optax_sam.ascents.only: {"mask": FUNCTION},
    optax_sam.ascents.keep_random_fraction: {"fraction": PROBABILITY},
    optax_sam.ascents.fisher_mask: {**FISHER, "pattern": PATTERN},
    optax_sam.ascents.dynamic_mask: {
        "sparsity": STATIC_PROBABILITY,
        "refresh_steps": COUNT,
        "drop_rate": PROBABILITY,
        "total_steps": COUNT,
        "seed": SEED,
    },
    optax_sam.geometries.fisher: {"eta": RADIUS},
    optax_sam.geometries.signs: {"eta": RADIUS},
    optax_sam.gates.after: {"start_step": RADIUS},
    optax_sam.gates.when_gradient_is_large: {"threshold": NUMBER, "decay": PROBABILITY},
    optax_sam.directions.running_mean: {"decay": PROBABILITY},
    optax_sam.directions.batch_specific: {"sigma": NUMBER, "decay": PROBABILITY},
    optax_sam.directions.descent_momentum: {"momentum": PROBABILITY, "read_momentum": FUNCTION[::2]},
    optax_sam.directions.with_top_eigenvector: {
        "alpha": NUMBER,
        "refresh_steps": COUNT,
        "power_iterations": COUNT,
    },
    optax_sam.directions.previous_descent: {"of": PIECE},
    optax_sam.directions.mean_of_perturbed: {"decay": PROBABILITY, "refresh_steps": COUNT},
    optax_sam.directions.damped_gaussian: {"weight": RADIUS, "decay": PROBABILITY},
    optax_sam.starts.at_random_per_filter: {"noise_scale": RADIUS},
    optax_sam.starts.on_highest_loss: CHOSEN,
    optax_sam.starts.on_part: PARTS,
    optax_sam.starts.reweighted: REWEIGHTED,
    optax_sam.starts.on_surrogate_between: {"surrogate_losses": FUNCTION},
    optax_sam.selections.largest_increase: CHOSEN,
    optax_sam.selections.on_part: PARTS,
    optax_sam.selections.on_surrogate: {"surrogate_losses": FUNCTION},
    optax_sam.combinations.plus: {"weight": NUMBER},
    optax_sam.combinations.surrogate_gap: {"alpha": NUMBER, "minimize_clean": BOOL},
    optax_sam.combinations.bilateral: {"lower_rho": RADIUS},
    optax_sam.reuses.orthogonal_component: {"alpha": NUMBER},
    optax_sam.reuses.components_beyond: {"surrogate_losses": FUNCTION, "mix": NUMBER, "alpha": NUMBER},
}
