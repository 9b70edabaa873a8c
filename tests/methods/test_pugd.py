"""PUGD: unit steps."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_sam
from tests.methods.small import (
    BATCH,
    FAST,
    PARAMS,
    close,
    flatten,
    losses,
    mean_gradient,
    norm,
    one_step,
    train,
)


def test_pugd_perturbs_and_descends_by_unit_steps():
    run = train(optax_sam.pugd(), base=optax.sgd(0.1))
    np.testing.assert_allclose(run.info["perturbation_norm"], 1, rtol=1e-5)
    start = flatten(PARAMS)[None]
    steps = np.diff(np.concatenate([start, run.params]).astype(np.float64), axis=0)
    np.testing.assert_allclose(np.linalg.norm(steps, axis=1), 0.1, rtol=1e-4)


@pytest.mark.parametrize("sum_gradients", [True, False])
def test_pugd_does_not_depend_on_the_scale_of_the_loss(sum_gradients):
    method = optax_sam.pugd(sum_gradients=sum_gradients)

    @partial(jax.jit, compiler_options=FAST)
    def descent(scale):
        def scaled(params, batch):
            return scale * losses(params, batch)

        params, state = PARAMS, method.init(PARAMS)
        _, grads, oracle = method.value_and_grad(scaled)(params, BATCH, state=state)
        return method.update(grads, state, params, oracle=oracle)[0]

    expected = descent(jnp.float32(1))
    np.testing.assert_allclose(norm(expected), 1, rtol=1e-5)
    for scale in (1e-4, 1e3):
        close(flatten(descent(jnp.float32(scale))), flatten(expected), atol=1e-6)


def test_pugd_does_not_perturb_weights_that_are_zero():
    params = jax.tree.map(lambda x: jnp.where(jnp.arange(x.size).reshape(x.shape) % 3 == 0, 0, x), PARAMS)
    grads = mean_gradient(params, BATCH)
    perturbation, _ = optax_sam.ascents.to_radius(1.0, optax_sam.geometries.magnitude()).update(
        grads, optax.EmptyState(), params, step=jnp.array(0)
    )
    for e, w, g in zip(*map(jax.tree.leaves, (perturbation, params, grads)), strict=True):
        assert (g[w == 0] != 0).any()
        np.testing.assert_array_equal(e[w == 0], 0)
        assert (e[(w != 0) & (g != 0)] != 0).all()
    np.testing.assert_allclose(norm(perturbation), 1, rtol=1e-6)


def test_pugd_without_radius_gives_the_unit_gradient():
    descent, _, grads = one_step(optax_sam.pugd(radius=0.0))
    close(flatten(descent), flatten(grads) / norm(grads), atol=1e-6)
