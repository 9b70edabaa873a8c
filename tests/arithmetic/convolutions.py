"""What the tests of canonical convolutions share: finding convolutions, and comparing them."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

CANONICAL = {
    3: lax.ConvDimensionNumbers((0, 2, 1), (2, 1, 0), (0, 2, 1)),
    4: lax.ConvDimensionNumbers((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2)),
    5: lax.ConvDimensionNumbers((0, 4, 1, 2, 3), (4, 3, 0, 1, 2), (0, 4, 1, 2, 3)),
}


def convolutions(jaxpr: Any) -> Iterator[Any]:
    """Every convolution of a jaxpr, the nested ones too."""
    for equation in jaxpr.eqns:
        if equation.primitive is lax.conv_general_dilated_p:
            yield equation
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple) else (value,):
                if hasattr(inner, "eqns"):
                    yield from convolutions(inner)
                elif hasattr(inner, "jaxpr"):
                    yield from convolutions(inner.jaxpr)


def assert_all_canonical(canonical: Any, *args: Any) -> None:
    """There are convolutions, and all are in the canonical form."""
    found = list(convolutions(jax.make_jaxpr(canonical)(*args).jaxpr))
    assert found and all(e.params["dimension_numbers"] == CANONICAL[e.invars[0].aval.ndim] for e in found)


def assert_same(got: Any, wanted: Any, rtol: float = 1e-5, atol: float = 1e-5) -> None:
    """Same structure, shapes and dtypes; close values."""
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        assert x.dtype == y.dtype and x.shape == y.shape
        np.testing.assert_allclose(np.asarray(x, np.float64), np.asarray(y, np.float64), rtol=rtol, atol=atol)


def normal(seed: int, *shape: int, dtype: Any = jnp.float32) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape).astype(dtype)
