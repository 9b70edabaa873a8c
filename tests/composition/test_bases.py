"""Methods before bases that are no plain descent: Muon, a Shampoo by hand, and a schedule-free one."""

import functools

import jax
import jax.numpy as jnp
import optax
import pytest

import optax_sam
from tests.problem import init_params, losses, make_batch

STEPS = 40


def shampoo(learning_rate, epsilon=1e-4):
    """`L^-1/4 G R^-1/4` of matrices, `L = sum G G^T`, `R = sum G^T G`; Adagrad of vectors."""

    def sides(g):
        if g.ndim == 2:
            return (epsilon * jnp.eye(g.shape[0]), epsilon * jnp.eye(g.shape[1]))
        return (jnp.full_like(g, epsilon),)

    def root(matrix):
        values, vectors = jnp.linalg.eigh(matrix)
        return (vectors * jnp.maximum(values, epsilon)[None] ** -0.25) @ vectors.T

    def update(grads, state, params=None):
        def on_leaf(g, old):
            if g.ndim == 2:
                new = old[0] + g @ g.T, old[1] + g.T @ g
                return -learning_rate * root(new[0]) @ g @ root(new[1]), new
            new = (old[0] + g**2,)
            return -learning_rate * g / jnp.sqrt(new[0]), new

        leaves, treedef = jax.tree.flatten(grads)
        found = [on_leaf(g, old) for g, old in zip(leaves, state, strict=True)]
        return treedef.unflatten([x for x, _ in found]), [new for _, new in found]

    return optax.GradientTransformation(
        lambda params: [sides(jnp.zeros_like(x)) for x in jax.tree.leaves(params)], update
    )


BASES = {
    "muon": optax.contrib.muon(0.03),
    "shampoo": shampoo(0.1),
    "schedule_free": optax.contrib.schedule_free_adamw(0.05),
}
METHODS = {
    "sam": optax_sam.sam(0.05),
    "momentum_sam": optax_sam.momentum_sam(0.05),
    "vsam": optax_sam.vsam(0.05, window=6, slices=3, tail=3),
}


def mean_loss(params):
    return jnp.mean(losses(params, make_batch()))


@functools.cache
def trained(base, method=None):
    """The loss at the parameters that the base evaluates, and the state, after some steps."""
    tx = BASES[base] if method is None else optax.chain(METHODS[method], BASES[base])

    def step(carry, _):
        params, state = carry
        if method is None:
            updates, state = tx.update(jax.grad(mean_loss)(params), state, params)
            params = optax.apply_updates(params, updates)
        else:
            params, state, _ = optax_sam.step(tx, losses)(params, state, make_batch())
        return (params, state), None

    @jax.jit
    def run(params):
        params, state = jax.lax.scan(step, (params, tx.init(params)), length=STEPS)[0]
        if base == "schedule_free":
            own = state if method is None else state[1]
            params = optax.contrib.schedule_free_eval_params(own, params)
        return mean_loss(params), state

    with jax.numpy_dtype_promotion("standard"):
        return run(init_params())


CASES = [pytest.param(base, method, marks=pytest.mark.slow) for base in BASES for method in METHODS]


@pytest.mark.parametrize(("base", "method"), CASES)
def test_it_trains_as_the_base_does(base, method):
    first, alone = float(mean_loss(init_params())), float(trained(base)[0])
    loss, state = trained(base, method)
    assert alone < 0.6 * first
    assert first - loss > 0.8 * (first - alone)
    assert optax_sam.finite(state) and optax_sam.info(state)["gradients"] >= STEPS


def test_where_momentum_sam_finds_its_momentum():
    """Muon keeps that of matrices and that of vectors apart, and a schedule-free base keeps none."""
    params, found = init_params(), {}
    for name, base in BASES.items():
        state = jax.eval_shape(optax.chain(METHODS["momentum_sam"], base).init, params)
        found[name] = optax_sam.directions.where_momentum_is(state, params)
    assert found == {"muon": "own", "shampoo": "own", "schedule_free": "own"}
