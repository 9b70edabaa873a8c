"""Nodes of parameters that compute an array from their leaves: the gradient is that of the leaves."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import optax_sam
from tests.problem import assert_trees_close
from tests.registry import CASES, over
from tests.rows import own_loss

# The others name leaves or classes of their own, or want more examples.
OTHERS = {"fgsam", "fgsam_plus", "sam_on", "focal_sam", "ausam_strata"}
OF_ANY_PARAMETERS = [name for name in CASES if name not in OTHERS]
PLAIN = {"raw": jnp.asarray([0.5, -0.2]), "bias": jnp.asarray(0.1)}


class Positive(eqx.Module):
    """What is used is `exp(raw)`."""

    raw: jax.Array

    def __jax_array__(self):
        return jnp.exp(self.raw)


@jax.tree_util.register_pytree_node_class
class Scaled:
    """The same as a node of nobody's library."""

    def __init__(self, raw):
        self.raw = raw

    def tree_flatten(self):
        return (self.raw,), None

    @classmethod
    def tree_unflatten(cls, _, children):
        return cls(*children)

    def __jax_array__(self):
        return jnp.exp(self.raw)


class Logarithmic(nnx.Param):
    """A variable of Flax whose value is another than the array in it."""

    def get_value(self, **kwargs):
        return jnp.exp(super().get_value(**kwargs))


def in_a_node(node):
    return lambda params: {"scale": node(params["raw"]), "bias": params["bias"]}


KINDS = {"equinox": in_a_node(Positive), "own": in_a_node(Scaled), "flax": in_a_node(Logarithmic)}


def losses(params, batch):
    (bias, raw) = jax.tree.leaves(params)
    return jnp.square(batch @ jnp.exp(raw) + bias - 1)


BATCH = jnp.asarray([[1.0, 2.0], [0.5, -1.0], [0.0, 1.0], [2.0, 0.5]])


def trained(method, losses, params, num_steps=3):
    tx = optax.chain(method, optax.sgd(0.05, momentum=0.9))
    train_step = jax.jit(optax_sam.step(tx, losses))
    state, found = tx.init(params), []
    for number in range(num_steps):
        indices = jnp.arange(4) + 4 * (number % 2)
        params, state, loss = train_step(params, state, BATCH + 0.1 * number, indices=indices)
        found.append(loss)
    return jax.tree.leaves(params), found, optax_sam.info(state)["grad_norm"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", over(OF_ANY_PARAMETERS, ["sam", "momentum_sam"]))
def test_a_node_that_computes_an_array_is_no_variable(name, kind, as_optax_promotes):
    """The method sees the node's leaves, not what the node makes of them."""
    method = CASES[name].make(**own_loss(CASES[name], losses))
    found = trained(method, losses, KINDS[kind](PLAIN))
    assert_trees_close(found, trained(method, losses, PLAIN), rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_its_norms_and_its_curvature_are_those_of_its_leaves(kind):
    node = KINDS[kind]({"raw": jnp.asarray([1.0]), "bias": jnp.asarray(0.0)})["scale"]

    def losses(params, batch):
        (raw,) = jax.tree.leaves(params)
        return jnp.square(batch * jnp.exp(raw))

    batch = jnp.asarray([1.0])
    params = {"scale": node}
    loss, grads = optax_sam.Oracle(losses, batch).value_and_grad(params)
    np.testing.assert_allclose(loss, np.exp(2.0), rtol=1e-5)
    np.testing.assert_allclose(jax.tree.leaves(grads)[0], [2 * np.exp(2.0)], rtol=1e-5)
    norms = optax_sam.per_example.gradient_norms(losses, params, batch)
    np.testing.assert_allclose(norms, [2 * np.exp(2.0)], rtol=1e-5)
    found = optax_sam.sharpness.top_eigenvalues(losses, params, batch)
    np.testing.assert_allclose(found.values, [4 * np.exp(2.0)], rtol=1e-4)
