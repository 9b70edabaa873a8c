"""Random arguments of every public method and wrapper: refused by name exactly if they are wrong."""

import functools
import inspect
import math
import numbers
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

import optax_sam
from tests.fuzzing.settings import fuzz
from tests.registry import METHODS

VALUES = [
    0, 1, 2, 3, 4, 6, 10, 0.0, 0.3, 0.5, 0.8, 1.0, 2.5, 1e6, 1e38, 5e-324, -1, -0.5,
    math.nan, -math.inf, math.inf, True, None, 1j, "gaussian", "loss_difference", "scan", "",
    (), (0.1, 0.5), (0.5, 0.1), [1, 1], (0, 1), (1.0,), lambda step: 0.1, lambda params: params,
    np.float32(0.5), np.float64(2.0), np.int64(4), np.bool_(True), np.array(2), np.array([1.0]),
    jnp.array(0.5), jnp.array(3), jnp.ones(2), jnp.array(True),
]  # fmt: skip
"""Anything a user might pass, right for one argument and wrong for another."""

INF = math.inf
ANYWHERE = {
    "rho": ("schedule", 0, INF),
    "eta": ("number", 0, INF),
    "probability": ("schedule", 0, 1),
    "tilt": ("schedule", -INF, INF),
    "noise_scale": ("number", 0, INF),
    "reuse_decay": ("number", 0, 1),
    "reuse_steps": ("integer", 0, INF),
    "warmup_steps": ("integer", 0, INF),
    "num_samples": ("integer", 1, INF),
    "num_examples": ("integer", 1, INF),
    "ramp_steps": ("integer", 0, INF),
    "strata": ("integer", 1, INF),
    "num_microbatches": ("integer", 1, INF),
    "slices": ("integer", 1, INF),
    "noise": ("choice", "gaussian", "uniform"),
    "score": ("choice", "loss_difference", "gradient_norm"),
    "loop": ("choice", "scan", "vmap"),
}
"""What an argument must be: its kind, and its range or choices."""

CALLS: dict[str, Any] = {name: case.method for name, case in METHODS.items()} | {
    "per_microbatch": functools.partial(optax_sam.per_microbatch, optax_sam.sam()),
    "accumulated": functools.partial(optax_sam.accumulated, optax_sam.sam()),
}
NAMES = {
    name: [
        p
        for p in inspect.signature(getattr(optax_sam, name)).parameters
        if p not in ("method", "sum_gradients")
    ]
    for name in CALLS
}
NEUTRAL = {"num_examples": 10, "num_microbatches": 2}


def fits(value: Any, kind: str, *bounds: Any) -> bool:
    """Whether a value is of its kind, and in its range."""
    if kind == "choice":
        return isinstance(value, str) and value in bounds
    if callable(value):
        return kind == "schedule"
    is_array = isinstance(value, jax.Array | np.ndarray)
    if is_array and kind in ("number", "schedule"):
        if value.shape != () or not jnp.issubdtype(value.dtype, jnp.number) or jnp.iscomplexobj(value):
            return False
        value, is_array = value.item(), False
    wanted = numbers.Integral if kind == "integer" else numbers.Real
    if is_array or isinstance(value, bool) or not isinstance(value, wanted):
        return False
    return bounds[0] <= value <= bounds[1] and abs(value) < INF


def wrong(method: str, arguments: dict[str, Any]) -> set[str]:
    """The names of the arguments that must be refused."""
    rules = dict(ANYWHERE)
    rules["radius"] = ("schedule" if method == "pugd" else "number", 0, INF)
    if method == "vsam":  # these are judged together
        arguments = {"window": 50, "slices": 5, "max_rate": 0.8} | arguments
    found = {n for n, value in arguments.items() if n in rules and not fits(value, *rules[n])}
    for name in ("alpha", "seed", "tail", "fraction", "rate_gain", "score_range", "window", "max_rate"):
        if name in arguments and not _is_right(name, arguments[name], arguments):
            found.add(name)
    return found


def _is_right(name: str, value: Any, arguments: dict[str, Any]) -> bool:
    if name == "alpha":
        return value is None or fits(value, "schedule", -INF, INF)
    if name == "seed":
        if isinstance(value, jax.Array | np.ndarray):
            return value.shape == () and jnp.issubdtype(value.dtype, jnp.integer)
        return fits(value, "integer", -INF, INF)
    if name == "tail":
        return callable(value) or fits(value, "integer", 1, INF)
    if name == "fraction":
        return fits(value, "static", 0, 1) and value > 0
    if name in ("rate_gain", "score_range"):
        if not isinstance(value, tuple | list) or len(value) != 2:
            return False
        low, high = value
        return name == "rate_gain" or 0 < low <= high
    slices, window = arguments["slices"], arguments["window"]
    if not fits(slices, "integer", 1, INF):
        return True  # that is refused first
    if not fits(window, "integer", 2 * slices, INF) or window % slices:
        return name != "window"
    return name == "window" or fits(value, "static", 1 / window, 1)


@st.composite
def calls(draw: Any) -> tuple[str, dict[str, Any]]:
    method = draw(st.sampled_from(list(CALLS)))
    required = {name: value for name, value in NEUTRAL.items() if name in NAMES[method]}
    drawn = draw(st.dictionaries(st.sampled_from(NAMES[method]), st.sampled_from(VALUES), max_size=3))
    return method, required | drawn


def check(call: tuple[str, dict[str, Any]]) -> list[str]:
    method, arguments = call
    expected = wrong(method, arguments)
    if not expected:
        assert isinstance(CALLS[method](**arguments), optax_sam.SharpnessAware)
        return ["right"]
    with pytest.raises((ValueError, TypeError)) as error:
        CALLS[method](**arguments)
    text = str(error.value)
    assert any(text.startswith(name) for name in expected) and ":" in text, (text, expected)
    return ["wrong"]


def test_every_argument_is_refused_exactly_if_it_is_wrong():
    seen = fuzz(check, 1000, seed=0, call=calls())
    assert seen["right"] > 100 and seen["wrong"] > 100
