"""What arguments may not be: values of each kind, and the error that refuses them.

The kind of an argument is what its annotation declares (`optax_sam.engine.hyperparameters`). The few that
declare none stand in `BY_HAND`, what is refused beyond the kind in `BEYOND`.
"""

import collections.abc
import inspect
import typing

import jax.numpy as jnp
import numpy as np
import optax

import optax_sam
from optax_sam import per_example
from optax_sam.engine.hyperparameters import Range, ScalarOrSchedule, SeedOfDraws, declared
from optax_sam.pieces import bases, geometries
from tests.problem import init_params, losses, make_batch
from tests.registry import CASES

SEED = [(0.5, TypeError), ("1", TypeError), (None, TypeError), (True, TypeError), (jnp.zeros(2), TypeError)]
BOOL = [("yes", TypeError), (None, TypeError), (jnp.array(True), TypeError), (1, TypeError)]
FUNCTION = [(0.5, TypeError), (None, TypeError), ("losses", TypeError)]
PIECE = [(0.5, TypeError), (optax_sam.gates.always, TypeError), ("always", TypeError)]
ASCENT = [(0.05, TypeError), (None, TypeError), (optax_sam.ascents.to_radius, TypeError)]
METHOD = [(optax.sgd(0.1), TypeError), (None, TypeError), (optax_sam.sam, TypeError)]

PIECES = (bases.Start, bases.Direction, bases.Gate, bases.Selection, bases.Combination, bases.Reuse)
PIECES = (*PIECES, geometries.Geometry)


def refused(annotation):
    """Values that an argument of this annotation refuses, each with its error; None where it has no kind."""
    kind, bounds = declared(annotation)
    found = of_kind(kind, bounds)
    takes_none = type(None) in typing.get_args(annotation)
    return [pair for pair in found or [] if not takes_none or pair[0] is not None] or None


def of_kind(kind, bounds):
    if isinstance(bounds, SeedOfDraws):
        return SEED
    if isinstance(bounds, Range):
        return outside(kind, bounds)
    if typing.get_origin(kind) is typing.Literal:
        return [(typing.get_args(kind)[0] + "x", ValueError), (None, ValueError), (3, ValueError)]
    if typing.get_origin(kind) is collections.abc.Callable:
        return FUNCTION
    if kind is optax_sam.SharpnessAware:
        return METHOD
    if kind is optax.GradientTransformation:
        return ASCENT
    return BOOL if kind is bool else PIECE if kind in PIECES else None


def outside(kind, bounds):
    """No number, no number of the kind, and numbers outside the bounds."""
    wrong = [("0.1", TypeError), (None, TypeError), (True, TypeError), (1j, TypeError)]
    if kind is int:
        wrong += [(1.5, TypeError), (jnp.array(3), TypeError), (np.array(3), TypeError)]
    elif kind is float:
        wrong += [(jnp.array(0.5), TypeError)]
    else:
        wrong += [(np.ones(2), ValueError)]
        wrong += [(lambda: 0.1, TypeError)] if kind == ScalarOrSchedule else [(lambda step: 0.1, TypeError)]
    step = 1 if kind is int else 0.5
    if np.isfinite(bounds.low):
        below = bounds.low if bounds.without_low else bounds.low - step
        wrong += [(below, ValueError), (bounds.low - 3, ValueError)]
    if np.isfinite(bounds.high):
        above = bounds.high if bounds.without_high else bounds.high + step
        wrong += [(above, ValueError), (bounds.high + 3, ValueError)]
    if kind is not int and (np.isfinite(bounds.low) or np.isfinite(bounds.high)):
        wrong += [(float("nan"), ValueError)]
    if kind is not int:
        wrong += [(-float("inf"), ValueError)] + [(float("inf"), ValueError)] * (not bounds.infinite_too)
    if kind not in (int, float):  # as `optax.inject_hyperparams` makes arrays of numbers
        numbers = [(x, error) for x, error in wrong if isinstance(x, int | float) and not isinstance(x, bool)]
        wrong += [(of(x), error) for x, error in numbers for of in (jnp.asarray, np.asarray)]
        wrong += [(jnp.array(1j), TypeError), (np.array(True), TypeError)]
    return wrong


PAIR = [(0.1, TypeError), ((0.1,), TypeError), ((0.1, "a"), TypeError), ((0.1, None), TypeError)]
SCORES = [((jnp.ones([]), 0.1), TypeError), ((0.5, 0.1), ValueError), ((0, 1), ValueError)]
SCORES = [*PAIR, *SCORES, ((-1, 1), ValueError)]
BATCH = [({"x": jnp.ones(3), "y": jnp.ones(4)}, ValueError), (jnp.ones([0, 2]), ValueError)]
BATCH = [*BATCH, (jnp.ones([]), ValueError)]
STATE = [((), ValueError), (None, ValueError), (optax.EmptyState(), ValueError)]

BY_HAND = {
    "rate_gain": PAIR,
    "score_range": SCORES,
    "tail": [(0, ValueError), (1.5, TypeError), (None, TypeError), (jnp.array(3), TypeError)],
    "pattern": [(x, ValueError) for x in ("2:x", "4:2", "0:4", None, 2)],
    "order": [(1, ValueError), ("2", TypeError), (3, ValueError), (jnp.array(2.0), TypeError)],
    "axis_name": [(0, TypeError), (None, TypeError)],
    "class_frequencies": [(3, TypeError), ([[1, 2]], TypeError), ([], ValueError), ([1, -1], ValueError)],
    "opt_state": STATE,
    "state": STATE,
    "batch": BATCH,
    "params": [],
    "tx": ASCENT,
    # Of an oracle.
    "indices": [(jnp.ones(16), TypeError), (jnp.arange(3), ValueError)],
    "weights": [(jnp.ones(16, complex), TypeError), (jnp.ones(3), ValueError)],
    "key": [(0, TypeError), (jnp.zeros(2), TypeError)],
    "loss_scale": [("2", TypeError), (-8, ValueError), (0.0, ValueError), (jnp.ones(2), ValueError)],
    "args": [(jnp.ones(2), TypeError), ([1], TypeError)],
}

WATCHED = {"window": [(52, ValueError)], "max_rate": [(0.01, ValueError)]}
SLICES = {"microbatch_size": [(3, ValueError)]}

BEYOND = {
    optax_sam.vsam: WATCHED,
    optax_sam.gates.with_variance_rate: WATCHED,
    optax_sam.starts.on_part: {"part": [(2, ValueError)]},
    optax_sam.selections.on_part: {"part": [(2, ValueError)]},
    optax_sam.static_arguments: {"method": [(optax_sam.sam(), TypeError)]},
    per_example.losses: SLICES,
    per_example.gradients: SLICES,
    per_example.gradient_norms: SLICES,
}


def table(function):
    """By argument: the values that it refuses; None for an argument whose kind nobody has said."""
    found = {}
    for name, parameter in inspect.signature(function).parameters.items():
        kind = BY_HAND[name] if name in BY_HAND else refused(parameter.annotation)
        found[name] = kind if kind is None else [*kind, *BEYOND.get(function, {}).get(name, [])]
    return found


def required(function):
    """Values for the arguments without a default."""
    case = next((case for case in CASES.values() if case.method is function), None)
    values = REQUIRED | (case.required if case else {})
    parameters = inspect.signature(function).parameters.values()
    names = [p.name for p in parameters if p.default is inspect.Parameter.empty]
    missing = sorted(set(names) - set(values))
    assert not missing, (
        f"{function.__name__} needs {missing}: give values, Case(required=...) in tests/registry.py for a "
        "method, REQUIRED in tests/guarantees/refusals.py for a piece"
    )
    return {name: values[name] for name in names}


REQUIRED = {
    "rho": 0.1, "k": 2, "decay": 0.5, "steps": 2, "probability": 0.5, "total_steps": 10, "alpha": 1.0,
    "tilt": 1.0, "num_examples": 48, "ascent": optax_sam.ascents.to_radius(0.1), "method": optax_sam.sam(),
    "num_microbatches": 2, "num_draws": 2, "log_weight": optax_sam.tilted(1.0), "losses": losses,
    "loss_fn": losses, "params": init_params(), "batch": make_batch(), "fn": losses, "noise_scale": 1.0,
    "start_step": 2, "weight": 0.5, "difference_step": 0.1, "mask": optax_sam.is_normalization,
    "refresh_steps": 2, "surrogate_losses": losses, "outputs": losses, "output_losses": losses,
    "learning_rate": 0.1, "base": optax.sgd(0.1),
    "scale": 0.1, "num_steps": 2, "max_norm": 0.1, "fraction": 0.5, "sparsity": 0.5, "num_samples": 2,
    "drop_rate": 0.5, "threshold": 0.0, "part": 0, "num_parts": 2, "mix": 0.5, "lower_rho": 0.1,
    "emphasis": losses, "class_frequencies": [3, 2, 1], "labels": losses, "gamma": 1.0,
    "quantile": 0.5, "budget": 0.1, "max_rho": 0.1, "p": 3.0, "value": 0.1,
    "tx": optax_sam.sam(), "opt_state": (), "state": (),
}  # fmt: skip
