"""Whether two methods are one: by value, so that a factory may make them twice."""

import dataclasses
from typing import Any

import jax
import numpy as np
import optax


def check_same(begun: Any, finished: Any) -> None:
    """Refuses a step that one method begins and another one finishes.

    Raises:
      ValueError: names the first field in which they differ, or which cannot be compared.
    """
    found = difference(begun, finished)
    if found is not None:
        path, reason = found
        raise ValueError(
            f"the oracle was started by another method than this one: method{path} {reason}. Use one "
            f"object for value_and_grad and for the chain, or optax_sam.step(tx, losses), which needs the "
            f"chain alone."
        )


def difference(one: Any, other: Any, path: str = "") -> tuple[str, str] | None:
    """The first place where two values differ, and how; None where they are the same.

    Arrays are compared by dtype and content, functions and traced arrays by identity, records and
    containers part by part.
    """
    if one is other:
        return None
    if isinstance(one, jax.core.Tracer) or isinstance(other, jax.core.Tracer):
        return path, "is traced, as an injected hyperparameter is, and cannot be compared"
    if all(isinstance(x, int | float) and not isinstance(x, bool) for x in (one, other)):
        same = one == other or (one != one and other != other)
        return None if same else (path, f"is {short(one)} in one and {short(other)} in the other")
    if type(one) is not type(other):
        return path, f"is {short(one)} in one and {short(other)} in the other"
    if dataclasses.is_dataclass(one):
        names = [field.name for field in dataclasses.fields(one)]
        return first((getattr(one, n), getattr(other, n), f"{path}.{n}") for n in names)
    if isinstance(one, dict):
        if list(one) != list(other):
            return path, f"has the keys {list(one)} in one and {list(other)} in the other"
        return first((one[k], other[k], f"{path}[{k!r}]") for k in one)
    if isinstance(one, optax.GradientTransformation):  # a record's `init` and `update` say the same
        records = [getattr(x.update, "__self__", None) for x in (one, other)]
        if None not in records and type(one.update) is type(other.update):
            return difference(records[0], records[1], path)
    if isinstance(one, tuple | list):
        if len(one) != len(other):
            return path, f"has {len(one)} parts in one and {len(other)} in the other"
        names = [f".{n}" for n in getattr(one, "_fields", ())] or [f"[{n}]" for n in range(len(one))]
        return first((x, y, path + name) for x, y, name in zip(one, other, names, strict=True))
    if isinstance(one, jax.Array | np.ndarray | np.generic):
        same = one.dtype == other.dtype and one.shape == other.shape and bytes_of(one) == bytes_of(other)
        return None if same else (path, f"is {short(one)} in one and {short(other)} in the other")
    if hasattr(one, "__self__") and hasattr(one, "__func__"):  # init and update, bound to a record
        if one.__func__ is not other.__func__:
            return path, f"is {short(one)} in one and {short(other)} in the other"
        return difference(one.__self__, other.__self__, path)
    if callable(one):
        return path, f"is a function of its own in each ({short(one)}), which cannot be compared"
    equal = one == other or (one != one and other != other)
    return None if equal else (path, f"is {short(one)} in one and {short(other)} in the other")


def first(pairs: Any) -> tuple[str, str] | None:
    """The first difference among `(one, other, path)`."""
    return next((found for x, y, path in pairs if (found := difference(x, y, path)) is not None), None)


def bytes_of(array: Any) -> bytes:
    """The content, bit by bit; of PRNG keys too."""
    if jax.dtypes.issubdtype(array.dtype, jax.dtypes.extended):
        array = jax.random.key_data(array)
    return np.asarray(array).tobytes()


def short(value: Any) -> str:
    """A value in a line."""
    text = repr(value)
    return text if len(text) < 60 else text[:57] + "..."


def kind_of(value: Any) -> Any:
    """What tells methods apart whose states may differ, to be looked up; arrays are told by their shape."""
    if isinstance(value, optax.GradientTransformation):
        return kind_of(getattr(value.update, "__self__", value.update))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return type(value), *(kind_of(getattr(value, field.name)) for field in dataclasses.fields(value))
    if isinstance(value, jax.Array | np.ndarray):
        return value.shape
    if isinstance(value, tuple | list):
        return tuple(map(kind_of, value))
    return value if isinstance(value, int | float | str | None) else id(value)
