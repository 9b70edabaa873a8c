"""Batches filled up with examples of weight 0: in halves, in what is remembered, among the first examples."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType

import optax_sam
from optax_sam import ascents, gates, selections, starts
from optax_sam.arithmetic.trees import map_inexact
from optax_sam.engine.state import REMEMBERED
from tests.problem import assert_trees_close, init_params, losses, make_batch, make_indices
from tests.registry import CASES, over

HALVES = {
    "rwp": (optax_sam.random_perturbation(0.0, alpha=0.25), 0.25),
    "m-arwp": (optax_sam.adaptive_random_perturbation(0.0, alpha=0.5), 0.5),
}


@pytest.mark.parametrize("name", HALVES)
@pytest.mark.parametrize("real", [16, 9, 8, 5, 2, 1], ids=str)
@pytest.mark.parametrize("place", ["end", "front", "between"])
def test_halves_of_a_padded_batch_are_halves_of_what_is_real(name, real, place):
    """The first half has one more where their number is odd; one alone is in both."""
    (method, alpha), batch = HALVES[name], make_batch()
    numbers = {"end": np.arange(real), "front": np.arange(16 - real, 16)}.get(place)
    numbers = np.linspace(0, 15, real).astype(int) if numbers is None else numbers
    weights = jnp.zeros(16).at[numbers].set(1)
    batch = map_inexact(lambda x: jnp.where((weights == 0)[:, None], jnp.nan, x), batch)

    def descent(batch, weights):
        _, grads, oracle = method.value_and_grad(losses)(
            init_params(), batch, state=method.init(init_params()), weights=weights
        )
        return method.update(grads, method.init(init_params()), init_params(), oracle=oracle)[0]

    first, second = numbers[: (real + 1) // 2], numbers[(real + 1) // 2 :]
    clean, noisy = (
        jax.grad(lambda p, rows=rows: losses(p, {k: x[rows] for k, x in batch.items()}).mean())(init_params())
        for rows in (first, second if len(second) else first)
    )
    wanted = jax.tree.map(lambda a, b: (1 - alpha) * a + alpha * b, clean, noisy)
    assert_trees_close(jax.jit(descent)(batch, weights), wanted, rtol=1e-4, atol=1e-6)


def test_every_stratum_is_dealt_out_by_itself():
    weights = jnp.asarray([1, 1, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0], jnp.float32)
    batch = jnp.arange(12.0)
    seen = []
    for part in (0, 1):
        method = optax_sam.sharpness_aware(
            ascents.to_radius(0.0),
            start=starts.on_part(part, 2, strata=3),
            selection=selections.on_part(part, 2, strata=3),
        )
        loss, *_ = method.value_and_grad(lambda w, x: w * x)(
            jnp.array(1.0), batch, state=method.init(jnp.array(1.0)), weights=weights
        )
        seen.append(float(loss))
    assert seen == pytest.approx([np.mean([0, 5, 6]), np.mean([1, 7])])


@pytest.mark.parametrize("name", over(CASES))
def test_a_batch_of_padding_alone_changes_nothing_that_is_remembered(name):
    """As a host may have it whose examples have run out; the step is counted."""
    method = CASES[name].make()
    tx = optax.chain(method, optax.sgd(0.1))

    @jax.jit
    def step(params, state, number, weights):
        batch = map_inexact(lambda x: x + number, make_batch())
        indices = make_indices()
        return optax_sam.step(tx, losses)(params, state, batch, indices=indices, weights=weights)[:2]

    params, state = init_params(), tx.init(init_params())
    for number in range(3):
        params, state = step(params, state, 0.1 * number, jnp.ones(16))
    _, found = step(params, state, 0.3, jnp.zeros(16))
    assert optax_sam.finite(found)
    for kind in REMEMBERED:
        assert_trees_close(getattr(found[0], kind), getattr(state[0], kind), rtol=1e-6)


@pytest.mark.parametrize("num_samples", [3, 8, 16])
def test_a_fisher_mask_is_that_of_the_first_real_examples(num_samples):
    method = optax_sam.fisher_mask_sam(0.3, num_samples=num_samples)
    order = np.random.default_rng(0).permutation(16)
    weights = np.r_[np.ones(8), np.zeros(8)][order]
    real = np.flatnonzero(weights)
    masks = []
    for rows in (np.arange(16), np.r_[real, np.flatnonzero(weights == 0)]):
        batch = {name: x[rows] for name, x in make_batch().items()}
        _, grads, oracle = method.value_and_grad(losses)(
            init_params(), batch, state=method.init(init_params()), weights=jnp.asarray(weights[rows])
        )
        state = method.update(grads, method.init(init_params()), init_params(), oracle=oracle)[1]
        masks.append(np.concatenate([np.ravel(x) for x in jax.tree.leaves(state.ascent)]))
    assert 0 < masks[0].sum() < masks[0].size
    np.testing.assert_array_equal(*masks)


FIRST_IS_PADDING = {
    "friendly_sam": lambda: optax_sam.friendly_sam(0.2),
    "vsam": lambda: optax_sam.vsam(0.2, window=4, slices=2),
    "sparse_sam": lambda: optax_sam.sparse_sam(0.3, 0.5, refresh_steps=2),
    "looksam": lambda: optax_sam.looksam(0.2, every_k=2),
    "an interval": lambda: optax_sam.sharpness_aware(
        ascents.chained(ascents.to_radius(0.1), ascents.times_interval()), gate=gates.every(2)
    ),
    "momentum_sam": lambda: optax_sam.momentum_sam(0.2),
}


@pytest.mark.parametrize("name", FIRST_IS_PADDING)
@pytest.mark.parametrize("form", ["scan", "vmap", "per_device"])
def test_a_first_slice_of_padding_alone_is_as_good_as_a_last_one(name, form):
    """Flags, counts and masks are those of the first slice that counts."""
    method = FIRST_IS_PADDING[name]()
    if form == "per_device":
        sliced = optax_sam.per_device(method, "batch")
        mesh = jax.make_mesh((2,), ("batch",), axis_types=(AxisType.Auto,))
    else:
        sliced, mesh = optax_sam.per_microbatch(method, 2, loop=form), None
    tx, found = optax.chain(sliced, optax.sgd(0.1, momentum=0.9)), []
    step = jax.jit(optax_sam.step(tx, losses))
    for order in (np.arange(16), np.r_[8:16, 0:8]):
        params, state = init_params(), tx.init(init_params())
        with jax.set_mesh(mesh) if mesh else contextlib.nullcontext():
            for number in range(5):
                batch = {name: x[order] for name, x in make_batch(number).items()}
                weights = jnp.asarray(order < 8, jnp.float32)
                params, state, _ = step(params, state, batch, weights=weights)
        found.append((params, state[0]))
    assert_trees_close(*found, rtol=1e-4, atol=1e-6)
