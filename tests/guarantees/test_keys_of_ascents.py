"""What draws in one ascent draws apart: each member of a chain, each repeated step, each group of leaves."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optax_sam import ascents

KEYS = jax.random.split(jax.random.key(9), 4000)
ONES = {"s": jnp.array(1.0), "v": jnp.ones(5)}
HALF = ascents.keep_random_fraction(0.5)


def drawn(ascent, updates, params, keys=KEYS, **extra):
    """The perturbation of each key, float64[keys, ...]."""

    def once(key):
        return ascent.update(updates, ascent.init(params), params, step=jnp.int32(0), key=key, **extra)[0]

    return jax.tree.map(lambda x: np.asarray(x, np.float64), jax.jit(jax.vmap(once))(keys))


@pytest.mark.parametrize("chain", [ascents.chained, optax.chain])
def test_what_a_mask_keeps_is_rounded_by_another_chance(chain):
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), ONES)
    small = jax.tree.map(lambda x: 0.002 * x, ONES)
    found = drawn(chain(HALF, ascents.rounded_by_chance()), small, params)
    for leaf in jax.tree.leaves(found):
        error = leaf.std(axis=0) / len(KEYS) ** 0.5
        assert np.all(np.abs(leaf.mean(axis=0) - 0.001) < 4.5 * error)


@pytest.mark.parametrize(
    "ascent",
    [
        ascents.chained(HALF, ascents.in_proportion(1.0), HALF),
        ascents.chained(ascents.chained(HALF), HALF),
        ascents.chained(optax.scale(1.0), HALF, HALF),
    ],
)
def test_two_masks_in_a_chain_are_independent(ascent):
    for leaf in jax.tree.leaves(drawn(ascent, ONES, ONES)):
        assert leaf.mean() == pytest.approx(0.25, abs=4.5 * (0.1875 / len(KEYS)) ** 0.5)


def test_three_masks_in_nested_chains_are_independent():
    ascent = ascents.chained(ascents.chained(HALF, HALF), HALF)
    assert drawn(ascent, ONES, ONES)["s"].mean() == pytest.approx(0.125, abs=0.024)


def test_the_first_that_draws_has_the_key_as_it_came():
    alone = drawn(HALF, ONES, ONES, KEYS[:50])
    behind = drawn(ascents.chained(ascents.in_proportion(1.0), HALF), ONES, ONES, KEYS[:50])
    jax.tree.map(np.testing.assert_array_equal, alone, behind)


def test_every_repeated_step_draws_anew():
    gradient = types.SimpleNamespace(grads=ONES)
    oracle = types.SimpleNamespace(evaluate_moved=lambda perturbation: gradient, scan=jax.lax.scan)
    found = drawn(ascents.repeated(HALF, 3), ONES, ONES, oracle=oracle)["s"]
    shares = np.array([np.mean(found == number) for number in range(4)])
    np.testing.assert_allclose(shares, [1 / 8, 3 / 8, 3 / 8, 1 / 8], atol=0.035)


def test_repetitions_inside_repetitions_draw_anew():
    gradient = types.SimpleNamespace(grads=ONES)
    oracle = types.SimpleNamespace(evaluate_moved=lambda perturbation: gradient, scan=jax.lax.scan)
    twice = ascents.repeated(ascents.chained(ascents.repeated(HALF, 2)), 2)
    found = drawn(twice, ONES, ONES, oracle=oracle)["s"]
    shares = np.array([np.mean(found == number) for number in range(5)])
    np.testing.assert_allclose(shares, np.array([1, 4, 6, 4, 1]) / 16, atol=0.035)


def test_the_groups_of_a_partition_draw_apart():
    parts = {"a": jnp.ones(1000, jnp.bfloat16), "b": jnp.ones(1000, jnp.bfloat16)}
    small = jax.tree.map(lambda x: 0.002 * x.astype(jnp.float32), parts)
    ascent = ascents.chained(ascents.in_proportion(1.0), ascents.rounded_by_chance())
    groups = optax.partition({"x": ascent, "y": ascent}, {"a": "x", "b": "y"})
    found = drawn(groups, small, parts, KEYS[:1])
    moved = [found[name][0] > 0 for name in "ab"]
    p = np.mean(moved)
    assert np.mean(moved[0] & moved[1]) == pytest.approx(p**2, abs=0.05) and 0.2 < p < 0.8
