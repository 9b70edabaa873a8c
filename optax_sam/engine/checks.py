"""Errors for bad arguments: each names the argument, its value, the reason and the repair."""

import contextlib
import inspect
import numbers
from typing import Any

import jax
import numpy as np


def number(
    name: str, value: Any, low: float = -np.inf, high: float = np.inf, infinite_too: bool = False
) -> None:
    """Refuses what is no real number, or is outside `[low, high]`; values of traced arrays pass unread."""
    if isinstance(value, np.generic):
        value = np.asarray(value)
    if isinstance(value, jax.Array | np.ndarray):
        if value.shape != ():
            raise ValueError(f"{name} has shape {value.shape}: pass one number.")
        if not any(jax.numpy.issubdtype(value.dtype, kind) for kind in (np.integer, np.floating)):
            raise TypeError(f"{name} has dtype {value.dtype}: pass a real number.")
        if np.issubdtype(value.dtype, np.unsignedinteger):
            raise TypeError(f"{name} has dtype {value.dtype}, which has no numbers below 0: pass a float.")
        if not is_readable(value):
            return
    elif isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name}={value!r} is {_article(value)}: pass a number.")
    if np.isnan(float(value)):
        raise ValueError(f"{name}={value!r} is not a number: pass one.")
    if np.isinf(float(value)) and not infinite_too:
        raise ValueError(f"{name}={value!r} is infinite: pass a finite number.")
    if not low <= float(value) <= high:
        raise ValueError(f"{name}={value!r} is outside [{low:g}, {high:g}]: {_repair(low, high)}.")


def long_decay(name: str, value: Any) -> None:
    """As `number` from 0 to 1, close to 1: 0.999 is 1 in bfloat16."""
    number(name, value, low=0, high=1)
    if isinstance(value, jax.Array | np.ndarray | np.generic) and value.dtype.itemsize < 4:
        raise TypeError(
            f"{name} has dtype {value.dtype}, in which 0.999 is 1: pass a float, or "
            "optax.inject_hyperparams(..., hyperparam_dtype=jnp.float32)."
        )


def number_or_schedule(
    name: str, value: Any, low: float = -np.inf, high: float = np.inf, infinite_too: bool = False
) -> None:
    """As `number`; functions of the step count pass."""
    if not callable(value):
        number(name, value, low, high, infinite_too)
        return
    with contextlib.suppress(ValueError):  # a builtin that tells nothing of its arguments
        try:
            inspect.signature(value).bind(0)
        except TypeError as error:
            raise TypeError(
                f"{name}={value!r} takes other arguments than the step count ({error}): pass a number, or a "
                "function of the step count."
            ) from None


def positive(name: str, value: Any, or_none: str = "") -> None:
    """Refuses what is no number above 0; values of traced arrays pass unread."""
    number(name, value, low=0)
    if equals(value, 0):
        raise ValueError(f"{name}={value!r} is not above 0: pass a positive number{or_none}.")


def is_readable(value: Any) -> bool:
    """Whether a number has a value here: it is not traced, nor on other hosts alone."""
    return not isinstance(value, jax.core.Tracer) and getattr(value, "is_fully_addressable", True)


def equals(value: Any, other: float) -> bool:
    """Whether a number is this one, as far as it has a value here; a schedule is none."""
    return not callable(value) and is_readable(value) and float(value) == other


def above_one(name: str, value: Any) -> None:
    """Refuses what is no number above 1, infinity permitted; values of traced arrays pass unread."""
    number(name, value, low=1, infinite_too=True)
    if equals(value, 1):
        raise ValueError(f"{name}={value!r} is not above 1: pass a larger number.")


def optional_positive(name: str, value: Any) -> None:
    """As `positive`; None passes."""
    if value is not None:
        positive(name, value, or_none=", or None")


def integer(name: str, value: Any, low: int, high: float = np.inf) -> None:
    """Refuses what is no Python integer in `[low, high]`: such arguments shape the program."""
    _static(name, value)
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name}={value!r} is {_article(value, 'integer')}: pass an integer.")
    if not low <= float(value) <= high:
        raise ValueError(f"{name}={value!r} is outside [{low}, {high}]: {_repair(low, high)}.")


def static_number(
    name: str, value: Any, low: float, high: float = np.inf, infinite_too: bool = False
) -> None:
    """Refuses what is no Python number in `[low, high]`: such arguments shape the program."""
    _static(name, value)
    number(name, value, low, high, infinite_too)


def frequencies(name: str, value: Any) -> list[float]:
    """Python numbers, 0 or more, of which one is above 0; refuses all else."""
    numbers = np.asarray(value, float) if isinstance(value, list | tuple | np.ndarray | jax.Array) else None
    if numbers is None or numbers.ndim != 1:
        raise TypeError(f"{name}={value!r} is no sequence of numbers: pass one number for each class.")
    if not (np.all(numbers >= 0) and np.isfinite(numbers.sum()) and numbers.sum() > 0):
        raise ValueError(f"{name}={value!r} has no frequencies: pass numbers of 0 or more, not all 0.")
    return numbers.tolist()


def one_of(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Refuses what is not among the named choices."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name}={value!r} is unknown: choose one of {', '.join(choices)}.")


def boolean(name: str, value: Any) -> None:
    """Refuses what is no Python bool: such arguments shape the program."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name}={value!r} is no Python bool: pass True or False.")


def function(name: str, value: Any, example: str) -> None:
    """Refuses what cannot be called."""
    if not callable(value):
        raise TypeError(f"{name}={value!r} is not a function: pass {example}.")


def seed(value: Any) -> None:
    """Refuses what is no integer and no array of one integer."""
    if isinstance(value, jax.Array | np.ndarray):
        if value.shape != () or not jax.numpy.issubdtype(value.dtype, np.integer):
            raise TypeError(
                f"seed has shape {value.shape} and dtype {value.dtype}: pass one integer, not a key."
            )
    elif isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"seed={value!r} is {_article(value, 'integer')}: pass an integer.")
    elif jax.dtypes.canonicalize_dtype(np.int64).itemsize == 4 and not -(2**31) <= int(value) < 2**32:
        raise ValueError(f"seed={value!r} has more than 32 bits, of which JAX reads 32: pass a smaller one.")


def key(name: str, value: Any) -> None:
    """Refuses what is no PRNG key, typed or raw."""
    if value is None:
        return
    array = isinstance(value, jax.Array)
    typed = array and jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key) and value.shape == ()
    raw = array and value.dtype == np.uint32 and value.ndim == 1
    if not (typed or raw):
        raise TypeError(f"{name}={value!r} is no PRNG key: pass one, for example jax.random.key(0).")


def transformation(name: str, value: Any, example: str) -> None:
    """Refuses what is no Optax transformation, such as a factory that was not called."""
    if inspect.isroutine(value) or not (hasattr(value, "init") and hasattr(value, "update")):
        raise TypeError(f"{name}={value!r} is no Optax transformation: pass one, for example {example}.")


def piece(name: str, value: Any, base: type, example: str) -> None:
    """Refuses what is no piece of its kind: a factory that was not called, a record without its members."""
    if value is None or isinstance(value, base):
        return
    if inspect.isroutine(value) or isinstance(value, type):
        raise TypeError(f"{name}={value!r} was not called: pass {example}, with its brackets.")
    missing = sorted(n for n in dir(base) if not n.startswith("_") and not hasattr(value, n))
    if missing:
        raise TypeError(
            f"{name}={value!r} is no {base.__name__}, since it has no {', '.join(missing)}: pass {example}, "
            f"or inherit from {base.__module__}.{base.__name__}."
        )


def instance(name: str, maker: Any, value: Any, kind: type, repair: str) -> None:
    """Refuses what a piece returns if it is of another type."""
    if not isinstance(value, kind):
        raise ValueError(f"{name}={maker!r} returned {_described(value)}, no {kind.__name__}: {repair}.")


def pair(name: str, maker: Any, value: Any, words: str) -> tuple[Any, Any]:
    """What a piece returns, if it is a pair; refuses all else."""
    if not isinstance(value, tuple) or len(value) != 2:
        raise ValueError(f"{name}={maker!r} returned {_described(value)}, no pair: return {words}.")
    return value


def decision(name: str, maker: Any, value: Any) -> jax.Array:
    """What a gate returns, if it is a `bool[]`; refuses all else."""
    if not isinstance(value, jax.Array | np.ndarray | np.bool_) or value.shape != () or value.dtype != bool:
        raise ValueError(
            f"{name}={maker!r} returned {_described(value)} as its decision: return an array of shape () and "
            f"dtype bool."
        )
    return jax.numpy.asarray(value)


def like_params(name: str, maker: Any, value: Any, params: Any, same_dtypes: bool = False) -> None:
    """Refuses what a piece returns if it is no tree like the parameters."""
    _check_tree(name, maker, value, params, "the parameters")
    for (path, x), p in zip(jax.tree.leaves_with_path(value), jax.tree.leaves(params), strict=True):
        if not hasattr(x, "dtype"):
            raise ValueError(f"{name}={maker!r} returned {_described(x)} at {_place(path)}: return an array.")
        if same_dtypes and x.dtype != p.dtype:
            raise ValueError(
                f"{name}={maker!r} returned {x.dtype} at {_place(path)}, where the parameter has {p.dtype}: "
                f"cast it."
            )
        kinds = [jax.numpy.issubdtype(leaf.dtype, np.complexfloating) for leaf in (x, p)]
        if jax.numpy.issubdtype(p.dtype, np.inexact) and (
            not jax.numpy.issubdtype(x.dtype, np.inexact) or kinds[0] > kinds[1]
        ):
            raise ValueError(
                f"{name}={maker!r} returned {x.dtype} at {_place(path)}, where the parameter "
                f"has {p.dtype}: return floats of any width, complex ones for complex parameters alone."
            )


def arrays(name: str, maker: Any, value: Any) -> None:
    """Refuses an initial state with leaves that are no arrays: they have no dtype of their own."""
    for path, x in jax.tree.leaves_with_path(value):
        if not isinstance(x, jax.Array | np.ndarray):
            raise ValueError(
                f"{name}={maker!r} returned {_article(x, 'array')}, at {_place(path)}: return an array of a "
                f"dtype, such as jnp.zeros([], jnp.int32)."
            )
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.extended):
            raise ValueError(
                f"{name}={maker!r} returned a typed key at {_place(path)}, which cannot be saved or "
                f"averaged: return its data, jax.random.key_data(key)."
            )


def kept(name: str, maker: Any, value: Any, before: Any) -> None:
    """Refuses a new state that has another structure, shapes or dtypes than the one before."""
    _check_tree(name, maker, value, before, "its state before")
    for (path, x), y in zip(jax.tree.leaves_with_path(value), jax.tree.leaves(before), strict=True):
        if (got := jax.typeof(x).dtype) != (wanted := jax.typeof(y).dtype):
            raise ValueError(
                f"{name}={maker!r} returned a state of dtype {got} at {_place(path)}, which "
                f"was {wanted} before: cast it, x.astype(old.dtype)."
            )


def _described(value: Any) -> str:
    """A value by its type, an array by dtype and shape."""
    if isinstance(value, jax.Array | np.ndarray):
        return f"{value.dtype}{list(value.shape)}"
    return f"a {type(value).__name__}"


def _place(path: Any) -> str:
    """Where a leaf stands in its tree."""
    return jax.tree_util.keystr(path) or "its root"


def _check_tree(name: str, maker: Any, value: Any, like: Any, words: str) -> None:
    if (got := jax.tree.structure(value)) != (wanted := jax.tree.structure(like)):
        raise ValueError(
            f"{name}={maker!r} returned a tree of the structure {got}, not {wanted} of {words}: return the "
            f"same."
        )
    for (path, x), y in zip(jax.tree.leaves_with_path(value), jax.tree.leaves(like), strict=True):
        if (got := np.shape(x)) != (wanted := np.shape(y)):
            raise ValueError(
                f"{name}={maker!r} returned the shape {got} at {_place(path)}, not {wanted} of {words}: "
                f"return the same."
            )


def _static(name: str, value: Any) -> None:
    if isinstance(value, jax.Array | np.ndarray):
        raise TypeError(
            f"{name} is an array ({value}), but it shapes the compiled program: pass a Python "
            f"number. Under optax.inject_hyperparams name it static: optax.inject_hyperparams("
            f"method, static_args=optax_sam.static_arguments(method)), where method is, for "
            f"example, optax_sam.vsam."
        )


def _article(value: Any, wanted: str = "number") -> str:
    return "missing" if value is None else f"a {type(value).__name__}, no {wanted}"


def _repair(low: float, high: float) -> str:
    if high == np.inf:
        return f"pass {low:g} or more"
    return f"pass a number between {low:g} and {high:g}"
