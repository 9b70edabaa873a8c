"""The memory of methods of large models, read from compiled steps of a small decoder."""

import functools

import jax
import optax
import pytest

import optax_sam
from benchmarks.decoder import Decoder
from benchmarks.memory import BY_HAND, memory_of, parameters, read_mu, read_nu
from tests.problem import init_params

pytestmark = pytest.mark.slow
SMALL = Decoder(width=256, layers=4, vocabulary=1024)


@functools.cache
def above_adamw(method, **options):
    """Bytes of the peak above AdamW's, in parameter trees."""
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        found, alone = (memory_of(m, SMALL, **options) for m in (method, None))
    return (found.peak - alone.peak) / (4 * parameters(SMALL))


def test_sam_takes_one_parameter_tree_more_than_adamw_and_no_more_than_sam_by_hand():
    """The activations of this decoder are a larger part of its parameters: a fifth of a tree beside."""
    found = above_adamw(optax_sam.sam())
    assert found < 1.25
    assert found < above_adamw(BY_HAND) + 0.02


def test_a_momentum_that_is_read_needs_no_tree_of_its_own():
    assert above_adamw(optax_sam.momentum_sam(read_momentum=read_mu)) < 1.1
    assert above_adamw(optax_sam.momentum_sam()) > 1.5


def test_a_second_moment_that_is_read_needs_no_tree_of_its_own():
    assert above_adamw(optax_sam.preconditioned_sam(read_second_moment=read_nu)) < 1.6
    assert above_adamw(optax_sam.preconditioned_sam()) > 1.9


@pytest.mark.parametrize(
    "method",
    [
        optax_sam.momentum_sam(read_momentum=read_mu),
        optax_sam.preconditioned_sam(read_second_moment=read_nu),
    ],
    ids=["momentum_sam", "preconditioned_sam"],
)
def test_what_is_read_is_not_kept(method):
    state = optax.chain(method, optax.adamw(1e-3)).init(init_params())
    assert not jax.tree.leaves(state[0].direction)
