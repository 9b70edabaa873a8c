"""Random calls of every public method: the documented result or the documented error, and nothing else.

`pytest tests/fuzzing/test_fuzz.py -m slow -s` draws ten thousand, and prints what came of them.
"""

import hypothesis.strategies as st
import jax
import pytest

from tests.fuzzing.cases import ALL, ALL_DOUBLE, FEW, PARTS
from tests.fuzzing.checks import check
from tests.fuzzing.drawing import cases
from tests.fuzzing.settings import fuzz
from tests.registry import over

EVERY = ("sam", "asam", "rst", "grst", "vsam", "pugd", "tsam", "ausam")
"""The methods that the literal step of `fuzzing/reference.py` knows."""


@pytest.mark.parametrize("calls", over([60, 250], [60]))
def test_any_call_gives_the_documented_result_or_the_documented_error(calls):
    seen = fuzz(check, calls, seed=0, case=cases(EVERY, FEW), mode=st.just("python"))
    assert seen["errors"] > calls / 5 and seen["finite"] > calls / 5
    if calls > 100:
        assert seen["not finite"] > 0 and all(seen[name] > 10 for name in EVERY)


def test_any_compiled_call_gives_the_documented_result_or_the_documented_error():
    seen = fuzz(check, 10, seed=1, case=cases(EVERY, ALL), mode=st.just("jit"))
    assert seen["results"] > 2


@pytest.mark.slow
@pytest.mark.parametrize("part", range(len(PARTS)))
def test_ten_thousand_calls_give_documented_results_or_errors(part, record_property):
    seen = fuzz(check, 1200, seed=10 + part, case=cases(EVERY, PARTS[part]), mode=st.just("python"))
    every = ALL_DOUBLE if PARTS[part].x64 else ALL
    seen += fuzz(check, 60, seed=20 + part, case=cases(EVERY, every), mode=st.sampled_from(["jit", "eager"]))
    jax.clear_caches()  # of thousands of compiled operations
    record_property("seen", dict(seen))
    print(f"\npart {part}: {dict(sorted(seen.items()))}")
    assert seen["errors"] + seen["results"] >= 1250
