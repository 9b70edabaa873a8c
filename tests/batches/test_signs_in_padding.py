"""NaN and infinities in padding that a loss in which examples meet means as signs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optax_sam
from tests.batches.test_losses_that_couple import CONTENTS, INPUTS, PARAMS, REAL, weights_of
from tests.problem import assert_trees_close
from tests.registry import over


def additive(params, batch):
    """The mask is added to the scores."""
    z = batch["x"] @ params
    return jax.nn.logsumexp(z @ z.T + batch["sign"][None, :], axis=1) - jnp.diag(z @ z.T)


def additive_pairs(params, batch):
    """The same with a mask of pairs, over rows."""
    z = batch["x"] @ params
    return jax.nn.logsumexp(z @ z.T + batch["sign"], axis=1) - jnp.diag(z @ z.T)


def additive_in_a_loop(params, batch):
    """The same in every turn of a loop over layers."""

    def layer(z, kernel):
        weights = jax.nn.softmax(z @ z.T + batch["sign"][None, :], axis=1)
        return jnp.tanh(weights @ z @ kernel), None

    return jnp.square(jax.lax.scan(layer, batch["x"] @ params, jnp.stack([jnp.eye(2), jnp.ones((2, 2))]))[0])[
        :, 0
    ]


def repelled(params, batch):
    """Distances are subtracted, infinite ones of padding."""
    return additive(params, batch | {"sign": -batch["sign"]})


def asked_for(params, batch):
    """What is NaN counts nothing."""
    known = ~jnp.isnan(batch["sign"])
    return additive(params, {"x": batch["x"], "sign": jnp.where(known, 0.0, -1e9)})


def survival(params, batch):
    """Examples at risk are those whose time has not come; that of padding is before all others."""
    z, time = (batch["x"] @ params)[:, 0], batch["sign"]
    at_risk = time[None, :] >= time[:, None]
    return jnp.log(jnp.sum(jnp.where(at_risk, jnp.exp(z)[None, :], 0.0), axis=1)) - z


def sorted_by_time(params, batch):
    """Sums over those with later times; padding is last in every order."""
    z = (batch["x"] @ params)[:, 0]
    _, ordered = jax.lax.sort((-batch["sign"], z), num_keys=1)
    return jnp.square(z - jnp.cumsum(ordered)[REAL - 1])


def of_the_latest(params, batch):
    z = (batch["x"] @ params)[:, 0]
    return jnp.square(z - jnp.mean(z[jax.lax.top_k(batch["sign"], 2)[1]]))


def weighed_by_softmax(params, batch):
    z, share = (batch["x"] @ params)[:, 0], jax.nn.softmax(batch["sign"])
    return jnp.square(z - jnp.sum(share * z))


def weighed_by_exp(params, batch):
    z, weight = (batch["x"] @ params)[:, 0], jnp.exp(batch["sign"])
    return jnp.square(z - jnp.sum(weight * z) / jnp.sum(weight))


def divided(params, batch):
    z = (batch["x"] @ params)[:, 0]
    return jnp.square(z - jnp.sum(z / batch["sign"] ** 2))


TIMES = np.array([3.0, 1.0, 2.0, 5.0])
SIGNS = {
    "sorted by": (sorted_by_time, TIMES, -np.inf),
    "top k": (of_the_latest, TIMES, -np.inf),
    "softmax": (weighed_by_softmax, TIMES, -np.inf),
    "exp": (weighed_by_exp, TIMES / 5, -np.inf),
    "a divisor": (divided, TIMES, np.inf),
    "added": (additive, np.zeros(REAL), -np.inf),
    "added by pairs": (additive_pairs, np.zeros((REAL, REAL)), -np.inf),
    "added in a loop": (additive_in_a_loop, np.zeros(REAL), -np.inf),
    "subtracted": (repelled, np.zeros(REAL), np.inf),
    "asked for": (asked_for, np.zeros(REAL), np.nan),
    "compared": (survival, TIMES, -np.inf),
}


@pytest.mark.parametrize("content", over({"minus": -np.inf, **CONTENTS}, ["minus", "nan", "infinite"]))
@pytest.mark.parametrize("name", over(SIGNS, list(SIGNS)))
def test_a_mask_of_infinities_or_nan_keeps_its_meaning(name, content):
    """In a leaf that is added or compared they are signs; in one that is multiplied they are contents."""
    losses, signs, sign = SIGNS[name]
    content = {"minus": -np.inf, **CONTENTS}[content]

    def batch(extra):
        whole = np.full([n + extra for n in signs.shape], sign)
        whole[tuple(map(slice, signs.shape))] = signs
        x = np.concatenate([INPUTS, np.full((extra, 3), content)])
        return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), {"x": x, "sign": whole})

    wanted = jax.value_and_grad(lambda params: jnp.mean(losses(params, batch(0))))(PARAMS)
    for extra in (2, 5):
        oracle = optax_sam.Oracle(losses, batch(extra), weights=weights_of(extra))
        assert_trees_close(oracle.value_and_grad(PARAMS), wanted, rtol=1e-5, atol=1e-6)


TESTS_OF_FEATURES = {
    "a sum": (lambda x: jnp.isnan(x.sum(-1)), np.nan),
    "the largest": (lambda x: jnp.isnan(jnp.max(jnp.clip(2 * x - 1, -9.0, 9.0), axis=-1)), np.nan),
    "a norm": (lambda x: ~jnp.isfinite(jnp.linalg.norm(x, axis=-1)), np.inf),
    "smaller units": (lambda x: ~(jnp.abs(x[:, 0] / 10) < 1e9), np.nan),
    "larger units": (lambda x: jnp.abs(10 * x[:, 0]) > 1e9, np.inf),
    "infinities": (lambda x: jnp.isinf(x[:, 0]), np.inf),
}


@pytest.mark.parametrize("name", TESTS_OF_FEATURES)
def test_features_that_are_tested_before_they_meet_parameters_stay(name):
    """The loss finds its own mask in the features."""
    is_padding, content = TESTS_OF_FEATURES[name]

    def losses(params, x):
        valid = ~is_padding(x)
        h = jnp.tanh((jnp.where(valid[:, None], x, 0.0) @ params)[:, 0])
        mean = jnp.where(valid, h, 0.0).sum() / valid.astype(h.dtype).sum()
        return jnp.where(valid, jnp.square(h - mean), 0.0)

    inputs = jnp.asarray(INPUTS, jnp.float32)
    wanted = jax.value_and_grad(lambda params: jnp.mean(losses(params, inputs)))(PARAMS)
    padded = jnp.concatenate([inputs, jnp.full((2, 3), content)])
    oracle = optax_sam.Oracle(losses, padded, weights=weights_of(2))
    assert_trees_close(oracle.value_and_grad(PARAMS), wanted, rtol=1e-5, atol=1e-6)


def _cutoff(distance):
    return 0.5 * (1 + jnp.cos(jnp.pi * jnp.minimum(distance, 2.0) / 2))


def _told(distance):
    shape = jax.ShapeDtypeStruct(distance.shape, distance.dtype)
    return jax.pure_callback(lambda d: np.nan_to_num(np.exp(-d)), shape, distance, vmap_method="sequential")


WEIGHTS_OF_DISTANCES = {
    "nan_to_num of exp": (lambda d, w: jnp.nan_to_num(jnp.exp(-d)), np.nan),
    "nan_to_num of a quotient": (lambda d, w: jnp.nan_to_num(1 / d), np.nan),
    "nan_to_num of tanh": (lambda d, w: jnp.nan_to_num(jnp.tanh(d)), np.nan),
    "isfinite of exp": (lambda d, w: jnp.isfinite(jnp.exp(d)), np.nan),
    "isnan of a sum with parameters": (lambda d, w: jnp.nan_to_num(w + d), np.nan),
    "a square compared": (lambda d, w: d * d < 9, np.nan),
    "a root compared": (lambda d, w: jnp.sqrt(d) < 2, np.nan),
    "rounded and compared": (lambda d, w: jnp.floor(d) < 3, np.nan),
    "the largest compared": (lambda d, w: jnp.max(jnp.stack([d, 2 * d]), axis=0) < 1e3, np.inf),
    "compared in a loop": (
        lambda d, w: jax.lax.while_loop(lambda x: x[0] < 1, lambda x: (x[0] + 1, d < 2), (0, d < 0))[1],
        np.nan,
    ),
    "told by a callback": (lambda d, w: _told(d), np.nan),
    "a cast": (lambda d, w: jnp.where(d.astype(jnp.int32) > 0, 1.0, 0.0), -np.inf),
    "a power": (lambda d, w: d**-1.5, np.inf),
    "an integer power": (lambda d, w: d**-2, np.inf),
    "rsqrt": (lambda d, w: jax.lax.rsqrt(d), np.inf),
    "relu": (lambda d, w: jax.nn.relu(1 - d / 4), np.inf),
    "clipped": (lambda d, w: jnp.clip(1 - d / 4, 0.0, 1.0), np.inf),
    "a smooth cutoff": (lambda d, w: _cutoff(d), np.inf),
    "expm1": (lambda d, w: 1 + jnp.expm1(-d), np.inf),
    "times a constant of the parameters": (
        lambda d, w: jnp.exp(-d * jax.lax.stop_gradient(jnp.abs(w)) - 0.1),
        np.inf,
    ),
    "times a comparison of the parameters": (lambda d, w: jnp.exp(-d * (w < 9.0).astype(d.dtype)), np.inf),
}


@pytest.mark.parametrize("name", WEIGHTS_OF_DISTANCES)
def test_what_is_finite_before_it_meets_the_parameters_is_a_sign(name):
    """Padding is infinitely far away, or nowhere: as much as the loss makes of that, and no real row."""
    weight_of, sign = WEIGHTS_OF_DISTANCES[name]

    def losses(params, batch):
        z = (batch["x"] @ params)[:, 0] + 1
        weight = weight_of(batch["distance"], params[0, 0]).astype(z.dtype)
        return jnp.square(z - jnp.sum(weight * z))

    def batch(extra, content):
        x = np.concatenate([INPUTS, np.full((extra, 3), content)])
        distance = np.concatenate([TIMES / 2, np.full(extra, sign)])
        return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), {"x": x, "distance": distance})

    def plain(params):  # as JAX gives it, with features that no derivative of it makes NaN of
        return jnp.mean(losses(params, batch(3, 0.0))[:REAL])

    oracle = optax_sam.Oracle(losses, batch(3, 0.0), weights=weights_of(3))
    wanted = jax.value_and_grad(plain)(PARAMS)
    assert np.all(np.isfinite(wanted[1]))
    assert_trees_close(oracle.value_and_grad(PARAMS), wanted, rtol=1e-5, atol=1e-6)
