"""The reference of a method, found by its name."""

import functools
import importlib
import inspect
import pkgutil
from collections.abc import Callable
from pathlib import Path


def reference(name: str) -> Callable:
    """The function `name` of `tests/references/name.py`, or of another module here."""
    found = functions()
    assert name in found, (
        f"{name} has no reference: write tests/references/{name}.py with the function "
        f"{name}(params, batches, *, ..., **base), its equation in float64 NumPy"
    )
    return found[name]


def extra(name: str) -> list[str]:
    """What the reference wants beside the arguments of the method: draws, coins, a surrogate."""
    parameters = list(inspect.signature(reference(name)).parameters.values())
    needed = [p for p in parameters[2:] if p.default is p.empty and p.kind != p.VAR_KEYWORD]
    return [p.name for p in needed]


@functools.cache
def functions() -> dict[str, Callable]:
    """Every public function of the references; that of the module of its own name goes first."""
    modules = [m.name for m in pkgutil.iter_modules([str(Path(__file__).parent)])]
    found: dict[str, Callable] = {}
    for module in modules:
        if not module.startswith("test_"):
            for name, value in vars(importlib.import_module(f"tests.references.{module}")).items():
                own = inspect.isfunction(value) and value.__module__.endswith(f".{module}")
                if own and (name == module or name not in found):
                    found[name] = value
    return found
