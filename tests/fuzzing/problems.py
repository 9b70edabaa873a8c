"""The arrays of a case, and its loss: `l_i = s_i Re<c, x> + t_i a/2 |x|^2`, whose gradient is known."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tests.fuzzing.cases import Case, Leaf


@dataclasses.dataclass(frozen=True)
class Problem:
    """Everything that a call is made of.

    Attributes:
      params: as the user has them: JAX and NumPy arrays and Python numbers.
      arrays: the leaves as NumPy arrays; typed keys, which are none, as they are.
      is_bias: of every leaf, whether its name says so.
      slopes: `c`, one array per leaf, float32 or wider; None for leaves without a gradient.
      curvature: `a`.
      batch: `s`, `t`, and the number of every row.
      weights: None, or one per row.
      indices: None, or one per row.
      real: which rows count.
    """

    params: Any
    arrays: list[np.ndarray]
    is_bias: list[bool]
    slopes: list[np.ndarray | None]
    curvature: float
    batch: dict[str, np.ndarray]
    weights: np.ndarray | None
    indices: np.ndarray | None
    real: np.ndarray

    @property
    def inexact_arrays(self) -> list[np.ndarray]:
        return [x for x, c in zip(self.arrays, self.slopes, strict=True) if c is not None]

    @property
    def inexact_slopes(self) -> list[np.ndarray]:
        return [c for c in self.slopes if c is not None]

    @property
    def inexact_is_bias(self) -> list[bool]:
        return [b for b, c in zip(self.is_bias, self.slopes, strict=True) if c is not None]


def make_problem(case: Case, step: int = 0) -> Problem:
    """The arrays of a step; inside `jax.enable_x64(True)` where the case asks for that.

    In the second step, slopes that are not finite have become 1: nothing may be left of them.
    """
    rng = np.random.default_rng(case.seed)
    found, treedef = jax.tree.flatten_with_path(case.tree)
    made: dict[int, Any] = {}
    for _, leaf in found:
        if id(leaf) not in made:
            made[id(leaf)] = _array(leaf, rng)
    given = [made[id(leaf)] for _, leaf in found]
    arrays = [x if is_key(x) else np.asarray(jnp.asarray(x)) for x in given]
    inexact = [n for n, x in enumerate(arrays) if jnp.issubdtype(x.dtype, jnp.inexact)]
    chosen = inexact if case.slope_at is None or not inexact else [inexact[case.slope_at % len(inexact)]]
    slope = case.slope if step == 0 or np.isfinite(case.slope) else 1.0
    sizes = [slope if n in chosen else 1.0 for n in range(len(arrays))]
    slopes = [
        _slope(x, size, rng) if n in inexact else None
        for n, (x, size) in enumerate(zip(arrays, sizes, strict=True))
    ]
    weights, indices = _weights(case, rng), _indices(case, rng)
    real = np.ones(case.size, bool) if weights is None else weights != 0
    if case.is_ausam and indices is not None:
        real &= (indices.astype(int) >= 0) & (indices.astype(int) < case.arguments["num_examples"])
    floats = np.float64 if case.x64 and case.seed % 2 else np.float32
    batch = {
        "s": rng.uniform(0.5, 1.5, case.size).astype(floats),
        "t": rng.uniform(0.5, 1.5, case.size).astype(floats),
        "number": np.arange(1, case.size + 1, dtype=np.int32),  # 0 is what aux shows of padding
    }
    if case.nan_padding:
        for name in ("s", "t"):
            batch[name] = np.where(real, batch[name], np.nan).astype(floats)
    return Problem(
        params=jax.tree.unflatten(treedef, given),
        arrays=arrays,
        is_bias=["bias" in str([key for key in path if hasattr(key, "key")][-1:]) for path, _ in found],
        slopes=slopes,
        curvature=case.curvature,
        batch=batch,
        weights=weights,
        indices=indices,
        real=real,
    )  # fmt: skip


def loss_fn(case: Case, problem: Problem) -> Any:
    """The loss of the case as a function of JAX, with the mistake that the case asks for."""
    floats = problem.batch["s"].dtype

    def losses(params, batch):
        linear, square = jnp.zeros([], floats), jnp.zeros([], floats)
        for x, c in zip(jax.tree.leaves(params), problem.slopes, strict=True):
            if c is not None:
                x = x.astype(c.dtype)
                half = jnp.asarray(problem.curvature / 2, c.dtype)
                linear += _inner(jnp.asarray(c), x).astype(floats)
                square += _inner(x * half, x).astype(floats)
        return batch["s"] * linear + batch["t"] * square

    def called(params, batch, *key):
        assert len(key) == case.has_key
        found = losses(params, batch)
        if case.mean_loss:
            found = jnp.mean(found)
        match case.mistake:
            case "token losses":
                found = jnp.broadcast_to(found[..., None], (*found.shape, 3))
            case "losses of integers":
                found = found.astype(jnp.int32)
            case "complex losses":
                found = found.astype(jnp.complex64)
            case "no losses":
                found = None
        gives_pair = case.has_aux != (case.mistake in ("no pair", "losses with aux"))
        return (found, {"number": batch["number"]}) if gives_pair else found

    return called


def _inner(x: Any, y: Any) -> Any:
    """`Re<x, y>`."""
    if jnp.iscomplexobj(x):
        return jnp.sum(x.real * y.real + x.imag * y.imag)
    return jnp.sum(x * y)


def is_key(x: Any) -> bool:
    """Whether these are typed keys."""
    return jnp.issubdtype(jnp.result_type(x), jax.dtypes.prng_key)


def numbers_of(x: Any) -> np.ndarray:
    """An array as NumPy has it; of typed keys, their data."""
    return np.asarray(jax.random.key_data(x) if is_key(x) else x)


def _array(leaf: Leaf, rng: Any) -> Any:
    if leaf.dtype == "key":
        return jax.random.wrap_key_data(jnp.asarray(rng.integers(0, 9, (*leaf.shape, 2)), jnp.uint32))
    dtype = jnp.dtype(leaf.dtype)
    values = leaf.scale * rng.normal(size=leaf.shape)
    if jnp.issubdtype(dtype, jnp.complexfloating):
        values = values + 1j * leaf.scale * rng.normal(size=leaf.shape)
    if not jnp.issubdtype(dtype, jnp.inexact):
        values = np.rint(3 * values).astype(np.int64)
    if leaf.kind == "python":
        return float(values)
    array = np.asarray(values).astype(dtype)
    return array if leaf.kind == "numpy" else jnp.asarray(array)  # float32 where float64 is not enabled


def _slope(array: np.ndarray, size: float, rng: Any) -> np.ndarray:
    info = jnp.finfo(array.dtype)
    wide = np.float64 if info.bits == 64 else np.float32
    values = rng.uniform(0.5, 1.0, array.shape) * rng.choice([-1, 1], array.shape)
    values = (values * size).astype(wide)
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        slope = np.empty(array.shape, np.result_type(wide, np.complex64))
        slope.real, slope.imag = values, rng.uniform(-1, 1, array.shape) * size
        return slope
    return np.asarray(values)


def _weights(case: Case, rng: Any) -> np.ndarray | None:
    if case.weights is None:
        return None
    weights = {
        "ones": np.ones(case.size),
        "some": np.where(rng.uniform(size=case.size) < 0.5, 1.0, 0.0),
        "none": np.zeros(case.size),
        "various": rng.choice([0.0, 0.5, 1.0, 2.0], case.size),
    }[case.weights]
    return weights.astype(case.weights_dtype)


def _indices(case: Case, rng: Any) -> np.ndarray | None:
    if case.indices is None:
        return None
    indices = rng.permutation(24)[: case.size]
    if case.indices == "repeated":
        indices = rng.choice(indices[:3], case.size)
    outside = {"int8": -1, "int32": 324, "int64": 2**40, "uint8": 255, "uint32": 2**32 - 1}[
        case.indices_dtype
    ]
    if case.indices == "outside":
        indices = np.where(rng.uniform(size=case.size) < 0.5, indices, outside)
    if case.indices == "all outside":
        indices = np.full(case.size, outside)
    return indices.astype(np.int64).astype(case.indices_dtype)


def wide_dtype(dtype: Any) -> np.dtype:
    """float32 or wider, real or complex."""
    return np.dtype(np.float32) if jnp.finfo(dtype).bits == 16 else np.dtype(dtype)
