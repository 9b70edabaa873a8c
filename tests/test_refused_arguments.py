"""Every argument of every public function, with values that it refuses.

The kinds below say what an argument may not be; `PUBLIC` says which kind each argument is. An argument
that is missing there fails `test_every_argument_of_every_public_function_is_in_the_table`.
"""

import inspect
import re

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_sam
from optax_sam import per_example, schedules
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
PIECE = [(0.5, TypeError), (optax_sam.always, TypeError), ("always", TypeError)]
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

PUBLIC = {
    optax_sam.sam: {"rho": RADIUS},
    optax_sam.asam: {"rho": RADIUS, "eta": RADIUS},
    optax_sam.rst: {"rho": RADIUS, "probability": PROBABILITY, "seed": SEED},
    optax_sam.grst: {
        "rho": RADIUS,
        "probability": PROBABILITY,
        "alpha": [ANY_NUMBER[0], *ANY_NUMBER[2:]],
        "seed": SEED,
    },
    optax_sam.vsam: {
        "rho": RADIUS,
        **WATCHED,
        "reuse_decay": PROBABILITY,
        "reuse_steps": COUNT_OR_ZERO,
        "seed": SEED,
    },
    optax_sam.pugd: {"radius": RADIUS, "sum_gradients": BOOL},
    optax_sam.tsam: {"rho": RADIUS, "tilt": NUMBER, "num_samples": COUNT, **NOISY, "seed": SEED},
    optax_sam.ausam: {"rho": RADIUS, **DRAWN, "seed": SEED},
    optax_sam.to_radius: {"rho": RADIUS, "geometry": PIECE},
    optax_sam.elementwise: {"eta": RADIUS},
    optax_sam.mix: {"alpha": NUMBER},
    optax_sam.every: {"k": COUNT},
    optax_sam.with_probability: {"probability": PROBABILITY},
    optax_sam.with_variance_rate: WATCHED,
    optax_sam.decayed_difference: {"decay": PROBABILITY, "steps": COUNT_OR_ZERO},
    optax_sam.at_random: NOISY,
    optax_sam.drawn_by_score: DRAWN,
    optax_sam.tilted: {"tilt": NUMBER},
    optax_sam.static_arguments: {"method": [(optax_sam.sam(), TypeError), (None, TypeError)]},
    optax_sam.canonical_convolutions: {"fn": FUNCTION},
    optax_sam.sharpness_aware: {
        "ascent": [(0.05, TypeError), (None, TypeError), (optax_sam.to_radius, TypeError)],
        "start": PIECE,
        "direction": PIECE,
        "gate": PIECE,
        "selection": FUNCTION,
        "combination": FUNCTION,
        "reuse": PIECE,
        "seed": SEED,
    },
    optax_sam.accumulated: {"method": METHOD, "num_microbatches": COUNT},
    optax_sam.per_microbatch: {"method": METHOD, "num_microbatches": COUNT, "loop": one_of("scan")},
    optax_sam.per_device: {"method": METHOD, "axis_name": [(0, TypeError), (None, TypeError)]},
    optax_sam.over_draws: {"method": METHOD, "num_draws": COUNT, "log_weight": FUNCTION},
    optax_sam.due: {"opt_state": STATE},
    optax_sam.finite: {"opt_state": STATE},
    optax_sam.info: {"state": STATE},
    optax_sam.Oracle: {
        "losses": FUNCTION,
        "batch": BATCH,
        "params": [],
        "has_aux": BOOL,
        "indices": [(jnp.ones(16), TypeError), (jnp.arange(3), ValueError)],
        "weights": [(jnp.ones(16, bool), TypeError), (jnp.ones(3), ValueError)],
        "whole_batch": BOOL,
        "key": [(0, TypeError), (jnp.zeros(2), TypeError)],
        "loss_scale": [("2", TypeError), (-8, ValueError), (0.0, ValueError), (jnp.ones(2), ValueError)],
    },
    per_example.losses: EXAMPLES,
    per_example.gradients: EXAMPLES,
    per_example.gradient_norms: EXAMPLES,
    schedules.constant: {"probability": STATIC_PROBABILITY},
    schedules.plain_then_perturbed: SCHEDULE,
    schedules.perturbed_then_plain: SCHEDULE,
    schedules.complement_halfway: SCHEDULE,
    schedules.increasing: SCHEDULE,
    schedules.to_complement: SCHEDULE,
    schedules.cosine: {"total_steps": COUNT},
}

PIECES_THEMSELVES = {"perturbed", "unit", "unit_sum", "everything"}  # called by a step, not by users
RECORDS = {"SharpnessAware", "SharpnessAwareState"}

REQUIRED = {
    "rho": 0.1, "k": 2, "window": 4, "slices": 2, "max_rate": 0.5, "rate_gain": (0.1, 0.1), "warmup_steps": 0,
    "tail": 1, "decay": 0.5, "steps": 2, "probability": 0.5, "total_steps": 10, "alpha": 1.0, "tilt": 1.0,
    "num_examples": 48, "ascent": optax_sam.to_radius(0.1), "method": optax_sam.sam(), "radius": 0.1,
    "num_microbatches": 2, "num_draws": 2, "log_weight": optax_sam.tilted(1.0), "losses": losses,
    "loss_fn": losses, "params": init_params(), "batch": make_batch(), "fn": losses, "eta": 0.0,
    "noise_scale": 1.0, "noise": "gaussian",
}  # fmt: skip


def arguments_of(function):
    """The arguments that users give; an oracle's later fields are the library's."""
    names = list(inspect.signature(function).parameters)
    return names[: names.index("structure")] if function is optax_sam.Oracle else names


def public_functions():
    for module in (optax_sam, per_example, schedules):
        for name, value in vars(module).items():
            own = module is optax_sam or getattr(value, "__module__", "") == module.__name__
            if own and callable(value) and not name.startswith("_"):
                yield name, value


def test_every_argument_of_every_public_function_is_in_the_table():
    for name, function in public_functions():
        if name in PIECES_THEMSELVES | RECORDS or inspect.isclass(function) and name != "Oracle":
            continue
        if arguments := arguments_of(function):
            assert set(PUBLIC[function]) == set(arguments), name


@pytest.mark.parametrize("function", PUBLIC, ids=lambda f: f"{f.__module__}.{f.__name__}")
def test_wrong_argument_is_named_with_its_value_and_the_repair(function):
    parameters = inspect.signature(function).parameters
    needed = {n for n in parameters if parameters[n].default is inspect.Parameter.empty}
    right = {name: REQUIRED.get(name) for name in needed}
    for name, wrong in PUBLIC[function].items():
        for value, kind in wrong:
            with pytest.raises(kind) as error:
                function(**right | {name: value})
            message = str(error.value)
            case = f"{name}={value!r}: {message}"
            assert ("state" if name == "opt_state" else name) in message, case
            if isinstance(value, str | int | float) and not isinstance(value, bool):
                assert repr(value) in message, case
            assert re.search(r": (pass|choose|close|return|every)|with its brackets", message), case
