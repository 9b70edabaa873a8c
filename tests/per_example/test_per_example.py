"""Losses, gradients and gradient norms of single examples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optax_sam import per_example
from tests.problem import assert_trees_close, init_params, losses, make_batch
from tests.references import network


@pytest.mark.parametrize("microbatch_size", [None, 1, 4, 16])
def test_they_are_those_of_batches_of_one(microbatch_size):
    params, batch = init_params(), make_batch()
    ones = [jax.tree.map(lambda x, i=i: x[i : i + 1], batch) for i in range(16)]
    alone = [jax.value_and_grad(lambda p, b: losses(p, b)[0])(params, one) for one in ones]
    arguments = losses, params, batch
    np.testing.assert_allclose(
        per_example.losses(*arguments, microbatch_size=microbatch_size),
        [loss for loss, _ in alone],
        rtol=1e-6,
    )
    got = per_example.gradients(*arguments, microbatch_size=microbatch_size)
    wanted = jax.tree.map(lambda *g: jnp.stack(g), *[g for _, g in alone])
    assert_trees_close(got, wanted, rtol=1e-5, atol=1e-6)


def test_gradient_norms_are_those_of_the_literal_network():
    with jax.enable_x64(True):
        problem = network.make_problem(3)
        batch = problem.batches[0]
        got = per_example.gradient_norms(
            losses,
            jax.tree.map(jnp.asarray, problem.params),
            jax.tree.map(jnp.asarray, batch),
            microbatch_size=4,
        )
        np.testing.assert_allclose(got, network.per_example_gradient_norms(problem.params, batch), rtol=1e-12)


def test_the_mean_of_the_gradients_is_the_gradient():
    params, batch = init_params(), make_batch()
    mean = jax.tree.map(
        lambda g: jnp.mean(g, axis=0), jax.jit(lambda p: per_example.gradients(losses, p, batch))(params)
    )
    wanted = jax.grad(lambda p: jnp.mean(losses(p, batch)))(params)
    assert_trees_close(mean, wanted, rtol=1e-5, atol=1e-6)
