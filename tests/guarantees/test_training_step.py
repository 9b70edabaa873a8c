"""The training step as its users write it: aux, scalar losses, weights, whole batches, padding."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_sam
from optax_sam.engine.state import add_gradients
from tests.problem import assert_trees_close, init_params, losses, make_batch, make_indices
from tests.registry import FAMILY, METHODS, VARIANTS, one_step, train


def test_aux_and_loss_are_those_of_the_clean_pass():
    params, batch = init_params(), make_batch()
    for name in ("sam", "asam", "rst", "vsam", "pugd"):
        method = METHODS[name].make()
        (loss, aux), _, _ = method.value_and_grad(
            lambda p, b: (losses(p, b), {"point": p["layer_1"]["bias"]}), has_aux=True
        )(params, batch, state=method.init(params))
        np.testing.assert_array_equal(aux["point"], params["layer_1"]["bias"])
        np.testing.assert_allclose(loss, jnp.mean(losses(params, batch)), rtol=1e-6)


def test_names_assigned_between_the_passes_do_not_reach_the_second_one():
    sam, params, seen = optax_sam.sam(), init_params(), []
    stats, key = jnp.zeros(3), jax.random.key(0)

    def helper():
        seen.append((stats, key))
        return stats

    def losses_and_stats(params, batch):
        return losses(params, batch), helper() + 1

    state = sam.init(params)
    (_, stats), grads, oracle = sam.value_and_grad(losses_and_stats, has_aux=True)(
        params, make_batch(), state=state
    )
    key = None
    sam.update(grads, state, params, oracle=oracle)
    np.testing.assert_array_equal(stats, [1, 1, 1])
    ((old, key_then),) = seen  # the loss is called once
    assert key_then is not None and np.all(old == 0)


def test_aux_gets_a_leading_axis_of_slices():
    for loop in ("scan", "vmap"):
        method = optax_sam.per_microbatch(optax_sam.sam(), 4, loop=loop)
        (_, aux), _, _ = method.value_and_grad(lambda p, b: (losses(p, b), b["label"]), has_aux=True)(
            init_params(), make_batch(), state=method.init(init_params())
        )
        np.testing.assert_array_equal(aux, make_batch()["label"].reshape(4, 4))


def test_mean_loss_is_accepted_where_no_example_is_looked_at():
    mean = lambda p, b: jnp.mean(losses(p, b))
    for name in ("sam", "vsam"):
        method = METHODS[name].make()
        got, wanted = train(method, steps=2, loss_fn=mean), train(method, steps=2)
        assert_trees_close(got[0], wanted[0], rtol=1e-5, atol=1e-6)


def test_weights_are_those_of_a_weighted_mean():
    params, batch = init_params(), make_batch()
    weights = jnp.linspace(0.0, 2.0, 16)
    loss, grads, _ = optax_sam.sam().value_and_grad(losses)(
        params, batch, state=optax_sam.sam().init(params), weights=weights
    )
    mean = lambda p: jnp.sum(weights * losses(p, batch)) / jnp.sum(weights)
    np.testing.assert_allclose(loss, mean(params), rtol=1e-6)
    assert_trees_close(grads, jax.grad(mean)(params), rtol=1e-5, atol=1e-6)


def test_a_batch_of_padding_alone_gives_zeros():
    params = init_params()
    for name in ("sam", "ausam"):
        method = METHODS[name].make()
        loss, grads, oracle = method.value_and_grad(losses)(
            params,
            jax.tree.map(lambda x: x * 0, make_batch()),
            state=method.init(params),
            indices=make_indices(),
            weights=jnp.zeros(16),
        )
        descent, state = method.update(grads, method.init(params), params, oracle=oracle)
        assert loss == 0
        assert all(np.all(np.asarray(x) == 0) for x in jax.tree.leaves((descent, state.start)))


def test_whole_batch_uses_and_scores_every_example():
    method, params = METHODS["ausam"].make(), init_params()
    indices = make_indices()
    (_, aux), grads, oracle = method.value_and_grad(lambda p, b: (losses(p, b), b["label"]), has_aux=True)(
        params, make_batch(), state=method.init(params), indices=indices, whole_batch=True
    )
    assert aux.shape == (16,)
    _, state = method.update(grads, method.init(params), params, oracle=oracle)
    np.testing.assert_array_equal(np.flatnonzero(state.start.times_scored), np.sort(indices))
    assert optax_sam.info(state)["gradients"] == 2


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("ksam", {"rho": 0.2}),
        ("esam", {"rho": 0.2, "weight_fraction": 1.0}),
        ("random_perturbation", {"noise_scale": 0.0}),
    ],
)
def test_whole_batch_leaves_nothing_to_choose(name, own):
    """Both gradients see every example: SAM, and without noise the base optimizer."""
    method = FAMILY[name].make(**own)
    descent, state = whole_batch_step(method)
    wanted, wanted_state = whole_batch_step(optax_sam.sam(own.get("rho", 0.0)))
    assert_trees_close(descent, wanted, rtol=1e-5, atol=1e-6)
    found, expected = optax_sam.info(state), optax_sam.info(wanted_state)
    assert found["gradients"] == 2
    np.testing.assert_allclose(found["sharpness"], expected["sharpness"], rtol=1e-3, atol=1e-6)


def whole_batch_step(method):
    @jax.jit
    def step(params, state, batch):
        _, grads, oracle = method.value_and_grad(losses)(params, batch, state=state, whole_batch=True)
        return method.update(grads, state, params, oracle=oracle)

    return step(init_params(), method.init(init_params()), make_batch())


def test_indices_out_of_range_are_never_written_and_never_drawn_before_real_ones():
    method, params = METHODS["ausam"].make(), init_params()
    indices = make_indices().at[jnp.array([0, 5, 7, 9, 11])].set(jnp.array([-1, 48, 1000, -48, 48]))
    real = set(np.asarray(indices)[(np.asarray(indices) >= 0) & (np.asarray(indices) < 48)])
    step = jax.jit(lambda s: _ausam_step(method, params, s, indices))
    state = method.init(params)
    for _ in range(5):
        state, drawn = step(state)
        assert set(np.asarray(drawn)) <= real
    assert set(np.flatnonzero(state.start.times_scored)) <= real


def _ausam_step(method, params, state, indices):
    batch = make_batch() | {"number": indices}
    (_, drawn), grads, oracle = method.value_and_grad(lambda p, b: (losses(p, b), b["number"]), has_aux=True)(
        params, batch, state=state, indices=indices
    )
    return method.update(grads, state, params, oracle=oracle)[1], drawn


def test_a_repeated_index_counts_once():
    method, params = METHODS["ausam"].make(fraction=1.0), init_params()
    indices = make_indices().at[3].set(make_indices()[0])
    state, _ = jax.jit(lambda s: _ausam_step(method, params, s, indices))(method.init(params))
    assert float(state.start.times_scored.max()) == 1
    assert float(state.start.times_scored.sum()) == 15


def test_count_of_gradients_is_exact_in_long_runs():
    total = jnp.array([2.0**25, 0.0], jnp.float32)
    step = jax.jit(lambda t, _: (add_gradients(t, jnp.float32(0.6)), None))
    total, _ = jax.lax.scan(step, total, length=1000)
    exact = 2.0**25 + 1000 * float(np.float32(0.6))
    state = optax_sam.sam().init(init_params())
    state = state._replace(diagnostics=state.diagnostics._replace(gradients=total))
    assert abs(float(optax_sam.info(state)["gradients"]) - exact) < 1e-3


def test_states_of_two_inits_share_no_buffer():
    for case in VARIANTS.values():
        params = init_params()
        states = [case.make().init(params) for _ in range(2)]
        buffers = [x.unsafe_buffer_pointer() for x in jax.tree.leaves((params, states)) if x.size]
        assert len(set(buffers)) == len(buffers)


def test_tail_names_the_leaves_whose_norms_are_watched():
    """The last two of four leaves, in the order of the pytree, by number and by name."""
    by_number = optax_sam.vsam(window=4, slices=2, tail=2)
    by_name = optax_sam.vsam(
        window=4, slices=2, tail=lambda p: {k: jax.tree.map(lambda _, k=k: k == "layer_1", p[k]) for k in p}
    )
    _, wanted, grads = one_step(by_number, init_params(), make_batch(), perturb=True)
    _, got, _ = one_step(by_name, init_params(), make_batch(), perturb=True)
    np.testing.assert_array_equal(got.gate.ratios, wanted.gate.ratios)
    psf, tail = wanted.reuse.difference["layer_1"], grads["layer_1"]
    ratio = optax.tree.norm(psf) / optax.tree.norm(tail)
    np.testing.assert_allclose(got.gate.ratios[-1], ratio, rtol=1e-5)


def test_gradients_of_integer_leaves_may_be_those_of_jax():
    params = init_params() | {"count": jnp.arange(3)}
    gradient = jax.grad(lambda p: jnp.mean(losses(p, make_batch())), allow_int=True)
    vsam = METHODS["vsam"].make()
    descent, _ = vsam.update(gradient(params), vsam.init(params), params, grad_fn=gradient, perturb=True)
    np.testing.assert_array_equal(descent["count"], [0, 0, 0])
    assert descent["count"].dtype == params["count"].dtype


def test_the_derivative_by_an_example_s_weight_is_right_where_the_weight_is_not_zero():
    """Learning to reweight: how a validation loss after one step depends on the weights of the step."""
    keys = jax.random.split(jax.random.key(0), 3)
    params, batch, validation = (jax.random.normal(k, (4, n)) for k, n in zip(keys, (3, 4, 4), strict=True))
    losses = lambda params, batch: jnp.sum(jnp.tanh(batch @ params) ** 2, -1)
    tx = optax.chain(optax_sam.sam(0.1), optax.sgd(0.3))

    def after(weights):
        step = optax_sam.step(tx, losses)
        return losses(step(params, tx.init(params), batch, weights=weights)[0], validation).mean()

    def by_hand(weights):
        gradient = jax.grad(lambda w: jnp.sum(weights * losses(w, batch)) / jnp.sum(weights))
        g = gradient(params)
        return losses(params - 0.3 * gradient(params + 0.1 * g / jnp.linalg.norm(g)), validation).mean()

    for weights in ([1.0, 1.0, 1e-6, 1.0], [0.5, 2.0, 1.0, 0.3]):
        got, wanted = (jax.grad(f)(jnp.array(weights)) for f in (after, by_hand))
        np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-5)
    padded = jax.grad(after)(jnp.array([1.0, 1.0, 0.0, 1.0]))
    np.testing.assert_allclose(
        padded[jnp.array([0, 1, 3])],
        jax.grad(by_hand)(jnp.array([1.0, 1.0, 0.0, 1.0]))[jnp.array([0, 1, 3])],
        rtol=1e-3,
    )
