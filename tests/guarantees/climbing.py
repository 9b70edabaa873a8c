"""A perturbation by itself: a tree to climb along, and what an ascent makes of it."""

import jax
import jax.numpy as jnp
import numpy as np

TREE = {
    "kernel": jnp.array([[3.0, -4.0, 0.5], [0.0, 1.0, -2.0]]),
    "bias": jnp.array([1e-3, 0.0, -2.0]),
    "number": jnp.array(0.7),
    "steps": jnp.arange(3),
}
SCALES = [1.0, 1e30, 1e-30]


def climb(ascent, direction, step=0, jitted=True):
    """The perturbation of an ascent, and its length."""

    def run(direction):
        perturbation, _, length = ascent.update.__self__.climb(
            direction, ascent.init(direction), direction, step=step
        )
        return perturbation, length

    return (jax.jit(run) if jitted else run)(direction)


def scaled(scale, tree=TREE):
    return jax.tree.map(lambda x: x * scale if jnp.issubdtype(x.dtype, jnp.inexact) else x, tree)


def flat(tree):
    """All inexact entries, as one vector of float64 or complex128."""
    leaves = [np.ravel(np.asarray(x)) for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
    joined = np.concatenate(leaves)
    return joined.astype(np.complex128 if np.iscomplexobj(joined) else np.float64)
