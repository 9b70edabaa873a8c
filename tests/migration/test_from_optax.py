"""The calls of `docs/migrating_from_optax.md` beside those that they replace."""

import functools
from functools import partial

import jax
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
}


@pytest.fixture(autouse=True, scope="module")
def float64():
    yield from in_float64()


@pytest.fixture(scope="module")
def page(float64):
    return names(PAGE)


def train_by_contrib(tx, calls):
    """The weights after every step of so many calls of `update`, one row each."""

    def step(carry, batch):
        params, state = carry
        grad_fn = lambda p, _: gradient(p, batch)
        for _ in range(calls):
            updates, state = tx.update(grad_fn(params, 0), state, params, grad_fn=grad_fn)
            params = optax.apply_updates(params, updates)
        return (params, state), params

    @partial(jax.jit, compiler_options=FAST)
    def run(params):
        return jax.lax.scan(step, (params, tx.init(params)), stack(BATCHES))[1]

    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return flatten_steps(run(initial()))


CASES = [("sgd", old) for old in PAIRS] + [("adamw", old) for old in list(PAIRS)[:2]]


@pytest.fixture(scope="module")
def trained(page):
    """What a new call of the page makes of the weights, by its base optimizer."""
    return functools.cache(lambda new, base: train(eval(new, page | {"base": BASES[base]})))


@pytest.mark.parametrize(("base", "old"), CASES)
def test_new_call_trains_as_the_old_one(base, old, page, trained):
    tx = eval(old, page | {"base": BASES[base]})
    expected = train_by_contrib(tx, calls=2 if old == "contrib.sam(base, ascent)" else 1)
    np.testing.assert_allclose(trained(PAIRS[old], base), expected, rtol=1e-12)


def close(tree, other):
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-12), tree, other)


def test_new_loop_takes_its_two_gradients_on_the_batches_of_two_calls(page, as_optax_promotes):
    batches = [page["batch"] | {"image": page["batch"]["image"] * (1 + 0.1 * i)} for i in range(4)]
    old, new = (jax.jit(page[f"{kind}_loop"])(page["params"], batches) for kind in ("old", "new"))
    close(new, old)
    assert np.abs(new["w"] - page["params"]["w"]).max() > 1e-3


@pytest.mark.parametrize("opaque", [True, False])
def test_old_checkpoint_goes_on(opaque, page, as_optax_promotes):
    """Also from between the two calls of the transparent mode, whose first one is taken again."""
    tx = contrib.sam(page["base"], page["ascent"], opaque_mode=opaque)
    grads = lambda params, _=0: jax.grad(page["loss_fn"])(params, page["batch"])

    @partial(jax.jit, static_argnums=2)
    def go_on(params, state, calls):
        for _ in range(calls):
            updates, state = tx.update(grads(params), state, params, grad_fn=grads)
            params = optax.apply_updates(params, updates)
        return params, state

    first, second = (2, 2) if opaque else (5, 3)
    params, state = go_on(page["old_params"], tx.init(page["old_params"]), first)
    expected, _ = go_on(params, state, second)
    params, state = page["restored"](params, state, steps=2)
    assert optax.tree.get(state, "step") == 2
    for _ in range(2):
        params, state, _ = page["new_step"](params, state, page["batch"])
    close(params, expected)


def test_mean_over_devices_in_a_pmap_and_under_jit(page, as_optax_promotes):
    old = contrib.sam(page["base"], page["ascent"], opaque_mode=True, batch_axis_name="i")
    params, batch, loss_fn = page["params"], page["batch"], page["loss_fn"]

    def step(tx, own_mean, params, batch):
        mean = lambda p: jax.lax.pmean(jax.grad(loss_fn)(p, batch), "i")
        grad_fn = mean if own_mean else lambda p, _: jax.grad(loss_fn)(p, batch)
        return tx.update(mean(params), tx.init(params), params, grad_fn=grad_fn)[0]

    def on_parts(tx, own_mean):
        parts = jax.tree.map(lambda x: x.reshape(8, 4, *x.shape[1:]), batch)
        return jax.pmap(partial(step, tx, own_mean), "i", in_axes=(None, 0))(params, parts)

    expected = on_parts(old, False)
    close(on_parts(page["tx"], True), expected)
    new_params, _, _ = page["new_step"](params, page["tx"].init(params), batch)
    close(new_params, jax.tree.map(lambda p, u: p + u[3], params, expected))
