"""Shares of a whole number, and what is counted by them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_sam
from optax_sam.arithmetic import shares
from optax_sam.pieces import gates
from optax_sam.sharpness import worst


def test_hundredths_are_what_they_are_written_as():
    for size in (100, 300, 7000):
        for number in range(101):
            share, wanted = number / 100, number * size // 100
            for each in (share, np.float32(share)):
                assert shares.down(each, size) == shares.up(each, size) == wanted
            assert shares.floor(jnp.float32(share) * size) == wanted
    assert (shares.down(0.29, 101), shares.up(0.29, 101)) == (29, 30)
    assert shares.down(1 / 49, 49) == 1 and shares.floor(jnp.float32(29.4)) == 29


def test_a_fraction_of_the_examples_is_what_it_is_written_as():
    """The largest 29 of the gradients 1, 2, ..., 100."""
    tx = optax.chain(optax_sam.ksam(0.1, fraction=0.29), optax.sgd(1.0))
    params = jnp.array(1.0)
    step = jax.jit(optax_sam.step(tx, lambda w, x: x * w))
    after, *_ = step(params, tx.init(params), jnp.arange(1.0, 101))
    assert float(params - after) == pytest.approx(np.arange(72, 101).mean())


@pytest.mark.parametrize("sparsity", [0.55, 0.07])
def test_a_mask_keeps_what_its_sparsity_leaves(sparsity):
    method = optax_sam.sparse_sam(1.0, sparsity=sparsity, mask="dynamic", total_steps=9)
    state = method.init(jnp.ones(100)).ascent
    kept = [int(x.sum()) for x in jax.tree.leaves(state) if x.dtype == bool]
    assert kept == [100 - round(100 * sparsity)]


@pytest.mark.parametrize("quantile", [0.53, 0.29, 0.0, 1.0])
@pytest.mark.parametrize("traced", [False, True])
def test_outliers_are_those_above_the_quantile(quantile, traced):
    d = jnp.asarray(np.random.default_rng(0).normal(size=(101, 1)), jnp.float32)

    def kept(quantile):
        return jnp.sum(optax_sam.ascents.keep_outliers(quantile).update(d, (), d)[0] != 0)

    assert (jax.jit(kept) if traced else kept)(quantile) == 100 - round(100 * quantile)


def test_the_largest_rate_and_the_looks_of_the_worst_point():
    gate = gates.with_variance_rate(window=100, max_rate=0.29)
    state = gate.init(jnp.ones(1), jax.random.key(0))
    assert float(gate._renewed(state._replace(rate=jnp.array(1e3))).rate) == 29
    assert worst.checkpoints(50)[0] == 11
