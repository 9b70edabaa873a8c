"""Flat-LoRA and Bi-LoRA against literal float64 NumPy code, and the memory of the noise."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_sam
from optax_sam import lora

INPUTS, OUTPUTS, RANK, EXAMPLES = 6, 4, 2, 8


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def problem():
    """Inputs, targets, a frozen kernel, and two adapters, both with a product, in float64."""
    x, y = numbers(EXAMPLES, INPUTS), numbers(EXAMPLES, OUTPUTS, seed=1)
    kernel = numbers(INPUTS, OUTPUTS, seed=2)
    adapters = [
        (0.5 * numbers(INPUTS, RANK, seed=seed), 0.5 * numbers(RANK, OUTPUTS, seed=seed + 1))
        for seed in (3, 5)
    ]
    return x, y, kernel, adapters


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def test_noise_on_the_merged_matrix_follows_numpy():
    x, y, kernel, [(a, b), _] = problem()
    key, scale = jax.random.key(7), 0.3

    def loss(adapter):
        return 0.5 * jnp.sum(
            (lora.noisy_product(jnp.asarray(x), jnp.asarray(kernel), adapter, key, scale) - y) ** 2
        )

    found, grads = jax.jit(jax.value_and_grad(loss))(lora.Adapter(jnp.asarray(a), jnp.asarray(b)))

    whole = kernel + a @ b
    z = np.asarray(jax.random.normal(key, kernel.shape, jnp.float64))
    noise = np.zeros_like(whole)
    for j in range(OUTPUTS):
        noise[:, j] = scale * np.sqrt(np.sum(whole[:, j] ** 2) / INPUTS) * z[:, j]
    rest = x @ (whole + noise) - y
    np.testing.assert_allclose(found, 0.5 * np.sum(rest**2), rtol=1e-12)
    np.testing.assert_allclose(grads.lora_a, x.T @ rest @ b.T, rtol=1e-10)
    np.testing.assert_allclose(grads.lora_b, a.T @ x.T @ rest, rtol=1e-10)


@pytest.mark.slow
def test_the_gradient_by_the_inputs_sees_the_same_noise_as_the_forward_pass():
    x, _, kernel, [(a, b), _] = problem()
    adapter, key = lora.Adapter(jnp.asarray(a), jnp.asarray(b)), jax.random.key(7)
    product = lambda x: lora.noisy_product(x, jnp.asarray(kernel), adapter, key, 0.3)
    noisy = np.asarray(product(jnp.eye(INPUTS)))  # the matrix itself
    assert np.abs(noisy - kernel - a @ b).max() > 0.05
    grads = jax.jit(jax.grad(lambda x: jnp.sum(product(x))))(jnp.asarray(x))
    np.testing.assert_allclose(grads, np.ones((EXAMPLES, OUTPUTS)) @ noisy.T, rtol=1e-10)


def test_without_noise_it_is_lora():
    x, _, kernel, [first, second] = problem()
    one, other = (lora.Adapter(*map(jnp.asarray, pair)) for pair in (first, second))
    wanted = x @ (kernel + first[0] @ first[1])
    np.testing.assert_allclose(lora.noisy_product(x, kernel, one, jax.random.key(0), 0.0), wanted, rtol=1e-12)
    np.testing.assert_allclose(lora.product(x, kernel, one), wanted, rtol=1e-12)
    both = kernel + first[0] @ first[1] + second[0] @ second[1]
    np.testing.assert_allclose(lora.product(x, kernel, one, other), x @ both, rtol=1e-12)
    np.testing.assert_allclose(lora.merged(kernel, one, other), both, rtol=1e-12)


@pytest.mark.parametrize("dtype", [jnp.int8, jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("of_x", [jnp.bfloat16, jnp.float32])
def test_noise_and_gradients_are_right_in_mixed_dtypes(dtype, of_x):
    x, _, kernel, [(a, b), _] = problem()
    kernel, x = jnp.asarray(10 * kernel).astype(dtype), jnp.asarray(x).astype(of_x)
    adapter, key = lora.Adapter(jnp.asarray(a, of_x), jnp.asarray(b, of_x)), jax.random.key(7)

    def loss(x, adapter):
        return jnp.sum(lora.noisy_product(x, kernel, adapter, key, 0.3).astype(jnp.float32))

    with jax.numpy_dtype_promotion("standard"):
        found, (by_x, grads) = jax.value_and_grad(loss, (0, 1))(x, adapter)
    assert by_x.dtype == of_x and grads.lora_a.dtype == grads.lora_b.dtype == of_x
    wide = lambda z: np.asarray(z, np.float64)
    whole = wide(kernel) + wide(adapter.lora_a) @ wide(adapter.lora_b)
    z = wide(jax.random.normal(key, kernel.shape, jnp.float32))
    noisy = whole + 0.3 * np.linalg.norm(whole, axis=0) / INPUTS**0.5 * z
    few = 0.02 if jnp.bfloat16 in (dtype, of_x) else 1e-5
    assert abs(float(found) - np.sum(wide(x) @ noisy)) < few * np.sum(np.abs(wide(x)) @ np.abs(noisy))
    expected = np.ones((EXAMPLES, OUTPUTS)) @ noisy.T
    np.testing.assert_allclose(wide(by_x), expected, atol=few * np.abs(noisy).sum(axis=1).max())


def test_an_integer_kernel_is_added_to_and_not_merged():
    x, _, kernel, [(a, b), _] = problem()
    kernel, adapter = jnp.asarray(10 * kernel).astype(jnp.int8), lora.Adapter(jnp.asarray(a), jnp.asarray(b))
    whole = np.asarray(kernel) + a @ b
    np.testing.assert_allclose(lora.product(x, kernel, adapter), x @ whole, rtol=1e-10)
    np.testing.assert_allclose(
        lora.noisy_product(x, kernel, adapter, jax.random.key(0), 0.0), x @ whole, rtol=1e-10
    )
    with pytest.raises(ValueError, match=r"kernel has the dtype int8.*dequantize it first"):
        lora.merged(kernel, adapter)


@pytest.mark.parametrize("generator", ["rbg", "unsafe_rbg", "threefry2x32"])
def test_keys_of_every_generator_draw_its_noise(generator):
    x, _, kernel, [(a, b), _] = problem()
    adapter, key = lora.Adapter(jnp.asarray(a), jnp.asarray(b)), jax.random.key(5, impl=generator)
    still = jnp.asarray(kernel)
    found = jax.grad(lambda x: jnp.sum(lora.noisy_product(x, still, adapter, key, 0.3)))(jnp.asarray(x))
    whole = kernel + a @ b
    z = np.asarray(jax.random.normal(key, kernel.shape, jnp.float64))
    noisy = whole + 0.3 * np.linalg.norm(whole, axis=0) / INPUTS**0.5 * z
    np.testing.assert_allclose(found, np.ones((EXAMPLES, OUTPUTS)) @ noisy.T, rtol=1e-10)
    old = jax.random.key_data(jax.random.key(5))
    one, other = (lora.noisy_product(x, still, adapter, k, 0.3) for k in (old, jax.random.key(5)))
    np.testing.assert_array_equal(one, other)


def memory_of(layer, layers=8, width=256):
    """Bytes of temporaries of one gradient by the adapters of a deep network."""
    kernels = [jax.ShapeDtypeStruct((width, width), jnp.float32) for _ in range(layers)]
    adapters = [
        lora.Adapter(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((width, 4), (4, width))))
        for _ in range(layers)
    ]

    def loss(adapters, kernels, x, key):
        keys = jax.random.split(key, layers)
        for kernel, adapter, own in zip(kernels, adapters, keys, strict=True):
            x = jnp.tanh(layer(x, kernel, adapter, own))
        return jnp.sum(x)

    key = jax.eval_shape(lambda: jax.random.key(0))
    x = jax.ShapeDtypeStruct((4, width), jnp.float32)
    lowered = jax.jit(jax.grad(loss)).lower(adapters, kernels, x, key)
    return lowered.compile().memory_analysis().temp_size_in_bytes


@pytest.mark.slow
def test_no_noise_of_the_size_of_the_parameters_is_kept():
    """Of eight layers: kept noise takes eight matrices or more, drawn again it takes one at a time."""
    one = 256 * 256 * 4

    def kept(x, kernel, adapter, key):
        whole = kernel + adapter.lora_a @ adapter.lora_b
        return x @ (whole + 0.1 * jax.random.normal(key, kernel.shape, kernel.dtype))

    plain = memory_of(lambda x, kernel, adapter, key: lora.product(x, kernel, adapter))
    again = memory_of(lambda *given: lora.noisy_product(*given, 0.1))
    assert plain < one
    assert again < 1.1 * one
    assert memory_of(kept) > 8 * one


def bi_lora_in_numpy(steps, rate, climb, rho):
    x, y, kernel, [(a1, b1), (a2, b2)] = problem()
    for _ in range(steps):
        rest = (x @ (kernel + a1 @ b1 + a2 @ b2) - y) / EXAMPLES
        whole = x.T @ rest
        a1, b1, a2, b2 = (
            a1 - rate * whole @ b1.T,
            b1 - rate * a1.T @ whole,
            a2 + climb * whole @ b2.T,
            b2 + climb * a2.T @ whole,
        )
        norm = np.linalg.norm(a2 @ b2)
        if norm > rho:
            a2, b2 = a2 * np.sqrt(rho / norm), b2 * np.sqrt(rho / norm)
    return a1, b1, a2, b2


def trained(steps, rate, climb, rho):
    x, y, kernel, adapters = problem()
    pair = lora.Pair(*({"layer": lora.Adapter(*map(jnp.asarray, ab))} for ab in adapters))
    tx = lora.bi_lora(optax.sgd(rate), optax.sgd(climb), rho)

    def loss(pair):
        rest = lora.product(x, kernel, pair.descending["layer"], pair.climbing["layer"]) - y
        return 0.5 * jnp.sum(rest**2) / EXAMPLES

    @jax.jit
    def step(pair, state):
        updates, state = tx.update(jax.grad(loss)(pair), state, pair)
        return optax.apply_updates(pair, updates), state

    state = tx.init(pair)
    for _ in range(steps):
        pair, state = step(pair, state)
    return pair


@pytest.mark.parametrize("rho", [0.2, pytest.param(50.0, marks=pytest.mark.slow)], ids=["clipped", "free"])
def test_two_adapters_and_one_gradient_follow_numpy(rho):
    pair = trained(6, 0.05, 0.1, rho)
    wanted = bi_lora_in_numpy(6, 0.05, 0.1, rho)
    found = (*pair.descending["layer"], *pair.climbing["layer"])
    for x, y in zip(found, wanted, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-10)
    norm = np.linalg.norm(wanted[2] @ wanted[3])
    np.testing.assert_allclose(lora.joint_norm(pair.climbing), norm, rtol=1e-10)
    assert (norm < 1.001 * rho) and (rho > 1 or norm > 0.999 * rho)


@pytest.mark.slow
def test_without_a_radius_the_second_adapter_is_nothing():
    pair = trained(6, 0.05, 0.1, 0.0)
    assert lora.joint_norm(pair.climbing) == 0
    x, y, kernel, [(a, b), (a2, b2)] = problem()
    for number in range(6):
        second = a2 @ b2 if number == 0 else 0  # as given, until the first clip
        whole = x.T @ (x @ (kernel + a @ b + second) - y) / EXAMPLES
        a, b = a - 0.05 * whole @ b.T, b - 0.05 * a.T @ whole
    np.testing.assert_allclose(pair.descending["layer"].lora_b, b, rtol=1e-10)


def test_the_joint_norm_is_over_all_matrices():
    _, _, _, [(a, b), (c, d)] = problem()
    both = {
        "one": lora.Adapter(jnp.asarray(a), jnp.asarray(b)),
        "two": lora.Adapter(jnp.asarray(c), jnp.asarray(d)),
    }
    wanted = np.sqrt(np.sum((a @ b) ** 2) + np.sum((c @ d) ** 2))
    np.testing.assert_allclose(lora.joint_norm(both), wanted, rtol=1e-12)


def test_adapters_of_layers_may_be_stacked():
    """As `jax.lax.scan` takes them; `bi_lora` clips them by all layers together."""
    keys = jax.random.split(jax.random.key(0), 3)
    stacked = jax.vmap(lambda key: lora.adapter(key, 5, 4, 2))(keys)
    stacked = stacked._replace(lora_b=jax.random.normal(keys[0], (3, 2, 4), jnp.float32))
    wanted = np.linalg.norm(np.asarray(stacked.lora_a, np.float64) @ np.asarray(stacked.lora_b, np.float64))
    np.testing.assert_allclose(lora.joint_norm(stacked), wanted, rtol=1e-6)
    pair, tx = (
        lora.Pair({"w": stacked}, {"w": stacked}),
        lora.bi_lora(optax.sgd(0.1), optax.sgd(0.1), rho=0.05),
    )
    updates, _ = tx.update(jax.tree.map(jnp.ones_like, pair), tx.init(pair), pair)
    climbing = optax.apply_updates(pair, updates).climbing
    np.testing.assert_allclose(lora.joint_norm(climbing), 0.05, rtol=1e-5)


@pytest.mark.parametrize("rank", [2, 8])
def test_the_joint_norm_of_columns_that_cancel_bounds_the_clip(rank):
    """In single precision: the products are 1e-4 of their terms."""
    a, b = np.ones((1, rank)) * numbers(64, 1), np.ones((rank, 1)) * numbers(1, 64, seed=1)
    a, b = np.float32(a + 1e-4 * numbers(64, rank, seed=2)), np.float32(b)
    b[: rank // 2] *= -1
    wanted = np.linalg.norm(np.float64(a) @ np.float64(b))
    terms = np.sum(np.linalg.norm(a, axis=0) * np.linalg.norm(b, axis=1))
    adapter = lora.Adapter(jnp.asarray(a), jnp.asarray(b))
    found = float(lora.joint_norm(adapter))
    if rank == 2:
        np.testing.assert_allclose(found, wanted, rtol=5e-3)
    assert 0.99 * wanted < found < wanted + 1e-3 * terms
    tx, rho = lora.bi_lora(optax.sgd(0.0), optax.sgd(0.0), wanted / 2), 1.01 * wanted / 2
    pair = lora.Pair(adapter, adapter)
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, pair), tx.init(pair), pair)
    short = jax.tree.map(np.float64, optax.apply_updates(pair, updates).climbing)
    assert np.linalg.norm(short.lora_a @ short.lora_b) < rho


def test_an_input_of_nan_leaves_the_noise_of_the_others_alone():
    x, _, kernel, [adapter, _] = problem()
    key, adapter = jax.random.key(7), lora.Adapter(*map(jnp.asarray, adapter))
    noisy = jax.jit(lambda x: lora.noisy_product(x, jnp.asarray(kernel), adapter, key, 0.3))
    found = noisy(jnp.asarray(x).at[1].set(jnp.nan))
    assert np.all(np.isnan(found[1]))
    np.testing.assert_array_equal(np.delete(found, 1, 0), np.delete(noisy(jnp.asarray(x)), 1, 0))


def test_a_new_adapter_is_nothing_and_is_moved_by_its_second_matrix():
    new = lora.adapter(jax.random.key(0), INPUTS, OUTPUTS, RANK, jnp.float64)
    assert new.lora_a.shape == (INPUTS, RANK) and not np.any(lora.merged(jnp.zeros((INPUTS, OUTPUTS)), new))


def test_what_is_refused():
    new = lora.adapter(jax.random.key(0), INPUTS, OUTPUTS, RANK)
    with pytest.raises(ValueError, match=r"kernel has the shape \(4, 6\)"):
        lora.product(jnp.ones((1, 4)), jnp.ones((OUTPUTS, INPUTS)), new)
    with pytest.raises(ValueError, match="rank=0"):
        lora.adapter(jax.random.key(0), 3, 3, 0)
    with pytest.raises(ValueError, match="noise_scale=-1"):
        lora.noisy_product(jnp.ones((1, INPUTS)), jnp.ones((INPUTS, OUTPUTS)), new, jax.random.key(0), -1)
    with pytest.raises(ValueError, match="rho=-1"):
        lora.bi_lora(optax.sgd(0.1), optax.sgd(0.1), -1)
    tx = lora.bi_lora(optax.sgd(0.1), optax.sgd(0.1))
    with pytest.raises(TypeError, match=r"params is a dict: pass optax_sam.lora.Pair"):
        tx.init({"layer": new})
    with pytest.raises(TypeError, match=r"params.climbing has a leaf of type"):
        tx.init(lora.Pair(new, jnp.ones(3)))
    pair = lora.Pair(new, new)
    with pytest.raises(ValueError, match="params=None"):
        tx.update(pair, tx.init(pair))


@pytest.mark.parametrize("generator", ["rbg", "threefry2x32"])
def test_the_noise_is_the_same_for_each_of_many_inputs(generator):
    """Under `vmap` too, in both passes: the product is linear in its input."""
    x, _, kernel, [adapter, _] = problem()
    key = jax.random.key(7, impl=generator)
    several = jnp.stack([x, 2 * x, x - 1])

    def noisy(x):
        return lora.noisy_product(x, jnp.asarray(kernel), lora.Adapter(*map(jnp.asarray, adapter)), key, 0.5)

    np.testing.assert_allclose(jax.vmap(noisy)(several), noisy(several), rtol=1e-6)
    values, grads = jax.vmap(jax.value_and_grad(lambda x: noisy(x).sum()))(several)
    np.testing.assert_allclose(jnp.sum(several * grads, (1, 2)), values, rtol=1e-6)


def test_both_matrices_are_scaled_by_asam():
    """ASAM leaves out biases, which have names that end in "bias" or are "b"."""
    x, y, kernel, [(a, b), _] = problem()
    layer, eta, rho = lora.Adapter(jnp.asarray(a), jnp.asarray(b)), 0.01, 0.5
    seen = []

    def losses(layer, x):
        jax.debug.callback(seen.append, layer)
        return jnp.sum((lora.product(x, kernel, layer) - y) ** 2, axis=-1)

    method = optax_sam.asam(rho, eta)
    oracle = optax_sam.Oracle(losses, jnp.asarray(x))
    grads = jax.grad(lambda layer: jnp.mean(jnp.sum((lora.product(x, kernel, layer) - y) ** 2, axis=-1)))(
        layer
    )
    method.update(grads, method.init(layer), layer, oracle=oracle)
    jax.effects_barrier()
    sizes = [np.abs(w) + eta for w in (a, b)]
    norm = np.sqrt(sum(np.sum((t * g) ** 2) for t, g in zip(sizes, grads, strict=True)))
    for there, w, t, g in zip(seen[-1], (a, b), sizes, grads, strict=True):
        np.testing.assert_allclose(there - w, rho * t**2 * g / norm, rtol=1e-6)
