"""Every argument of every public function refuses what its annotation says that it does not take.

An argument that declares nothing, and is not in `BY_HAND` of `refusals.py`, fails
`test_every_argument_of_every_public_function_has_a_kind`.
"""

import inspect
import re

import pytest

import optax_sam
from optax_sam import per_example, schedules
from tests.guarantees.refusals import required, table

# What takes anything.
TAKE_ANYTHING = {"is_normalization", "chained", "where_momentum_is", "where_second_moment_is"}

NAMESPACES = [
    getattr(optax_sam, name)
    for name in "ascents combinations directions gates geometries reuses selections starts".split()
]


def public_functions():
    for module in (optax_sam, per_example, schedules, *NAMESPACES):
        for name in getattr(module, "__all__", vars(module)):
            value = getattr(module, name)
            own = module not in (per_example, schedules) or getattr(value, "__module__", 0) == module.__name__
            is_function = callable(value) and (not inspect.isclass(value) or name == "Oracle")
            if own and is_function and not name.startswith("_") and name not in TAKE_ANYTHING:
                yield value


PUBLIC = [
    function for function in dict.fromkeys(public_functions()) if inspect.signature(function).parameters
]
every_function = pytest.mark.parametrize("function", PUBLIC, ids=lambda f: f"{f.__module__}.{f.__name__}")


def test_every_argument_of_every_public_function_has_a_kind():
    assert len(PUBLIC) > 90
    without = [f"{f.__name__}({name}=)" for f in PUBLIC for name, wrong in table(f).items() if wrong is None]
    assert not without, (
        f"{without} declare no range: annotate them with an alias of optax_sam/engine/hyperparameters.py, "
        "for example Radius, or say in BY_HAND of tests/guarantees/refusals.py what they refuse"
    )


@every_function
def test_wrong_argument_is_named_with_its_value_and_the_repair(function):
    right = required(function)
    for name, wrong in table(function).items():
        for value, kind in wrong or []:
            try:
                function(**right | {name: value})
            except kind as error:
                message = str(error)
            else:
                annotation = inspect.signature(function).parameters[name].annotation
                pytest.fail(f"{function.__name__} takes {name}={value!r}, which {annotation} forbids")
            case = f"{name}={value!r}: {message}"
            assert ("state" if name == "opt_state" else name) in message, case
            if isinstance(value, str | int | float) and not isinstance(value, bool):
                assert repr(value) in message, case
            assert re.search(r": (pass|choose|close|return|every)|with its brackets", message), case


@pytest.mark.parametrize("wrong", [0.05, None, optax_sam.ascents.to_radius])
def test_ascents_in_turn_are_transformations(wrong):
    with pytest.raises(TypeError, match="ascents=.* is no Optax transformation: pass one"):
        optax_sam.ascents.chained(optax_sam.ascents.to_radius(0.1), wrong)
