"""Gradient accumulation: the numbers of the big batch, in the memory of a part of it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_sam
from tests.problem import assert_trees_close, init_params, losses, make_batch, make_indices
from tests.registry import CASES, FAMILY, METHODS, one_step, over

BATCH, INDICES = make_batch(), make_indices()
WEIGHTS = jnp.asarray(np.arange(16) % 5, jnp.float32).at[4:8].set(0)  # the second slice is padding


@pytest.mark.parametrize("name", over(METHODS))
def test_accumulated_is_the_big_batch(name):
    method = METHODS[name].make()

    def two_steps(method):
        @jax.jit
        def step(state, weights):
            loss, grads, oracle = method.value_and_grad(losses)(
                init_params(), BATCH, state=state, indices=INDICES, weights=weights
            )
            descent, state = method.update(grads, state, init_params(), oracle=oracle, perturb=True)
            return (loss, grads, descent), state

        first, state = step(method.init(init_params()), jnp.ones(16))
        second, state = step(state, WEIGHTS)
        return first, second, state

    got, wanted = two_steps(optax_sam.accumulated(method, 4)), two_steps(method)
    assert_trees_close(got, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", over(["sam", "vsam", "tsam", "ausam", "esam"], ["sam", "ausam"]))
@pytest.mark.parametrize("slices", [2, 8])
@pytest.mark.parametrize("last", [1, -5], ids=["", "they sum to 0"])
def test_weights_of_both_signs_that_cancel_in_a_slice_count(name, slices, last):
    """Advantages, or signs of pairs: a slice's weights may sum to 0, and its losses count all the same."""
    weights = jnp.asarray([1, -1, 1, -1, 2, 1, -3, 0, 1, 1, 0, -2, 1, 1, 3, last], jnp.float32)
    method, found = CASES[name].make(), []
    for tx in (optax_sam.accumulated(method, slices), method):
        step = jax.jit(optax_sam.step(optax.chain(tx, optax.sgd(1.0)), losses))
        state = optax.chain(tx, optax.sgd(1.0)).init(init_params())
        params, _, loss = step(init_params(), state, BATCH, indices=INDICES, weights=weights)
        found.append((params, loss))
    assert not np.allclose(found[0][0]["layer_0"]["kernel"], init_params()["layer_0"]["kernel"])
    assert_trees_close(*found, rtol=1e-4, atol=1e-5)


def test_scores_by_gradient_norm_are_accumulated_too():
    ausam = optax_sam.ausam(48, score="gradient_norm")
    state = one_step(optax_sam.accumulated(ausam, 4), init_params(), BATCH)[1]
    wanted = one_step(ausam, init_params(), BATCH)[1]
    assert_trees_close(state.start, wanted.start, rtol=1e-5, atol=1e-6)


def test_mean_losses_and_aux_of_slices():
    sam = optax_sam.accumulated(optax_sam.sam(), 4)
    mean = lambda p, b: (jnp.mean(losses(p, b)), {"label": b["label"]})
    (loss, aux), grads, _ = sam.value_and_grad(mean, has_aux=True)(
        init_params(), BATCH, state=sam.init(init_params())
    )
    np.testing.assert_allclose(loss, jnp.mean(losses(init_params(), BATCH)), rtol=1e-6)
    wanted = jax.grad(lambda p: jnp.mean(losses(p, BATCH)))(init_params())
    assert_trees_close(grads, wanted, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(aux["label"], BATCH["label"].reshape(4, 4))


@pytest.mark.parametrize("slices", [1, 4])
@pytest.mark.parametrize(
    "sliced",
    [
        optax_sam.accumulated,
        optax_sam.per_microbatch,
        lambda method, n: optax_sam.accumulated(optax_sam.accumulated(method, n), 1),
        lambda method, n: optax_sam.accumulated(optax_sam.accumulated(method, 1), n),
    ],
    ids=["accumulated", "per_microbatch", "one slice of slices", "slices of one slice"],
)
def test_one_slice_has_the_axis_of_slices_as_several_have(sliced, slices):
    method = sliced(optax_sam.sam(), slices)
    with_labels = lambda p, b: (losses(p, b), b["label"])
    ask = method.value_and_grad(with_labels, has_aux=True)
    (_, labels), _, _ = ask(init_params(), BATCH, state=method.init(init_params()))
    np.testing.assert_array_equal(labels, BATCH["label"].reshape(slices, -1))


@pytest.mark.parametrize("order", ["slices of parts", "parts of slices"])
def test_accumulation_and_slices_compose(order):
    m_sam, sam = optax_sam.per_microbatch(optax_sam.sam(0.2), 2), optax_sam.sam(0.2)
    if order == "slices of parts":
        nested = optax_sam.per_microbatch(optax_sam.accumulated(sam, 4), 2)
    else:
        nested = optax_sam.accumulated(m_sam, 4)
    wanted, _, _ = one_step(m_sam, init_params(), BATCH)
    got, _, _ = one_step(nested, init_params(), BATCH)
    assert_trees_close(got, wanted, rtol=1e-5, atol=1e-6)


def test_slices_of_slices_are_slices():
    sam = optax_sam.sam(0.2)
    nested = optax_sam.per_microbatch(optax_sam.per_microbatch(sam, 2), 4)
    wanted, _, _ = one_step(optax_sam.per_microbatch(sam, 8), init_params(), BATCH)
    got, _, _ = one_step(nested, init_params(), BATCH)
    assert_trees_close(got, wanted, rtol=1e-5, atol=1e-6)


def test_a_first_gradient_taken_anew_has_as_many_slices():
    """FGSAM+ told what to do begins again, on three slices of five examples."""
    surrogate = FAMILY["fgsam_plus"].required["surrogate_losses"]
    method = optax_sam.fgsam_plus(surrogate)
    batch = jax.tree.map(lambda x: x[:15], BATCH)
    forms = (method, optax_sam.accumulated(method, 3))
    wanted, got = (
        one_step(form, init_params(), batch, perturb=True, indices=INDICES[:15])[0] for form in forms
    )
    assert_trees_close(got, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("wrap", [optax_sam.accumulated, optax_sam.per_microbatch])
def test_memory_is_that_of_one_micro_batch(wrap):
    """Temporary memory of a compiled step whose activations outweigh its parameters."""

    def wide(params, batch):
        hidden = batch["image"] @ params["w"]
        for _ in range(8):
            hidden = jnp.sin(hidden)
        return jnp.sum(hidden, axis=-1)

    def temporary_bytes(method):
        params = {"w": jnp.ones([4, 256])}
        batch = {"image": jnp.ones([1024, 4])}

        def step(params, state, batch):
            _, grads, oracle = method.value_and_grad(wide)(params, batch, state=state)
            return method.update(grads, state, params, oracle=oracle)

        compiled = jax.jit(step).lower(params, method.init(params), batch).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    whole = temporary_bytes(optax_sam.sam())
    assert temporary_bytes(wrap(optax_sam.sam(), 16)) < whole / 8


def test_each_pass_slice_and_draw_has_its_own_key():
    """Every call of the loss function is told another key; without `key`, all share a closed-over one."""
    seen = []

    params = jnp.arange(5.0)

    def noisy(params, batch, key):
        jax.debug.callback(lambda data: seen.append(tuple(data.tolist())), jax.random.key_data(key))
        return jnp.square(batch["image"] @ params)

    def keys_of(method):
        seen.clear()
        state = method.init(params)

        @jax.jit
        def step(state, key):
            _, grads, oracle = method.value_and_grad(noisy)(
                params, BATCH, state=state, indices=INDICES, key=key
            )
            return method.update(grads, state, params, oracle=oracle)

        jax.block_until_ready(step(state, jax.random.key(5)))
        jax.effects_barrier()
        return seen

    sam = optax_sam.sam()
    for method, calls in (
        (sam, 2),
        (optax_sam.ausam(48), 2),
        (optax_sam.tsam(num_samples=3), 6),
        (optax_sam.accumulated(sam, 4), 8),
        (optax_sam.per_microbatch(sam, 4), 8),
        (optax_sam.per_microbatch(optax_sam.accumulated(sam, 2), 4), 16),
        (optax_sam.per_microbatch(optax_sam.tsam(num_samples=2), 2), 8),
    ):
        found = keys_of(method)
        assert len(found) == calls and len(set(found)) == calls, method


@pytest.mark.parametrize("name", over(["sam", "ksam", "esam"], ["sam"]))
def test_one_slice_or_draw_has_the_keys_of_the_method(name):
    """With a loss that draws by `key=`, too, it is the method itself."""

    def noisy(params, batch, key):
        kept = jax.random.bernoulli(key, 0.5, batch["image"].shape)
        return jnp.square(jnp.where(kept, batch["image"], 0.0) @ params)

    def stepped(method):
        tx, params = optax.chain(method, optax.sgd(0.1)), jnp.arange(5.0)
        step = jax.jit(optax_sam.step(tx, noisy))
        return step(params, tx.init(params), BATCH, indices=INDICES, key=jax.random.key(3))[::2]

    method = CASES[name].make()
    wanted = stepped(method)
    for one in (
        optax_sam.per_microbatch(method, 1),
        optax_sam.per_microbatch(method, 1, loop="vmap"),
        optax_sam.over_draws(method, 1, optax_sam.tilted(1.0)),
        optax_sam.accumulated(method, 1),
    ):
        assert_trees_close(stepped(one), wanted, rtol=1e-5)
