"""Weak types, half precision and numbers beyond 32 bits: what a step makes of the dtypes that it is given."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_sam

FACTOR = {"a": 1.0}


def line(w, b):
    return FACTOR["a"] * (b @ w - 1) ** 2


@pytest.mark.parametrize("is_weak", [True, False])
def test_weakly_typed_parameters_have_one_trace_as_strong_ones(is_weak):
    """What the loss reads is that of the first pass."""
    w = jnp.full((2,), 0.1) if is_weak else jnp.full((2,), 0.1, jnp.float32)
    assert w.weak_type == is_weak
    sam, batch = optax_sam.sam(0.1), jnp.asarray([[1.0, 2.0], [3.0, 1.0]])
    FACTOR["a"] = 1.0
    _, grads, oracle = sam.value_and_grad(line)(w, batch, state=sam.init(w))
    FACTOR["a"] = 100.0
    descent, _ = sam.update(grads, sam.init(w), w, oracle=oracle)
    FACTOR["a"] = 1.0
    unit = grads / jnp.linalg.norm(grads)
    wanted = jax.grad(lambda w: line(w, batch).mean())(jnp.full((2,), 0.1, jnp.float32) + 0.1 * unit)
    np.testing.assert_allclose(descent, wanted, rtol=1e-5)


def test_weakly_typed_parameters_beside_a_short_batch_are_float32():
    w, sam = jnp.full((2,), 0.1), optax_sam.sam(1e-4)
    batch = jnp.asarray([[1.0, 2.0], [3.0, 1.0]], jnp.bfloat16)
    tx = optax.chain(sam, optax.sgd(0.1))
    with jax.numpy_dtype_promotion("standard"):
        _, state, _ = jax.jit(optax_sam.step(tx, line))(w, tx.init(w), batch)
    info = optax_sam.info(state)
    np.testing.assert_allclose(info["sharpness"], 1e-4 * info["grad_norm"], rtol=1e-2)


def test_finite_speaks_of_the_gradient_as_it_is_given():
    """Infinite in float16, though not in float32, where it was made."""
    w, sam = jnp.ones(2, jnp.float16), optax_sam.sam(0.1)
    steep = lambda w: jnp.asarray([1.0, 1e5], jnp.float32)
    descent, state = sam.update(jnp.ones(2, jnp.float16), sam.init(w), w, grad_fn=steep)
    assert descent.dtype == jnp.float16 and jnp.isinf(descent[1]) and not optax_sam.finite(state)


@pytest.mark.parametrize(
    "make",
    [lambda: optax_sam.sam_sps(0.1, max_step=np.inf), lambda: optax_sam.bsam(2, 1e6, num_microbatches=1)],
    ids=["sam_sps", "bsam"],
)
def test_finite_speaks_of_updates_as_they_are_given(make):
    method, w = make(), jnp.ones(2, jnp.float16)
    flat = lambda w, x: x * (1e-5 * (w[0] - w[1]).astype(jnp.float32) + 5)
    _, grads, oracle = method.value_and_grad(flat)(w, jnp.ones(2), state=method.init(w))
    found, state = method.update(grads, method.init(w), w, oracle=oracle)
    assert not jnp.isfinite(found).all() and not optax_sam.finite(state)


@pytest.mark.parametrize("scale", [1024.0, None])
def test_an_oracle_by_hand_has_the_dtypes_of_its_own_gradient(scale):
    w, sam = jnp.asarray([1.0, 2.0], jnp.float16), optax_sam.sam(0.25)
    small = lambda w, x: x * (1e-9 if scale else 1.0) * jnp.sum(w.astype(jnp.float32) ** 2)
    batch, state = jnp.ones(2), sam.init(w)
    _, grads, oracle = sam.value_and_grad(small)(w, batch, state=state, loss_scale=scale)
    wanted, state_of_two = sam.update(grads, state, w, oracle=oracle)
    by_hand = optax_sam.Oracle(small, batch, loss_scale=scale)
    for first in (w, w.astype(jnp.float32), w.astype(jnp.bfloat16)):
        found, own = sam.update(first, state, w, oracle=by_hand)
        assert found.dtype == wanted.dtype
        np.testing.assert_array_equal(found, wanted)
        np.testing.assert_allclose(optax_sam.info(own)["perturbation_norm"], 0.25, rtol=1e-3)
    assert optax_sam.info(state_of_two) == optax_sam.info(own)


def test_a_number_of_an_example_beyond_32_bits_is_none():
    ausam, w = optax_sam.ausam(4), jnp.ones(2)
    losses, batch = lambda w, x: (x @ w) ** 2, jnp.eye(2)

    def scored(indices):
        state = ausam.init(w)
        _, grads, oracle = ausam.value_and_grad(losses)(
            w, batch, state=state, indices=indices, whole_batch=True
        )
        return ausam.update(grads, state, w, oracle=oracle)[1].start.times_scored

    for number in (2**32, -(2**32), 2**40 + 1):
        np.testing.assert_array_equal(scored(np.array([number, 3])), scored(np.array([-1, 3])))


@pytest.mark.parametrize("number", [np.uint8(2), np.array(2, np.uint32), jnp.uint8(2)], ids=str)
def test_an_unsigned_number_is_refused(number):
    """`1 - 2` would be 255."""
    with pytest.raises(TypeError, match="alpha has dtype uint.*pass a float"):
        optax_sam.gradient_norm_penalty(0.1, number)


@pytest.mark.parametrize(("dtype", "classes"), [(jnp.uint8, 256), (jnp.int8, 128), (jnp.uint16, 3)])
def test_labels_of_few_bits_number_all_their_classes(dtype, classes):
    def stepped(dtype):
        method = optax_sam.focal_sam(np.arange(1, classes + 1), lambda b: b["y"], weight=1.0, gamma=1.0)
        batch = {"x": jnp.eye(2), "y": jnp.asarray([0, classes - 1], dtype)}
        w, losses = jnp.ones(2), lambda w, b: (b["x"] @ w) ** 2
        _, grads, oracle = method.value_and_grad(losses)(w, batch, state=method.init(w))
        return method.update(grads, method.init(w), w, oracle=oracle)[0]

    found = stepped(dtype)
    assert jnp.isfinite(found).all()
    np.testing.assert_allclose(found, stepped(jnp.int32), rtol=1e-6)


def test_an_emphasis_of_integers_is_one_of_floats():
    def stepped(dtype):
        emphasis = lambda b: jnp.asarray([1, 2], dtype)
        method = optax_sam.sharpness_aware(
            optax_sam.ascents.to_radius(0.1),
            direction=optax_sam.directions.emphasized(emphasis),
            selection=optax_sam.selections.emphasized(emphasis),
            combination=optax_sam.combinations.plus_emphasized_rise(emphasis),
        )
        w, losses = jnp.ones(2), lambda w, x: (x @ w) ** 2
        _, grads, oracle = method.value_and_grad(losses)(w, jnp.eye(2), state=method.init(w))
        return method.update(grads, method.init(w), w, oracle=oracle)[0]

    np.testing.assert_allclose(stepped(jnp.int32), stepped(jnp.float32), rtol=1e-6)


def test_losses_of_two_functions_are_no_sharpness():
    """A surrogate that stands 10 above the loss rises by no 10."""
    above = lambda w, x: 10 + (x @ w) ** 2
    method = optax_sam.fgsam_plus(above, every_k=1)
    w, losses = jnp.ones(2), lambda w, x: (x @ w) ** 2
    _, grads, oracle = method.value_and_grad(losses)(w, jnp.eye(2), state=method.init(w))
    info = optax_sam.info(method.update(grads, method.init(w), w, oracle=oracle)[1])
    assert np.isnan(info["sharpness"]) and np.isnan(info["perturbed_loss"])


def test_a_gate_that_sees_the_gradient_is_told_what_a_mask_shows_it():
    mask = {"a": True, "b": False}
    aesam = optax_sam.aesam(10)
    tx = optax.chain(optax.masked(aesam, mask), optax.sgd(0.1))
    params = {"a": jnp.ones(2), "b": jnp.ones(2)}
    losses = lambda p, x: (x @ p["a"]) ** 2 + 100 * jnp.sin(x @ p["b"])
    state = tx.init(params)
    for number in range(6):
        batch = jax.random.normal(jax.random.key(number), (4, 2))
        _, grads, oracle = aesam.value_and_grad(losses)(params, batch, state=state)
        told = aesam.due(state, {"a": grads["a"], "b": optax.MaskedNode()})
        updates, state = tx.update(grads, state, params, oracle=oracle)
        params = optax.apply_updates(params, updates)
        assert bool(told) == bool(optax_sam.info(state)["perturbed"])


def test_slices_of_draws_decide_as_draws_do():
    rst = optax_sam.rst(0.1, 0.5, seed=3)
    draws = optax_sam.over_draws(rst, 2, optax_sam.tilted(0.0))
    decided = []
    for method in (rst, draws, optax_sam.per_microbatch(draws, 1)):
        w, tx = jnp.ones(2), optax.chain(method, optax.sgd(0.1))
        step, state, found = jax.jit(optax_sam.step(tx, lambda w, x: (x @ w) ** 2)), tx.init(jnp.ones(2)), []
        for _ in range(8):
            w, state, _ = step(w, state, jnp.eye(2))
            found.append(bool(optax_sam.info(state)["perturbed"]))
        decided.append(found)
    assert decided[0] == decided[1] == decided[2] and len(set(decided[0])) == 2


def test_a_decay_that_is_injected_in_bfloat16_is_refused():
    """Optax rounds injected numbers as the parameters: 0.999 would be 1, and the second moment stay 0."""
    w, static = jnp.ones(2, jnp.bfloat16), optax_sam.static_arguments(optax_sam.adasam)
    tx = optax.inject_hyperparams(optax_sam.adasam, static_args=static)(0.1)
    losses = lambda w, x: x * jnp.sum((w.astype(jnp.float32) - jnp.asarray([1.0, -2.0])) ** 2)
    oracle = optax_sam.Oracle(losses, jnp.ones(2))
    with pytest.raises(TypeError, match="b1 has dtype bfloat16.*hyperparam_dtype=jnp.float32"):
        tx.update(w, tx.init(w), w, oracle=oracle)
    inject = optax.inject_hyperparams(optax_sam.adasam, static, hyperparam_dtype=jnp.float32)
    wide, whole = inject(0.1), optax_sam.adasam(0.1)
    found, wanted = (t.update(w, t.init(w), w, oracle=oracle)[0] for t in (wide, whole))
    np.testing.assert_allclose(np.float32(found), np.float32(wanted), rtol=1e-2)
