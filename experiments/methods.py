"""From a method's name and settings to its Optax transformation."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax

import optax_sam
from experiments.settings import Settings, SettingsError, flag

METHODS: dict[str, Callable[..., optax_sam.SharpnessAware] | None] = {
    "sgd": None,
    "sam": optax_sam.sam,
    "asam": optax_sam.asam,
    "rst": optax_sam.rst,
    "grst": optax_sam.grst,
    "vsam": optax_sam.vsam,
    "pugd": optax_sam.pugd,
    "tsam": optax_sam.tsam,
    "ausam": optax_sam.ausam,
}

# Arguments of the compiled step, so that one compilation serves all their values.
TRACED = ("learning_rate", "weight_decay", "rho", "radius", "tilt")

# Methods whose first epoch uses whole batches, so that every example gets a score.
WHOLE_FIRST_EPOCH = ("ausam",)


def make(
    settings: Settings, num_examples: int, traced: Mapping[str, jax.Array] | None = None
) -> optax_sam.SharpnessAware | None:
    """Builds the method's transformation; None for plain SGD.

    Args:
      settings: name and settings of the method; what is None is left to the library.
      num_examples: training examples, for methods that keep a score for each.
      traced: arrays that replace settings of the same name, and the seed.
    """
    factory = METHODS[settings.method]
    if factory is None:
        return None
    values = {"num_examples": num_examples, "seed": settings.seed} | given(settings)
    values |= traced or {}
    accepted = inspect.signature(factory).parameters
    return factory(**{name: value for name, value in values.items() if name in accepted})


def given(settings: Settings) -> dict[str, Any]:
    """The method's settings that are not None."""
    return {name: value for name, value in vars(settings.method_settings).items() if value is not None}


def check(settings: Settings) -> None:
    """Refuses an unknown method, a setting of another method, and what the library refuses."""
    if settings.method not in METHODS:
        raise SettingsError(f"--method {settings.method} is not known: give {', '.join(METHODS)}")
    factory = METHODS[settings.method]
    accepted = inspect.signature(factory).parameters if factory else {}
    for name, value in given(settings).items():
        if name not in accepted:
            raise SettingsError(
                f"{flag(name)} {value} is no setting of --method {settings.method}: leave it out"
            )
    fraction = given(settings).get("fraction", 1.0)
    if int(fraction * settings.batch_size) < 1:
        raise SettingsError(
            f"--fraction {fraction} leaves no example of --batch-size {settings.batch_size}: "
            "give a larger fraction"
        )
    try:
        make(settings, num_examples=settings.batch_size)
    except (ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise SettingsError(f"--method {settings.method}: {reason}") from error


def gradients_spent(opt_state: optax.OptState, steps: int, method: str) -> float:
    """Gradient evaluations since the start, in units of one full batch."""
    if METHODS[method] is None:
        return float(steps)
    return float(optax_sam.info(opt_state)["gradients"])
