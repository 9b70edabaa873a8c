"""What arguments may not be: values of each kind, and the error that refuses them."""

import jax.numpy as jnp
import numpy as np
import optax

import optax_sam
from tests.registry import init_params, losses, make_batch

ANY_NUMBER = [("0.1", TypeError), (None, TypeError), (True, TypeError), (np.ones(2), ValueError)]
NUMBER = [*ANY_NUMBER, (1j, TypeError)]
RADIUS = [*NUMBER, (-0.1, ValueError), (float("nan"), ValueError)]
PROBABILITY = [*RADIUS, (1.5, ValueError)]
STATIC_PROBABILITY = [*PROBABILITY[:3], (-0.1, ValueError), (1.5, ValueError), (jnp.array(0.5), TypeError)]
COUNT = [(0, ValueError), (1.5, TypeError), ("2", TypeError), (None, TypeError), (True, TypeError)]
COUNT = [*COUNT, (-3, ValueError), (jnp.array(3), TypeError), (np.array(3), TypeError)]
COUNT_OR_ZERO = COUNT[1:]
SEED = [(0.5, TypeError), ("1", TypeError), (None, TypeError), (True, TypeError), (jnp.zeros(2), TypeError)]
PIECE = [(0.5, TypeError), (optax_sam.gates.always, TypeError), ("always", TypeError)]
FUNCTION = [(0.5, TypeError), (None, TypeError), ("losses", TypeError)]
METHOD = [(optax.sgd(0.1), TypeError), (None, TypeError), (optax_sam.sam, TypeError)]
BATCH = [({"x": jnp.ones(3), "y": jnp.ones(4)}, ValueError), (jnp.ones([0, 2]), ValueError)]
BATCH = [*BATCH, (jnp.ones([]), ValueError)]
STATE = [((), ValueError), (None, ValueError), (optax.EmptyState(), ValueError)]
BOOL = [("yes", TypeError), (None, TypeError), (jnp.array(True), TypeError), (1, TypeError)]
RATE = [*STATIC_PROBABILITY, (0.01, ValueError)]
PAIR = [(0.1, TypeError), ((0.1,), TypeError), ((0.1, "a"), TypeError), ((0.1, None), TypeError)]
SCORE_RANGE = [
    *PAIR,
    ((jnp.ones([]), 0.1), TypeError),
    ((0.5, 0.1), ValueError),
    ((0, 1), ValueError),
    ((-1, 1), ValueError),
]
WINDOW = [*COUNT, (52, ValueError)]
TAIL = [(0, ValueError), (1.5, TypeError), (None, TypeError), (jnp.array(3), TypeError)]
FRACTION = [*STATIC_PROBABILITY, (0, ValueError)]


def one_of(*choices):
    return [(choices[0] + "x", ValueError), (None, ValueError), (3, ValueError)]


NOISE, SCORE = one_of("gaussian"), one_of("loss_difference")
DRAWN = {
    "num_examples": COUNT,
    "fraction": FRACTION,
    "score_range": SCORE_RANGE,
    "ramp_steps": COUNT_OR_ZERO,
    "score": SCORE,
    "strata": COUNT,
}
WATCHED = {
    "window": WINDOW,
    "slices": COUNT,
    "max_rate": RATE,
    "rate_gain": PAIR,
    "warmup_steps": COUNT_OR_ZERO,
    "tail": TAIL,
}
NOISY = {"radius": RADIUS, "noise_scale": RADIUS, "noise": NOISE}
EXAMPLES = {
    "loss_fn": FUNCTION,
    "params": [],
    "batch": BATCH,
    "microbatch_size": [*COUNT[:3], (3, ValueError)],
}
SCHEDULE = {"probability": STATIC_PROBABILITY, "total_steps": COUNT}

REQUIRED = {
    "rho": 0.1, "k": 2, "window": 4, "slices": 2, "max_rate": 0.5, "rate_gain": (0.1, 0.1), "warmup_steps": 0,
    "tail": 1, "decay": 0.5, "steps": 2, "probability": 0.5, "total_steps": 10, "alpha": 1.0, "tilt": 1.0,
    "num_examples": 48, "ascent": optax_sam.ascents.to_radius(0.1), "method": optax_sam.sam(), "radius": 0.1,
    "num_microbatches": 2, "num_draws": 2, "log_weight": optax_sam.tilted(1.0), "losses": losses,
    "loss_fn": losses, "params": init_params(), "batch": make_batch(), "fn": losses, "eta": 0.0,
    "noise_scale": 1.0, "noise": "gaussian", "start_step": 2, "weight": 0.5, "difference_step": 0.1,
    "mask": optax_sam.is_normalization, "step_size": 0.1, "refresh_steps": 2, "surrogate_losses": losses,
    "learning_rate": 0.1, "base": optax.sgd(0.1), "scale": 0.1, "num_steps": 2, "max_norm": 0.1,
    "fraction": 0.5, "sparsity": 0.5, "num_samples": 2, "drop_rate": 0.5, "threshold": 0.0, "part": 0,
    "num_parts": 2, "mix": 0.5, "lower_rho": 0.1,
}  # fmt: skip
