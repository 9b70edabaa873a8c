"""Small problems whose Hessian is known, or can be written out."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree


def network():
    """Parameters with leaves of every kind, losses of a batch, and three batches of unequal sizes."""
    rng = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    params = {
        "first": {"kernel": normal(3, 4), "bias": normal(4)},
        "second": [normal(4, 2), None],
        "count": jnp.arange(3),
        "empty": jnp.zeros([0]),
    }
    batches = [{"x": normal(n, 3), "y": normal(n, 2)} for n in (5, 2, 3)]
    return params, losses, batches


def outputs(params, batch):
    hidden = jnp.tanh(batch["x"] @ params["first"]["kernel"] + params["first"]["bias"][None])
    return hidden @ params["second"][0]


def losses_of_outputs(outputs, batch):
    return jnp.sum(jnp.cosh(outputs - batch["y"]), axis=-1)


def losses(params, batch):
    return losses_of_outputs(outputs(params, batch), batch)


def joined(batches):
    return jax.tree.map(lambda *xs: jnp.concatenate(xs), *batches)


def floats(tree):
    """All float entries of a tree like the network's parameters as one NumPy vector."""
    leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating) and x.size]
    return np.concatenate([np.ravel(x) for x in leaves]).astype(float)


def differentiable(params):
    """The float leaves of the network, and a function that puts them back."""
    chosen = {"first": params["first"], "second": params["second"][0]}
    flat, unravel = ravel_pytree(chosen)

    def back(flat):
        tree = unravel(flat)
        return params | {"first": tree["first"], "second": [tree["second"], None]}

    return flat, back


def dense_hessian(params, batch, loss_fn=losses):
    flat, back = differentiable(params)
    return np.asarray(jax.hessian(lambda v: loss_fn(back(v), batch).mean())(flat), float)


@functools.cache
def written_out():
    """Gradients and Hessians of the network's examples, of all batches: `[10, 24]` and `[10, 24, 24]`."""
    params, _, batches = network()
    whole, (flat, back) = joined(batches), differentiable(params)

    def of(v):
        return losses(back(v), whole)

    return np.asarray(jax.jacobian(of)(flat), float), np.asarray(jax.hessian(of)(flat), float)


ROWS = (slice(0, 5), slice(5, 7), slice(7, 10))
"""Which of them each batch has."""


def dense_gauss_newton(params, batch):
    flat, back = differentiable(params)
    size = len(batch["x"])
    jacobian = np.asarray(jax.jacobian(lambda v: outputs(back(v), batch))(flat), float)
    bend = np.cosh(np.asarray(outputs(params, batch) - batch["y"], float))
    return np.einsum("noi,no,noj->ij", jacobian, bend, jacobian) / size


def quadratic(matrix):
    """`w^T A w / 2` for every example, whatever it is."""
    matrix = jnp.asarray(matrix)

    def losses(w, batch):
        return jnp.broadcast_to(w @ matrix @ w / 2, batch.shape[:1])

    return losses


def random_vector_like(params, seed=1):
    rng = np.random.default_rng(seed)

    def on_leaf(x):
        if not jnp.issubdtype(x.dtype, jnp.floating):
            return x
        return jnp.asarray(rng.normal(size=x.shape), jnp.float32)

    return jax.tree.map(on_leaf, params)
