"""Every test runs strictly: implicit dtype and rank promotion are errors, as are warnings."""

import collections
import gc
import os
import tempfile

import jaxlib

# Eight devices for the tests of sharding; most of the tests' time is compilation, hence the cheap kind.
FLAGS = (
    "--xla_force_host_platform_device_count=8 "
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
    "--xla_cpu_parallel_codegen_split_count=1"
)
if jaxlib.version.__version_info__ < (0, 11):  # later ones refuse to start with it
    FLAGS += " --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("XLA_FLAGS", FLAGS)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "agg")

# Many tests compile the same programs, in several processes.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    folder = tempfile.TemporaryDirectory(prefix="compiled_by_tests_")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = folder.name
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

# What is traced lives long in JAX's caches: looking through it again and again for garbage takes a fifth of
# the tests' time.
gc.set_threshold(1_000_000, 20, 100)

import jax  # noqa: E402
import pytest  # noqa: E402

from tests.fast_part import FIRST_CASES  # noqa: E402

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Marks what `fast_part.py` leaves to `make test-slow`."""
    seen = collections.Counter()
    for item in items:
        file = item.nodeid.partition("::")[0].removeprefix("tests/")
        name = getattr(item, "originalname", None)  # an example of a docstring has none
        if name in FIRST_CASES.get(file, {}) and item.get_closest_marker("slow") is None:
            seen[file, name] += 1
            if seen[file, name] > FIRST_CASES[file][name]:
                item.add_marker(pytest.mark.slow)


@pytest.fixture
def as_optax_promotes():
    """Some of Optax's own transformations mix dtypes and ranks."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield
