"""Where two things are equal but for rounding, no method takes the rounding for a direction or a choice."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_sam
from optax_sam.engine.step_oracle import StepOracle


def trained(method, losses, params, batch, steps, jitted=True, **given):
    tx = optax.chain(method, optax.sgd(0.01))
    step = optax_sam.step(tx, losses)
    step = jax.jit(step) if jitted else step
    state = tx.init(params)
    for _ in range(steps):
        params, state, _ = step(params, state, batch, **given)
    return params, state


@pytest.mark.parametrize("method", [optax_sam.looksam, optax_sam.look_layersam])
def test_a_second_gradient_along_the_first_leaves_nothing_to_look_at(method):
    x, start = jnp.array([[1.0, 2.0, -0.5]]), jnp.array([0.3, -0.2, 0.9])

    def losses(w, rows):
        return jnp.square(rows @ w - 1.0)  # one example: every gradient is along x

    w = np.array(trained(method(0.1, every_k=5), losses, start, x, 1)[0], np.float64)
    after = np.array(trained(method(0.1, every_k=5), losses, start, x, 2)[0], np.float64)
    row = np.array([1.0, 2.0, -0.5])
    np.testing.assert_allclose(after, w - 0.01 * 2 * (row @ w - 1) * row, rtol=1e-5)


MIXED = {
    "float16": ("float16",),
    "bfloat16": ("bfloat16",),
    "one of bfloat16": ("bfloat16", "float32"),
    "one of float16": ("float32", "float16"),
    "two halves": ("bfloat16", "float16"),
}


@pytest.mark.parametrize("dtypes", MIXED.values(), ids=MIXED)
@pytest.mark.parametrize("method", [optax_sam.looksam, optax_sam.look_layersam])
def test_it_does_not_either_where_the_gradients_are_rounded(method, dtypes):
    """Numbers that are no powers of two: each gradient is along x up to the last place of its dtype."""
    x, w = [1.1, 2.3, -0.7, 0.9], [0.3, 0.4, 0.2, -0.5]
    parts = [slice(0, 2), slice(2, 4)] if len(dtypes) == 2 else [slice(0, 4)]
    params = [jnp.asarray(w[part], dtype) for part, dtype in zip(parts, dtypes, strict=True)]

    def losses(params, rows):
        product = sum(rows[:, part] @ p.astype(jnp.float32) for part, p in zip(parts, params, strict=True))
        return jnp.square(product - 1.0)

    tx = method(0.1, every_k=2)
    state, rows = tx.init(params), jnp.asarray([x])
    for _ in range(2):
        _, grads, oracle = tx.value_and_grad(losses)(params, rows, state=state)
        descent, state = tx.update(grads, state, params, oracle=oracle)
    jax.tree.map(np.testing.assert_array_equal, descent, grads)  # the second step has looked at nothing


def shifted(params, batch):
    inside = jnp.tanh(batch["x"] @ params["w"] + 1e-2 * params["shift"].astype(jnp.float32))
    return jnp.square(inside - batch["y"])


LOOKING = {
    "looksam": optax_sam.looksam(5e-4),
    "look_layersam": optax_sam.look_layersam(5e-4),
    "aelooksam": optax_sam.aelooksam(4, 5e-4),
    "fgsam_plus": optax_sam.fgsam_plus(shifted, 5e-4),
}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", LOOKING)
def test_a_leaf_of_half_precision_leaves_the_others_what_they_remember(name, dtype):
    """A scalar with a small part of the gradient: its rounding is none of the rest's."""
    method = LOOKING[name]
    x, w = jax.random.normal(jax.random.key(0), (64, 10)), jnp.linspace(-1, 1, 10)
    batch = {"x": x, "y": jnp.sin(3 * x.sum(1))}

    def kept(dtype):
        params = {"w": w, "shift": jnp.zeros([], dtype)}
        state = method.init(params)
        _, grads, oracle = method.value_and_grad(shifted)(params, batch, state=state)
        _, state = method.update(grads, state, params, oracle=oracle, perturb=True)
        return getattr(state.reuse, "of_perturbed", state.reuse)["w"]

    wanted = kept("float32")
    assert optax.tree.norm(wanted) > 0
    np.testing.assert_allclose(kept(dtype), wanted, rtol=1e-2, atol=1e-5)


def network(w, batch):
    return jnp.square(jnp.tanh(batch["x"]) @ w - batch["y"])


def data():
    x = jax.random.normal(jax.random.key(0), (16, 6))
    return {"x": x, "y": jnp.sin(x.sum(1))}


NOISE = 1e-7 * jnp.arange(16.0)  # what another order of the same sums may make of the losses


def test_esam_chooses_the_first_examples_where_nothing_is_perturbed(monkeypatch):
    exact = StepOracle.losses_at
    monkeypatch.setattr(StepOracle, "losses_at", lambda self, point: exact(self, point) + NOISE)
    batch, w = data(), jnp.linspace(-1, 1, 6)
    method = optax_sam.esam(0.0, example_fraction=0.5)
    first = {name: leaf[:8] for name, leaf in batch.items()}
    expected = w - 0.01 * jax.grad(lambda w: network(w, first).mean())(w)
    for jitted in (True, False):
        found, _ = trained(method, network, w, batch, 1, jitted)
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_ausam_scores_zero_where_nothing_is_perturbed(monkeypatch):
    exact = StepOracle.evaluate

    def noisy(self, point):
        found = exact(self, point)
        return found._replace(losses=found.losses + NOISE[:8])

    monkeypatch.setattr(StepOracle, "evaluate", noisy)
    method = optax_sam.ausam(16, rho=0.0)
    _, state = trained(method, network, jnp.linspace(-1, 1, 6), data(), 3, indices=jnp.arange(16))
    assert state[0].start.times_scored.sum() > 0
    np.testing.assert_array_equal(state[0].start.score_sum, 0)
