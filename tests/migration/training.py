"""The network of the references in float64, trained with any Optax transformation."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tests.methods.trajectories import FAST, flatten_steps, losses, stack
from tests.migration.pages import DOCS, PROBLEM

BATCHES = [batch | {"position": np.arange(len(batch["label"]))} for batch in PROBLEM.batches]
gradient = jax.grad(lambda params, batch: jnp.mean(losses(params, batch)[0]))


def names(page):
    """All that the code of a page defines."""
    found: dict = {}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for block in re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), flags=re.DOTALL):
            exec(compile(block, page, "exec"), found)
    return found


def initial():
    return jax.tree.map(jnp.asarray, PROBLEM.params)


def train(tx):
    """The weights after every step, one row each."""

    def step(carry, batch):
        params, state = carry
        grad_fn = lambda p: gradient(p, batch)
        updates, state = tx.update(grad_fn(params), state, params, grad_fn=grad_fn)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    @partial(jax.jit, compiler_options=FAST)
    def run(params):
        return jax.lax.scan(step, (params, tx.init(params)), stack(BATCHES))[1]

    with jax.numpy_dtype_promotion("standard"):
        return flatten_steps(run(initial()))
