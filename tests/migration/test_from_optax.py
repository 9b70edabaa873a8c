"""The calls of `docs/migrating_from_optax.md` beside those that they replace."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

from tests.methods.trajectories import FAST, flatten_steps, in_float64, rising, stack
from tests.migration.pages import pairs
from tests.migration.training import BATCHES, gradient, initial, names, train

PAGE = "migrating_from_optax.md"
PAIRS = pairs(PAGE, "Which method it is")
BASES = {
    "sgd": optax.sgd(0.05, momentum=0.9),
    "adamw": optax.chain(optax.clip_by_global_norm(0.3), optax.adamw(rising(0.05, -0.001))),
    "rmsprop": optax.chain(optax.add_decayed_weights(0.01), optax.rmsprop(0.01)),
}


@pytest.fixture(autouse=True, scope="module")
def float64():
    yield from in_float64()


@pytest.fixture(scope="module")
def page(float64):
    return names(PAGE)


def train_by_contrib(tx, calls):
    """The weights after every step of so many calls of `update`, and the last state."""

    def call(carry, batch):
        params, state = carry
        grad_fn = lambda p, _: gradient(p, batch)
        updates, state = tx.update(grad_fn(params, 0), state, params, grad_fn=grad_fn)
        return (optax.apply_updates(params, updates), state), None

    def step(carry, batch):
        for _ in range(calls):
            carry, _ = call(carry, batch)
        return carry, carry[0]

    @partial(jax.jit, compiler_options=FAST)
    def run(params):
        (_, state), found = jax.lax.scan(step, (params, tx.init(params)), stack(BATCHES))
        return found, state

    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        found, state = run(initial())
    return flatten_steps(found), state


CASES = [("sgd", old) for old in PAIRS] + [(base, old) for base in ("adamw", "rmsprop") for old in list(PAIRS)[:2]]


@pytest.mark.parametrize(("base", "old"), CASES)
def test_new_call_trains_as_the_old_one(base, old, page):
    scope = page | {"base": BASES[base]}
    expected, _ = train_by_contrib(eval(old, scope), 2 if old == "contrib.sam(base, ascent)" else 1)
    run, _ = train(eval(PAIRS[old], scope))
    print("ERR", np.abs(run / expected - 1).max())
    np.testing.assert_allclose(run, expected, rtol=1e-9)
