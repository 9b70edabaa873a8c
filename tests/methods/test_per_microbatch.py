"""m-sharpness: a loop over slices; and the gate that perturbs every k-th step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optax_sam
from tests.methods.small import (
    BATCH,
    PARAMS,
    STEPS,
    close,
    flatten,
    losses,
    mean_gradient,
    norm,
    one_step,
    perturbed,
    stepper,
    train,
)


def slices_of(num_slices, weights=None):
    for rows in np.split(np.arange(12), num_slices):
        part = jax.tree.map(lambda x, rows=rows: x[rows], BATCH)
        yield part, jnp.ones(len(rows)) if weights is None else weights[rows]


def hand_written_m_sam(rho, num_slices, weights=None):
    """The mean over slices of SAM's gradient, each slice counting as much as its weights."""
    total, descent = 0.0, 0.0
    for part, w in slices_of(num_slices, weights):
        if w.sum() == 0:
            continue
        grads = mean_gradient(PARAMS, part, w)
        there = perturbed(PARAMS, grads, rho)
        descent = descent + float(w.sum()) * flatten(mean_gradient(there, part, w)).astype(np.float64)
        total += float(w.sum())
    return descent / total


WEIGHTS = np.array([1, 0.5, 2, 0, 0, 0, 0.3, 1, 1, 0, 2, 1], np.float32)


@pytest.mark.parametrize("loop", ["scan", "vmap"])
@pytest.mark.parametrize(("num_slices", "weights"), [(2, None), (4, WEIGHTS)], ids=["equal", "weights"])
def test_per_microbatch_is_a_loop_over_slices(loop, num_slices, weights):
    method = optax_sam.per_microbatch(optax_sam.sam(rho=0.3), num_slices, loop=loop)
    weights = None if weights is None else jnp.asarray(weights)
    descent, state, grads = one_step(method, weights=weights)
    close(flatten(descent), hand_written_m_sam(0.3, num_slices, weights), atol=1e-6)
    close(flatten(grads), flatten(mean_gradient(PARAMS, BATCH, weights)), atol=1e-6)

    parts = [(part, w) for part, w in slices_of(num_slices, weights)]
    shares = np.array([float(w.sum()) for _, w in parts])
    norms = [norm(mean_gradient(PARAMS, part, w)) if w.sum() else 0.0 for part, w in parts]
    np.testing.assert_allclose(
        optax_sam.info(state)["grad_norm"], np.average(norms, weights=shares), rtol=1e-5
    )
    np.testing.assert_allclose(optax_sam.info(state)["gradients"], 2)


@pytest.mark.parametrize("loop", ["scan", "vmap"])
def test_aux_has_a_leading_axis_of_slices(loop):
    method = optax_sam.per_microbatch(optax_sam.sam(rho=0.3), 3, loop=loop)

    def with_aux(params, batch):
        found = losses(params, batch)
        return found, {"losses": found, "position": batch["position"], "sum": jnp.sum(found)}

    first = method.value_and_grad(with_aux, has_aux=True)
    (loss, aux) = jax.jit(lambda p: first(p, BATCH, state=method.init(p))[0])(PARAMS)
    expected = np.asarray(losses(PARAMS, BATCH))
    close(loss, expected.mean())
    close(aux["losses"], expected.reshape(3, 4))
    close(aux["sum"], expected.reshape(3, 4).sum(axis=1))
    np.testing.assert_array_equal(aux["position"], np.arange(12).reshape(3, 4))


@pytest.mark.parametrize("loop", ["scan", "vmap"])
def test_per_microbatch_of_one_slice_is_the_method(loop, sam_run):
    run = train(optax_sam.per_microbatch(optax_sam.sam(rho=0.1), 1, loop=loop))
    close(run.params, sam_run.params)


@pytest.mark.parametrize("loop", ["scan", "vmap"])
def test_gate_decides_once_for_all_slices(loop):
    method = optax_sam.per_microbatch(optax_sam.rst(rho=0.3, probability=0.5, seed=6), 4, loop=loop)
    alone = optax_sam.rst(rho=0.3, probability=0.5, seed=6)
    state, decisions = method.init(PARAMS), []
    step = stepper(method)
    for _ in range(8):
        decisions.append(bool(method.due(state)))
        descent, state, _ = step(PARAMS, state)
        expected = hand_written_m_sam(0.3, 4) if decisions[-1] else flatten(mean_gradient(PARAMS, BATCH))
        close(flatten(descent), expected, atol=1e-6)
        assert float(optax_sam.info(state)["perturbed"]) == decisions[-1]
    np.testing.assert_allclose(optax_sam.info(state)["gradients"], 8 + sum(decisions))
    assert 0 < sum(decisions) < 8

    state, step = alone.init(PARAMS), stepper(alone)
    for decision in decisions:
        assert bool(alone.due(state)) == decision
        _, state, _ = step(PARAMS, state)


@pytest.mark.parametrize("k", [1, 5])
def test_every_perturbs_the_multiples_of_k(k):
    run = train(optax_sam.sharpness_aware(optax_sam.ascents.to_radius(0.1), gate=optax_sam.gates.every(k)))
    np.testing.assert_array_equal(run.info["perturbed"], np.arange(STEPS) % k == 0)
    np.testing.assert_array_equal(run.before.due, np.arange(STEPS) % k == 0)
    np.testing.assert_allclose(run.info["gradients"][-1], STEPS + len(range(0, STEPS, k)))


NOISY = optax_sam.sharpness_aware(
    optax_sam.ascents.to_radius(0.1), start=optax_sam.starts.at_random(), seed=4
)
BAYESIAN = optax_sam.bsam(num_examples=12, num_microbatches=2, seed=4)


def sliced(method, *numbers, **loop):
    """Slices of slices, the outermost number first."""
    for number in reversed(numbers):
        method = optax_sam.per_microbatch(method, number, **loop)
    return method


def drawn(method, num_draws=3):
    return optax_sam.over_draws(method, num_draws, optax_sam.tilted(1.0))


def noises_of(method, state=None):
    """Where each slice takes its first gradient, which at parameters of zero is its noise, [slices, 3]."""
    params, state = jnp.zeros(3), method.init(jnp.zeros(3)) if state is None else state

    def seen(params, batch):
        return batch * jnp.sum(params), params

    grad = jax.jit(
        lambda state: method.value_and_grad(seen, has_aux=True)(params, jnp.ones(24), state=state)[0]
    )
    return np.asarray(grad(state)[1]).reshape(-1, 3)


IN_SLICES = {
    "slices of slices": (sliced(NOISY, 2, 2), 4),
    "all at once": (sliced(NOISY, 2, 2, loop="vmap"), 4),
    "three levels": (sliced(NOISY, 2, 3, 4), 24),
    "single slices between": (sliced(NOISY, 1, 2, 1, 3, 1), 6),
    "bSAM": (BAYESIAN, 2),
    "slices of bSAM": (sliced(BAYESIAN, 4), 8),
    "three levels of bSAM": (sliced(BAYESIAN, 3, 2), 12),
    "draws between": (sliced(drawn(sliced(NOISY, 3)), 2), 6),
    "draws around": (drawn(sliced(NOISY, 2, 2)), 4),
}


@pytest.mark.parametrize(("method", "number"), IN_SLICES.values(), ids=IN_SLICES)
def test_every_slice_of_a_slice_has_random_numbers_of_its_own(method, number):
    found = noises_of(method)
    assert len(found) == len(np.unique(found, axis=0)) == number


@pytest.mark.parametrize(
    ("method", "paths"),
    [
        (sliced(NOISY, 1), [()]),
        (sliced(NOISY, 1, 1), [()]),
        (sliced(NOISY, 3), [(), (1,), (2,)]),
        (sliced(NOISY, 1, 3, 1), [(), (1,), (2,)]),
        (sliced(NOISY, 2, 3), [(1,), (2,), (3,), (1, 1), (1, 2), (1, 3)]),
        (
            sliced(NOISY, 2, 1, 2, 2),
            [(1, 1), (1, 2), (2, 1), (2, 2), *((1, i, j) for i in (1, 2) for j in (1, 2))],
        ),
    ],
)
def test_the_keys_of_slices(method, paths):
    """Those of several slices are folded, but of the first slice of the batch; of slices of slices, all."""
    state = method.init(jnp.zeros(3))

    def of_path(path):
        key = jax.random.wrap_key_data(state.key, impl="threefry2x32")
        for number in path:
            key = jax.random.fold_in(key, number)
        return noises_of(NOISY, state._replace(key=jax.random.key_data(key)))[0]

    np.testing.assert_array_equal(noises_of(method), [of_path(path) for path in paths])


def test_the_key_of_a_state_stays_that_of_the_method_behind_slices_of_slices():
    method = sliced(optax_sam.rst(rho=0.3, probability=0.5, seed=6), 2, 2)
    state, step, decisions = method.init(PARAMS), stepper(method), []
    key = np.asarray(state.key)
    for _ in range(8):
        decisions.append(bool(method.due(state)))
        _, state, _ = step(PARAMS, state)
        np.testing.assert_array_equal(state.key, key)
        assert float(optax_sam.info(state)["perturbed"]) == decisions[-1]
    assert 0 < sum(decisions) < 8
