"""Every argument of every public function, with values that it refuses.

The kinds below say what an argument may not be; `PUBLIC` says which kind each argument is. An argument
that is missing there fails `test_every_argument_of_every_public_function_is_in_the_table`.
"""

import inspect
import re

import jax.numpy as jnp
import pytest

import optax_sam
from optax_sam import per_example, schedules
from tests.guarantees.refusals import (
    ANY_NUMBER,
    BATCH,
    BOOL,
    COUNT,
    COUNT_OR_ZERO,
    DRAWN,
    EXAMPLES,
    FUNCTION,
    METHOD,
    NOISY,
    NUMBER,
    PIECE,
    PROBABILITY,
    RADIUS,
    REQUIRED,
    SCHEDULE,
    SEED,
    STATE,
    STATIC_PROBABILITY,
    WATCHED,
    one_of,
)
from tests.guarantees.refusals_of_the_family import FAMILY

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
    optax_sam.ascents.to_radius: {"rho": RADIUS, "geometry": PIECE},
    optax_sam.geometries.elementwise: {"eta": RADIUS, "biases": BOOL},
    optax_sam.combinations.mix: {"alpha": NUMBER},
    optax_sam.gates.every: {"k": COUNT},
    optax_sam.gates.with_probability: {"probability": PROBABILITY},
    optax_sam.gates.with_variance_rate: WATCHED,
    optax_sam.reuses.decayed_difference: {"decay": PROBABILITY, "steps": COUNT_OR_ZERO},
    optax_sam.starts.at_random: NOISY,
    optax_sam.starts.drawn_by_score: DRAWN,
    optax_sam.tilted: {"tilt": NUMBER},
    optax_sam.static_arguments: {"method": [(optax_sam.sam(), TypeError), (None, TypeError)]},
    optax_sam.canonical_convolutions: {"fn": FUNCTION},
    optax_sam.sharpness_aware: {
        "ascent": [(0.05, TypeError), (None, TypeError), (optax_sam.ascents.to_radius, TypeError)],
        "start": PIECE,
        "direction": PIECE,
        "gate": PIECE,
        "selection": PIECE,
        "combination": PIECE,
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
        "weights": [(jnp.ones(16, complex), TypeError), (jnp.ones(3), ValueError)],
        "whole_batch": BOOL,
        "key": [(0, TypeError), (jnp.zeros(2), TypeError)],
        "loss_scale": [("2", TypeError), (-8, ValueError), (0.0, ValueError), (jnp.ones(2), ValueError)],
        "args": [(jnp.ones(2), TypeError), ([1], TypeError)],
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

PUBLIC |= FAMILY

# What takes anything.
PIECES_THEMSELVES = {"is_normalization", "chained", "where_momentum_is"}
RECORDS = {"SharpnessAware", "SharpnessAwareState"}


NAMESPACES = [
    getattr(optax_sam, name)
    for name in "ascents combinations directions gates geometries reuses selections starts".split()
]


def public_functions():
    for module in (optax_sam, per_example, schedules, *NAMESPACES):
        for name in getattr(module, "__all__", vars(module)):
            value = getattr(module, name)
            own = (
                module not in (per_example, schedules) or getattr(value, "__module__", "") == module.__name__
            )
            if own and callable(value) and not name.startswith("_"):
                yield name, value


def test_every_argument_of_every_public_function_is_in_the_table():
    for name, function in public_functions():
        if name in PIECES_THEMSELVES | RECORDS or inspect.isclass(function) and name != "Oracle":
            continue
        if arguments := inspect.signature(function).parameters:
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


@pytest.mark.parametrize("wrong", [0.05, None, optax_sam.ascents.to_radius])
def test_ascents_in_turn_are_transformations(wrong):
    with pytest.raises(TypeError, match="ascents=.* is no Optax transformation: pass one"):
        optax_sam.ascents.chained(optax_sam.ascents.to_radius(0.1), wrong)
