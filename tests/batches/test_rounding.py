"""A small radius in bfloat16: the distance that is moved, by rounding to the nearest number and by chance."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_sam
from benchmarks.rounding import moved, params_of
from optax_sam.pieces.ascents import chained, rounded_by_chance, to_radius

RHO = 0.005


def test_a_small_radius_in_bfloat16_is_moved_by_chance_and_vanishes_to_the_nearest():
    params = params_of(jnp.bfloat16)
    nearest, _, told = moved(to_radius(RHO), params)
    assert told == pytest.approx(RHO, rel=0.01)  # what was asked for
    by_chance, whole, told = moved(chained(to_radius(RHO), rounded_by_chance()), params)
    exact, _, _ = moved(to_radius(RHO), params_of(jnp.float32))
    assert exact == pytest.approx(RHO, rel=1e-3)
    assert by_chance == pytest.approx(RHO, rel=0.03)
    assert nearest < 0.4 * RHO
    assert told == pytest.approx(whole, rel=0.05) and whole > by_chance


@pytest.mark.parametrize("dtype", [jnp.bfloat16, pytest.param(jnp.float16, marks=pytest.mark.slow)])
def test_every_entry_is_one_of_its_neighbours_and_their_mean_is_right(dtype):
    kind = jnp.dtype(dtype)
    w = np.array([1.0, -1.0, 0.75, 3.0e-3, 0.0, 100.0], np.float32).astype(kind)
    e = np.array([1e-4, 1e-4, -3e-4, 1e-6, 1e-9, 0.0], np.float32)
    ascent, draws = rounded_by_chance(), 4000

    def once(key):
        found, _ = ascent.update(jnp.asarray(e), ascent.init(jnp.asarray(w)), jnp.asarray(w), key=key)
        return found

    found = np.asarray(jax.jit(jax.vmap(once))(jax.random.split(jax.random.key(0), draws)), np.float64)
    points = found + w.astype(np.float64)
    np.testing.assert_array_equal(points.astype(kind).astype(np.float64), points)  # numbers of the dtype
    assert np.all(points[:, -1] == 100.0)
    for number in range(len(w) - 1):
        few = np.unique(points[:, number])
        assert len(few) <= 2
        spread = np.ptp(few) if len(few) == 2 else 0.0
        error = abs(points[:, number].mean() - w[number].astype(np.float64) - e[number])
        assert error <= 4 * spread / np.sqrt(draws) + 1e-9


def test_leaves_of_other_dtypes_keep_their_perturbation():
    ascent, params = rounded_by_chance(), {"w": jnp.ones(3), "n": jnp.arange(3), "z": jnp.ones(2, complex)}
    updates = jax.tree.map(lambda x: x * 0 + 1, params)
    found, _ = ascent.update(updates, ascent.init(params), params, key=jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, found, updates)
    with pytest.raises(ValueError, match="key=None"):
        ascent.update(updates, ascent.init(params), params)


@pytest.mark.slow
def test_without_a_radius_nothing_is_moved():
    ascent = chained(to_radius(0.0), rounded_by_chance())
    along, whole, told = moved(ascent, params_of(jnp.bfloat16, 1000))
    assert along == whole == told == 0


@pytest.mark.slow
def test_training_in_bfloat16_descends():
    method = optax_sam.sharpness_aware(chained(to_radius(RHO), rounded_by_chance()))
    tx = optax.chain(method, optax.sgd(0.1))
    params = {"kernel": jnp.ones(64, jnp.bfloat16)}
    bowl = lambda params, batch: batch * jnp.sum(params["kernel"].astype(jnp.float32) ** 2)
    step, state, seen = jax.jit(optax_sam.step(tx, bowl)), tx.init(params), []
    for _ in range(20):
        params, state, loss = step(params, state, jnp.ones(2))
        seen.append(float(loss))
    assert seen[-1] < 0.1 * seen[0]
