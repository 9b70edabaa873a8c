"""SAMPa, SAF and MESA against literal NumPy, and their limits."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_sam
from experiments.step_functions.saf import mesa_loss, saf_loss
from experiments.step_functions.sampa import sampa_step
from tests.methods.trajectories import FAST, PROBLEM, STEPS, flatten_steps, in_float64, stack
from tests.references import network
from tests.references.trajectory import MomentumSGD
from tests.references.trees import add, flatten, scale, subtract, tree_map, with_norm, zeros_like

BASE = {"momentum": 0.9, "weight_decay": 1e-3}
EPOCH = PROBLEM.num_examples // 12  # steps

float64 = pytest.fixture(in_float64, scope="module", autouse=True)


@pytest.fixture(scope="module", autouse=True)
def strict_promotion():
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


def logits_of(params, batch):
    first, second = params["layer_0"], params["layer_1"]
    hidden = jnp.tanh(batch["image"] @ first["kernel"] + first["bias"][None])
    return hidden @ second["kernel"] + second["bias"][None]


def losses(params, batch):
    return optax.softmax_cross_entropy_with_integer_labels(logits_of(params, batch), batch["label"])


def agree(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-11)


# SAMPa


def numpy_sampa(lr, rho=0.1, mix=0.2, momentum=0.9, weight_decay=1e-3):
    """Parameters and look-ahead losses of every step."""

    def velocity(grads, buffer, x):
        return tree_map(lambda g, v, x: g + momentum * v + weight_decay * x, grads, buffer, x)

    x = PROBLEM.params
    gy, buffer, before = zeros_like(x), zeros_like(x), PROBLEM.batches[0]
    params, found = [], []
    for t, batch in enumerate(PROBLEM.batches):
        perturbed = add(x, with_norm(gy, rho))
        ahead = subtract(x, scale(lr(t), velocity(gy, buffer, x)))
        g1 = network.gradient(perturbed, before)
        gy = network.gradient(ahead, batch)
        descent = tree_map(lambda g, a: (1 - mix) * g + mix * a, g1, gy)
        buffer = velocity(descent, buffer, x)
        x, before = subtract(x, scale(lr(t), buffer)), batch
        params.append(flatten(x))
        found.append(network.losses(ahead, batch).mean())
    return np.stack(params), np.stack(found)


def run_sampa(learning_rate, **options):
    """The same of `sampa_step`, and all states."""
    init, step = sampa_step(losses, learning_rate, **(BASE | options))

    @partial(jax.jit, compiler_options=FAST)
    def run(params, batches):
        def body(carry, batch):
            params, state, loss = step(*carry, batch)
            return (params, state), (params, loss, state)

        first = jax.tree.map(lambda x: x[0], batches)
        return jax.lax.scan(body, (params, init(params, first)), batches)[1]

    params, found, states = run(PROBLEM.params, stack(PROBLEM.batches))
    return flatten_steps(params), np.asarray(found), states


def falling(t):
    return 0.1 - 0.002 * t


def test_sampa_is_its_equations():
    expected, expected_losses = numpy_sampa(falling)
    params, found, states = run_sampa(lambda step: 0.1 - 0.002 * step.astype(float))
    assert len(params) == STEPS >= 20
    agree(params, expected)
    agree(found, expected_losses)
    np.testing.assert_array_equal(states.step, np.arange(1, STEPS + 1))
    for name, rows in stack(PROBLEM.batches).items():
        np.testing.assert_array_equal(states.batch[name], rows)


def test_sampa_on_two_devices_is_sampa():
    agree(run_sampa(0.05, devices=jax.devices()[:2])[0], numpy_sampa(lambda t: 0.05)[0])


def test_sampa_with_mix_1_is_sgd_at_the_look_ahead_point_whatever_the_radius():
    params = run_sampa(0.05, mix=1.0, rho=0.3)[0]
    agree(params, run_sampa(0.05, mix=1.0, rho=0.0)[0])
    agree(params, numpy_sampa(lambda t: 0.05, mix=1.0, rho=0.0)[0])


def test_sampa_with_rho_0_and_mix_0_is_sgd_on_the_batch_before():
    base, x, expected = MomentumSGD(PROBLEM.params, 0.05, **BASE), PROBLEM.params, []
    for batch in [PROBLEM.batches[0], *PROBLEM.batches[:-1]]:
        x = base.step(x, network.gradient(x, batch))
        expected.append(flatten(x))
    agree(run_sampa(0.05, rho=0.0, mix=0.0)[0], np.stack(expected))


def test_sampa_refuses_what_is_out_of_range():
    for options in ({"rho": -1.0}, {"mix": 1.5}, {"devices": jax.devices()[:3]}):
        with pytest.raises(ValueError, match=next(iter(options))):
            sampa_step(losses, 0.1, **options)


# SAF and MESA

LONG = network.make_problem(1, steps=36)  # nine epochs
SAF = {"weight": 0.7, "temperature": 2.0, "lag": 3, "start_epoch": 3}
MESA = {"weight": 0.7, "temperature": 2.0, "decay": 0.9, "start_epoch": 3}
INDICES = [rows.copy() for rows in LONG.indices]
INDICES[5][2:4] = -1, 1000  # padding: two examples that epoch 1 does not see


def softmax(z):
    z = np.exp(z - z.max(axis=1, keepdims=True))
    return z / z.sum(axis=1, keepdims=True)


def gradient_of_logits(params, batch, delta):
    """Backpropagation of a gradient with respect to the logits, `[batch, classes]`."""
    (image, hidden), _ = network.forward(params, batch["image"])
    below = (delta @ params["layer_1"]["kernel"].T) * (1 - hidden**2)
    return {
        "layer_0": {"bias": below.sum(axis=0), "kernel": image.T @ below},
        "layer_1": {"bias": delta.sum(axis=0), "kernel": hidden.T @ delta},
    }


def numpy_run(old_logits, after_step, weight, temperature):
    """SGD on cross entropy and distance; `old_logits(t, params)` are NaN where there is no term."""
    base, w, params, found = MomentumSGD(LONG.params, 0.1, **BASE), LONG.params, [], []
    for t, batch in enumerate(LONG.batches):
        z = network.forward(w, batch["image"])[1]
        old = old_logits(t, w)
        term = np.isfinite(old).all(axis=1)
        p, q = softmax(np.where(term[:, None], old, z) / temperature), softmax(z / temperature)
        distance = temperature**2 * np.sum(p * np.log(p / q), axis=1)
        found.append(np.mean(network.losses(w, batch) + weight * distance))
        delta = weight * temperature * (q - p) / len(z)
        grads = add(network.gradient(w, batch), gradient_of_logits(w, batch, delta))
        w = base.step(w, grads)
        after_step(t, z, w)
        params.append(flatten(w))
    return np.stack(params), np.stack(found)


def numpy_saf(weight, temperature, lag, start_epoch):
    seen = {}

    def old_logits(t, params):
        epoch, rows = t // EPOCH, []
        for index in INDICES[t]:
            known = epoch > start_epoch and (index, epoch - lag) in seen
            rows.append(seen[index, epoch - lag] if known else np.full(3, np.nan))
        return np.stack(rows)

    def after_step(t, z, params):
        seen.update(
            {(i, t // EPOCH): row for i, row in zip(INDICES[t], z, strict=True) if 0 <= i < LONG.num_examples}
        )

    return *numpy_run(old_logits, after_step, weight, temperature), seen


def numpy_mesa(weight, temperature, decay, start_epoch):
    mean = [LONG.params]

    def old_logits(t, params):
        z = network.forward(mean[-1], LONG.batches[t]["image"])[1]
        return z if t // EPOCH > start_epoch else np.full_like(z, np.nan)

    def after_step(t, z, params):
        mean.append(tree_map(lambda m, w: decay * m + (1 - decay) * w, mean[-1], params))

    return *numpy_run(old_logits, after_step, weight, temperature), flatten(mean[-1])


def run_sgd(loss_fn, memory, after_step=lambda params, memory: memory):
    """The ordinary training step, with `loss_fn(params, batch, epoch, memory) -> losses, memory`."""
    tx = optax.chain(optax.add_decayed_weights(BASE["weight_decay"]), optax.sgd(0.1, BASE["momentum"]))

    def mean_loss(params, batch, epoch, memory):
        values, memory = loss_fn(params, batch, epoch, memory)
        return values.mean(), memory

    @partial(jax.jit, compiler_options=FAST)
    def run(params, memory, rows):
        def body(carry, row):
            params, opt_state, memory = carry
            grad = jax.value_and_grad(mean_loss, has_aux=True)
            (loss, memory), grads = grad(params, row["batch"], row["epoch"], memory)
            updates, opt_state = tx.update(grads, opt_state, params)
            params = optax.apply_updates(params, updates)
            return (params, opt_state, after_step(params, memory)), (params, loss)

        carry, (params, found) = jax.lax.scan(body, (params, tx.init(params), memory), rows)
        return carry[2], params, found

    rows = {"batch": stack(LONG.batches), "epoch": np.arange(len(LONG.batches)) // EPOCH}
    rows["batch"]["index"] = np.stack(INDICES)
    memory, params, found = run(LONG.params, memory, rows)
    return flatten_steps(params), np.asarray(found), memory


def run_saf(**options):
    saf = saf_loss(LONG.num_examples, 3, **options)

    def loss_fn(params, batch, epoch, state):
        further, state = saf.losses(logits_of(params, batch), batch["index"], epoch, state)
        return losses(params, batch) + further, state

    return run_sgd(loss_fn, saf.init())


def run_mesa(**options):
    mesa = mesa_loss(**options)

    def loss_fn(params, batch, epoch, mean):
        further = mesa.losses(logits_of(params, batch), logits_of(mean, batch), epoch)
        return losses(params, batch) + further, mean

    return run_sgd(loss_fn, mesa.init(LONG.params), mesa.update)


def test_saf_is_its_equations_over_nine_epochs():
    params, found, state = run_saf(**SAF)
    expected, expected_losses, seen = numpy_saf(**SAF)
    agree(params, expected)
    agree(found, expected_losses)
    for index, epochs in enumerate(np.asarray(state.epochs)):
        assert sorted(epochs) == [5, 6, 7, 8]
        for slot, epoch in enumerate(epochs):
            agree(softmax(np.asarray(state.logits)[index, slot][None]), np.exp(seen[index, epoch])[None])


def test_saf_has_no_term_for_examples_that_the_epoch_did_not_see():
    saf = saf_loss(LONG.num_examples, 3, lag=1, start_epoch=0)
    z = np.random.default_rng(0).normal(size=(2, 4, 3))
    _, state = saf.losses(z[0], np.array([0, 1, 2, -1]), 0, saf.init())
    further, state = saf.losses(z[1], np.array([0, 1, 3, -1]), 1, state)
    assert (np.asarray(further) > 0).tolist() == [True, True, False, False]
    assert (np.asarray(state.epochs)[:4] >= 0).tolist() == [
        [True, True],
        [True, True],
        [True, False],
        [False, True],
    ]
    assert (np.asarray(state.epochs)[4:] == -1).all()
    # No epoch 2: in epoch 3, the outputs of epoch 0 stand in its place.
    assert not saf.losses(z[1], np.array([0, 1, 2, 3]), 3, state)[0].any()


def memory_of_saf(method, weights=None):
    """After four epochs of two batches, each example in one of them."""
    saf = saf_loss(8, 3, lag=1, start_epoch=0)
    tx = optax.chain(method, optax.sgd(0.1))
    rng = np.random.default_rng(0)
    batches = [
        {"image": rng.normal(size=(4, 5)).astype(np.float32), "index": np.arange(4) + start}
        for start in (0, 4)
    ]

    def losses(params, batch, epoch, memory):
        logits = batch["image"] @ params
        further, new = saf.losses(logits, batch["index"], epoch, memory)
        return jnp.sum(logits**2, axis=1) / 2 + further, new

    params, memory = jnp.asarray(rng.normal(size=(5, 3)), jnp.float32), saf.init()
    opt_state = tx.init(params)
    step = jax.jit(optax_sam.step(tx, losses, has_aux=True))
    for epoch in (0, 1, 2, 2, 3):  # one of them twice
        for batch in batches:
            params, opt_state, (_, new) = step(params, opt_state, batch, epoch, memory, weights=weights)
            memory = saf.merged(new, memory) if new.epochs.ndim == 3 else new
    return params, memory, lambda: saf.losses(jnp.ones((2, 3)), np.arange(2), 4, jax.tree.map(mean, new))


def mean(x):
    return x.mean(0)


@pytest.mark.parametrize("weights", [None, np.float32([1, 1, 1, 1])], ids=["plain", "weights"])
def test_the_memory_of_slices_is_that_of_the_whole_batch(weights):
    wanted, memory, _ = memory_of_saf(optax_sam.sam(0.0), weights)
    found, merged, averaged = memory_of_saf(optax_sam.accumulated(optax_sam.sam(0.0), 2), weights)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    np.testing.assert_allclose(merged.logits, memory.logits, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(merged.epochs, memory.epochs)
    with pytest.raises(ValueError, match=r"state\.epochs is float32\[8, 2\], not int32\[8, 2\].*saf\.merged"):
        averaged()


def test_mesa_is_its_equations_over_nine_epochs():
    params, found, mean = run_mesa(**MESA)
    expected, expected_losses, expected_mean = numpy_mesa(**MESA)
    agree(params, expected)
    agree(found, expected_losses)
    agree(flatten_steps(jax.tree.map(lambda x: x[None], mean))[0], expected_mean)


def test_without_weight_or_before_the_start_saf_and_mesa_are_sgd():
    sgd, found, _ = run_sgd(lambda params, batch, epoch, memory: (losses(params, batch), memory), ())
    for run, options in ((run_saf, SAF), (run_mesa, MESA)):
        assert np.abs(run(**options)[0] - sgd).max() > 1e-3
        for change in ({"weight": 0.0}, {"start_epoch": 8}):
            params, values, _ = run(**(options | change))
            np.testing.assert_array_equal(params, sgd)
            agree(values, found)
