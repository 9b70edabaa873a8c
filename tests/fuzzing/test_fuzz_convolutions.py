"""Random convolutions: the canonical form gives the same result and the same gradients."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from jax import lax

from optax_sam import canonical_convolutions
from tests.arithmetic.convolutions import assert_all_canonical, assert_same
from tests.fuzzing.settings import SHARDS, fuzz

TOGETHER = 25  # compiled as one program: most of the time is spent per program


@dataclasses.dataclass(frozen=True)
class Convolution:
    """The arguments of `lax.conv_general_dilated`; specs are permutations of (batch, channels, *space)."""

    image: tuple[int, ...]
    kernel: tuple[int, ...]
    specs: tuple[tuple[int, ...], ...]
    dtype: str
    arguments: dict[str, Any]

    def __call__(self, image: jax.Array, kernel: jax.Array) -> jax.Array:
        numbers = lax.ConvDimensionNumbers(*self.specs)
        return lax.conv_general_dilated(image, kernel, dimension_numbers=numbers, **self.arguments)

    @property
    def shapes(self) -> list[jax.ShapeDtypeStruct]:
        """Of the operands, their axes in the order of the specs."""
        return [
            jax.ShapeDtypeStruct(tuple(shape[spec.index(n)] for n in range(len(spec))), jnp.dtype(self.dtype))
            for shape, spec in zip((self.image, self.kernel), self.specs, strict=False)
        ]

    def gradients(self, image: jax.Array, kernel: jax.Array, cotangent: jax.Array) -> Any:
        """The result, and the gradients with respect to both operands."""
        out, backward = jax.vjp(self, image, kernel)
        return out, backward(cotangent)


@st.composite
def convolutions(draw: Any) -> Convolution:
    def one(*values):
        return draw(st.sampled_from(values))

    def each(*values):
        return tuple(one(*values) for _ in range(rank))

    rank = one(1, 2, 3)
    groups, batch_groups = one((1, 1), (1, 1), (2, 1), (3, 1), (1, 2), (1, 3))
    inputs, outputs = one(1, 2, 3), one(1, 2) * groups * batch_groups
    dtype = one("float32", "bfloat16", "float16")
    lhs_dilation = each(1, 1, 2, 3)
    padding = st.one_of(
        st.sampled_from(["SAME", "VALID", "SAME_LOWER"]) if max(lhs_dilation) == 1 else st.nothing(),
        st.lists(st.tuples(st.integers(-1, 3), st.integers(-1, 3)), min_size=rank, max_size=rank),
    )
    specs = [tuple(draw(st.permutations(range(rank + 2)))) for _ in range(3)]
    return Convolution(
        image=(one(1, 2) * batch_groups, inputs * groups, *each(1, 2, 3, 5)),
        kernel=(outputs, inputs, *each(1, 2, 3)),
        specs=tuple(specs),
        dtype=dtype,
        arguments={
            "window_strides": each(1, 1, 2, 3),
            "padding": draw(padding),
            "lhs_dilation": lhs_dilation,
            "rhs_dilation": each(1, 1, 2),
            "feature_group_count": groups,
            "batch_group_count": batch_groups,
            "preferred_element_type": one(None, jnp.float32),
        },
    )


def _is_not_empty(one: Convolution) -> bool:
    """Whether JAX takes it, and the result has entries."""
    own, rank = one.arguments, len(one.image) - 2
    padding = own["padding"] if not isinstance(own["padding"], str) else [(0, 0)] * rank
    for n, k, (low, high), spread, hole in zip(
        one.image[2:], one.kernel[2:], padding, own["lhs_dilation"], own["rhs_dilation"], strict=True
    ):
        fits = (n - 1) * spread + 1 + low + high >= (k - 1) * hole + 1 or str(own["padding"]).startswith(
            "SAME"
        )
        if not fits or min(low, 0) + min(high, 0) <= -n:
            return False
    return True


def _check(drawn: list[Convolution], values: int) -> list[str]:
    """All of them, in one program; says what they were."""
    rng = np.random.default_rng(values)
    functions, arguments = [], []
    for one in drawn:
        shapes = [*one.shapes, jax.eval_shape(one, *one.shapes)]
        functions.append((one, canonical_convolutions(one.gradients)))
        arguments.append([rng.normal(size=s.shape).astype(s.dtype) for s in shapes])
        assert_all_canonical(functions[-1][1], *arguments[-1])

    @jax.jit
    def both(arguments):
        return [(c(*a), one.gradients(*a)) for (one, c), a in zip(functions, arguments, strict=True)]

    for one, (got, wanted) in zip(drawn, both(arguments), strict=True):
        eps = float(jnp.finfo(one.dtype).eps)
        size = max(np.max(abs(np.asarray(x, np.float32))) for x in jax.tree.leaves(wanted))
        try:
            assert_same(got, wanted, rtol=4 * eps, atol=8 * eps * (1 + size))
        except AssertionError as error:
            raise AssertionError(f"{one}") from error
    ranks = [f"rank {len(one.image) - 2}" for one in drawn]
    return ["convolutions"] * len(drawn) + ranks + [one.dtype for one in drawn]


def _fuzz(examples: int, seed: int) -> int:
    """Checks so many random convolutions."""
    together = st.lists(
        convolutions().filter(_is_not_empty), min_size=TOGETHER, max_size=TOGETHER, unique_by=repr
    )
    seen = fuzz(_check, examples // TOGETHER, seed, drawn=together, values=st.integers(0, 9))
    print(sorted(seen.items()))
    return seen["convolutions"]


def test_random_convolutions_have_the_same_gradients():
    assert _fuzz(100, seed=0) >= 100


@pytest.mark.slow
@pytest.mark.parametrize("shard", range(SHARDS))
def test_a_thousand_random_convolutions_have_the_same_gradients(shard):
    assert _fuzz(125, seed=1 + shard) >= 125
