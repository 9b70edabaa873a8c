"""Masks and partitions: of the ascent, which perturb a part, and around a whole method."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_sam
from tests.problem import (
    assert_trees_close,
    assert_trees_equal,
    init_params,
    losses,
    make_batch,
    make_indices,
)
from tests.registry import METHODS, over

KERNELS = {"layer_0": {"kernel": True, "bias": False}, "layer_1": {"kernel": True, "bias": False}}
LABELS = {"layer_0": {"kernel": "near", "bias": "far"}, "layer_1": {"kernel": "near", "bias": "far"}}
FIRST = {"layer_0": True, "layer_1": False}

mean_loss = lambda params, batch: jnp.mean(losses(params, batch))
jitted_gradient = jax.jit(jax.grad(mean_loss))
RISING = optax.linear_schedule(0.1, 1.1, 10)


def gradient(params, batch):
    return jax.device_get(jitted_gradient(params, batch))


def size(tree):
    return np.sqrt(sum(np.sum(np.square(x)) for x in jax.tree.leaves(tree)))


def others(chosen):
    return jax.tree.map(lambda c: not c, chosen)


def climbed(params, grads, chosen, radius):
    """The parameters with the chosen leaves moved uphill by `radius`, over all of these."""
    params = jax.device_get(params)
    norm = size(jax.tree.map(lambda g, c: g * c, grads, chosen))
    return jax.tree.map(lambda w, g, c: w + radius * g / norm if c else w, params, grads, chosen)


def a_part(radius):
    """The kernels, and their norm, by a partition."""
    return optax.partition({"near": optax_sam.ascents.to_radius(radius), "far": optax.set_to_zero()}, LABELS)


def masked(radius):
    """The kernels, and their norm, by a mask."""
    return optax.masked(optax_sam.ascents.to_radius(radius), KERNELS)


def zeroed_before(radius):
    """The kernels: what is zero in the direction is not perturbed."""
    return optax.chain(
        optax.masked(optax.set_to_zero(), others(KERNELS)), optax_sam.ascents.to_radius(radius)
    )


def a_radius_each(radius):
    """Kernels and biases, each with their own radius and norm."""
    near, far = optax_sam.ascents.to_radius(radius), optax_sam.ascents.to_radius(optax.constant_schedule(0.5))
    return optax.partition({"near": near, "far": far}, lambda params: LABELS)


@pytest.mark.parametrize("gate", [None, optax_sam.gates.every(2)], ids=["always", "every_second"])
@pytest.mark.parametrize(
    "radius", [pytest.param(0.1, marks=pytest.mark.slow), RISING], ids=["constant", "schedule"]
)
@pytest.mark.parametrize("ascent", [a_part, masked, zeroed_before, a_radius_each])
def test_ascent_of_a_part_perturbs_it_alone_and_descends_on_all(ascent, radius, gate):
    """One second gradient for all groups of leaves; a schedule of the radius counts training steps."""
    method, params, evaluations = optax_sam.sharpness_aware(ascent(radius), gate=gate), init_params(), []

    def counted(params, batch):
        jax.debug.callback(lambda: evaluations.append(1))
        return losses(params, batch)

    @jax.jit
    def step(params, state, batch):
        _, grads, oracle = method.value_and_grad(counted)(params, batch, state=state)
        return method.update(grads, state, params, oracle=oracle)

    state = method.init(params)
    for number in range(4):
        batch, paid = make_batch(number), gate is None or number % 2 == 0
        near = 0.1 * (number + 1) if radius is RISING else radius
        evaluations.clear()
        descent, state = step(params, state, batch)
        jax.effects_barrier()
        assert len(evaluations) == 1 + paid
        point, clean = params, gradient(params, batch)
        if paid:
            far = 0.5 if ascent is a_radius_each else 0.0
            point = climbed(params, clean, KERNELS, near)
            point = climbed(point, clean, others(KERNELS), far)
            found = optax_sam.info(state)["perturbation_norm"]
            np.testing.assert_allclose(found, np.hypot(near, far), rtol=1e-5)
        assert_trees_close(descent, gradient(point, batch), rtol=1e-4, atol=1e-6)


def test_ascent_of_a_part_in_slices_of_the_batch():
    """Each slice perturbs the same part, along its own gradient."""
    method = optax_sam.per_microbatch(optax_sam.sharpness_aware(a_part(0.1)), 2)
    params, batch = init_params(), make_batch()

    @jax.jit
    def step(params, state):
        _, grads, oracle = method.value_and_grad(losses)(params, batch, state=state)
        return method.update(grads, state, params, oracle=oracle)[0]

    halves = [jax.tree.map(lambda x, rows=rows: x[rows], batch) for rows in (slice(0, 8), slice(8, 16))]
    found = [gradient(climbed(params, gradient(params, b), KERNELS, 0.1), b) for b in halves]
    wanted = jax.tree.map(lambda x, y: (x + y) / 2, *found)
    assert_trees_close(step(params, method.init(params)), wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("part", ["kernel", "bias"])
def test_ascent_of_a_part_in_the_geometry_of_asam(part):
    """The geometry sees the parameters of that part, and their names: `T = 1` for biases."""
    adaptive, still = (
        optax_sam.ascents.to_radius(0.5, optax_sam.geometries.elementwise(0.01)),
        optax.set_to_zero(),
    )
    near, far = (adaptive, still) if part == "kernel" else (still, adaptive)
    method = optax_sam.sharpness_aware(optax.partition({"near": near, "far": far}, LABELS))
    params, batch = init_params(), make_batch()
    clean, weights = gradient(params, batch), jax.device_get(params)
    chosen = KERNELS if part == "kernel" else others(KERNELS)
    sizes = jax.tree.map(lambda w, k: np.abs(w) + 0.01 if k else np.ones_like(w), weights, KERNELS)
    scaled = jax.tree.map(lambda g, t, c: g * t * c, clean, sizes, chosen)
    point = jax.tree.map(lambda w, x, t: w + 0.5 * t * x / size(scaled), weights, scaled, sizes)
    update = jax.jit(lambda g, s, p: method.update(g, s, p, grad_fn=lambda q: jax.grad(mean_loss)(q, batch)))
    descent, _ = update(clean, method.init(params), params)
    assert_trees_close(descent, gradient(point, batch), rtol=1e-4, atol=1e-6)


# A mask around a whole method: the hidden leaves keep the clean gradient.


@pytest.mark.parametrize("name", over(METHODS))
def test_inside_masked_and_partition_the_method_sees_a_part(name):
    """What is hidden descends on the first gradient; by a mask and by a partition alike."""
    method, params = METHODS[name].make(), init_params()
    labels = {"layer_0": "on", "layer_1": "off"}
    masked_tx = optax.chain(optax.masked(method, FIRST), optax.sgd(0.1))
    partitioned = optax.partition({"on": optax.chain(method, optax.sgd(0.1)), "off": optax.sgd(0.1)}, labels)
    batch, indices = make_batch(), make_indices()

    @jax.jit
    def step(params, state, other):
        _, grads, oracle = method.value_and_grad(losses)(params, batch, state=state, indices=indices)
        ours = masked_tx.update(grads, state, params, oracle=oracle, perturb=True)
        return grads, ours, partitioned.update(grads, other, params, oracle=oracle, perturb=True)

    state, other = masked_tx.init(params), partitioned.init(params)
    grads, (updates, after), (other_updates, other_after) = step(params, state, other)
    assert_trees_close(updates["layer_1"], jax.tree.map(lambda g: -0.1 * g, grads["layer_1"]))
    assert not np.allclose(updates["layer_0"]["kernel"], -0.1 * grads["layer_0"]["kernel"], rtol=1e-3)
    assert_trees_close(other_updates, updates)
    found, other_found = optax_sam.info(after), optax_sam.info(other_after)
    assert found == other_found
    oracle = optax_sam.Oracle(losses, batch, indices=indices)
    with pytest.raises(ValueError, match=r"^oracle.params=None inside optax.masked"):
        masked_tx.update(grads, state, params, oracle=oracle)
    wanted = "this method needs" if METHODS[name].needs_oracle else "inside optax.masked"
    with pytest.raises(ValueError, match=rf"grad_fn is given.* {wanted}"):
        masked_tx.update(grads, state, params, grad_fn=lambda p: p)


def on_parts(params, batch):
    """Squares of the visible part, the same function of its leaves wherever it stands."""
    return batch * sum(jnp.sum(jnp.square(x)) for x in jax.tree.leaves(params["layer_0"]))


AHEAD = {
    "adaptive_random_perturbation": optax_sam.adaptive_random_perturbation(),
    "bsam": optax_sam.bsam(48, num_microbatches=2),
    "graphsam": optax_sam.graphsam(3),
    "momentum_sam": optax_sam.momentum_sam(),
    "noise": optax_sam.sharpness_aware(
        optax_sam.ascents.to_radius(0.1),
        direction=optax_sam.directions.gaussian(),
        start=optax_sam.starts.ahead(),
    ),
    "random_sam": optax_sam.random_sam(0.1),
    "reweighted_sam": optax_sam.reweighted_sam(0.1, weight=0.5, difference_step=0.1),
    "tsam": optax_sam.tsam(0.1, num_samples=2),
    "tsam_in_slices": optax_sam.per_microbatch(optax_sam.tsam(0.1, num_samples=2, noise="uniform"), 2),
}


@pytest.mark.parametrize("name", AHEAD)
def test_what_moves_before_its_first_gradient_moves_the_visible_part_alone(name):
    method, params, batch = AHEAD[name], init_params(), jnp.linspace(0.5, 1.5, 4)
    tx = optax.chain(optax.masked(method, FIRST), optax.trace(0.9), optax.scale(-1.0))
    state, seen = tx.init(params), []

    def watched(params, batch):
        jax.debug.callback(lambda x: seen.append(np.array(x)), params["layer_1"]["kernel"])
        return on_parts(params, batch)

    @jax.jit
    def step(params, state):
        _, grads, oracle = method.value_and_grad(watched)(params, batch, state=state)
        return tx.update(grads, state, params, oracle=oracle)

    before = jax.tree.structure(state)
    for _ in range(2):
        updates, state = step(params, state)
        assert jax.tree.structure(state) == before
    jax.effects_barrier()
    assert all(np.array_equal(x, params["layer_1"]["kernel"]) for x in seen)
    assert optax_sam.info(state)["perturbation_norm"] > 0
    assert not np.allclose(updates["layer_0"]["kernel"], 0)


def test_masked_sam_perturbs_the_visible_part_to_the_radius():
    sam, params, batch = optax_sam.sam(0.1), init_params(), make_batch()
    tx = optax.masked(sam, FIRST)

    @jax.jit
    def step(params, state):
        _, grads, oracle = sam.value_and_grad(losses)(params, batch, state=state)
        return tx.update(grads, state, params, oracle=oracle)[0], grads

    descent, grads = step(params, tx.init(params))
    first = {name: jax.tree.map(lambda _, name=name: FIRST[name], layer) for name, layer in params.items()}
    wanted = gradient(climbed(params, jax.device_get(grads), first, 0.1), batch)
    assert_trees_close(descent["layer_0"], wanted["layer_0"], rtol=1e-5, atol=1e-6)
    assert_trees_equal(descent["layer_1"], grads["layer_1"])


def test_partition_of_two_methods_gives_each_part_its_own_second_gradient():
    """Each method perturbs its own leaves alone, and takes its own first gradient of an oracle by hand."""
    near, far = optax_sam.sam(0.01), optax_sam.sam(0.5)
    tx = optax.partition({"near": near, "far": far}, LABELS)
    params, batch = init_params(), make_batch()
    state = tx.init(params)
    with pytest.raises(ValueError, match=r"2 states .*near.*far|2 states .*far.*near"):
        near.value_and_grad(losses)(params, batch, state=state)
    _, grads, begun = near.value_and_grad(losses)(params, batch, state=state.inner_states["near"])
    with pytest.raises(
        ValueError, match=r"another method than this one: method.ascent.*rho is 0.01 in one and 0.5"
    ):
        tx.update(grads, state, params, oracle=begun)

    @jax.jit
    def step(params, state):
        oracle = optax_sam.Oracle(losses, batch, params=params)
        grads = oracle.value_and_grad(params)[1]
        return *tx.update(grads, state, params, oracle=oracle), grads

    descent, state, grads = jax.device_get(step(params, state))
    for label, radius, chosen in (("near", 0.01, KERNELS), ("far", 0.5, others(KERNELS))):
        wanted = gradient(climbed(params, grads, chosen, radius), batch)
        part = lambda tree, chosen=chosen: jax.tree.map(lambda x, c: x * c, tree, chosen)
        assert_trees_close(part(descent), part(wanted), rtol=1e-4, atol=1e-6)
        found = optax_sam.info(state.inner_states[label])["perturbation_norm"]
        np.testing.assert_allclose(found, radius, rtol=1e-5)


def test_map_params_in_a_mask_maps_the_visible_part():
    vsam, params = METHODS["vsam"].make(), init_params()
    tx = optax.masked(vsam, FIRST)
    hidden = lambda x: isinstance(x, optax.MaskedNode)
    ones = lambda x, w: x if hidden(x) else x + jnp.ones_like(w)
    state = tx.init(params)
    mapped = optax.tree.map_params(tx, ones, state, params, is_leaf=hidden)
    difference = mapped.inner_state.reuse.difference
    assert_trees_equal(difference["layer_0"], jax.tree.map(jnp.ones_like, params["layer_0"]))
    assert hidden(difference["layer_1"])
    assert_trees_equal(mapped.inner_state.gate, state.inner_state.gate)


@pytest.mark.parametrize("name", ["masked", "partitioned"])
def test_scores_of_a_part_are_norms_of_its_gradients(name):
    """What the method does not see has gradients a hundred times as long, in the reverse order."""
    shown = jnp.array([1.0, 2.0, 3.0, 4.0])
    rows, params = {"shown": shown, "hidden": 100 * shown[::-1]}, {"w": jnp.ones(()), "b": jnp.ones(())}
    ausam = optax_sam.ausam(4, score="gradient_norm", fraction=0.5)
    groups = optax.partition({"w": ausam, "b": optax.identity()}, {"w": "w", "b": "b"})
    tx = optax.masked(ausam, {"w": True, "b": False}) if name == "masked" else groups
    step = optax_sam.step(
        optax.chain(tx, optax.sgd(0.0)), lambda p, b: p["w"] * b["shown"] + p["b"] * b["hidden"]
    )
    state = step_state = optax.chain(tx, optax.sgd(0.0)).init(params)
    for _ in range(8):
        params, step_state, _ = step(params, step_state, rows, indices=jnp.arange(4))
    seen = optax.tree.get(step_state, "times_scored")
    assert optax.tree.get(state, "times_scored").sum() == 0 and seen.sum() == 8 * 2
    np.testing.assert_allclose(optax.tree.get(step_state, "score_sum"), seen * shown, rtol=1e-6)


@pytest.mark.parametrize("around", ["masked", "partition"])
def test_with_an_oracle_by_hand_hidden_leaves_descend_on_the_updates(around):
    """Optax hands these on. The method reads none of them, and refuses the parameters in their place."""
    sam = optax_sam.sam(rho=0.5)
    if around == "masked":
        tx = optax.chain(optax.masked(sam, KERNELS), optax.sgd(0.1))
    else:
        tx = optax.partition({"near": optax.chain(sam, optax.sgd(0.1)), "far": optax.sgd(0.1)}, LABELS)
    params, batch = init_params(), make_batch()
    state = tx.init(params)
    oracle = optax_sam.Oracle(losses, batch, params=params)
    updates, _ = tx.update(gradient(params, batch), state, params, oracle=oracle)
    wanted, _, _ = optax_sam.step(tx, losses)(params, state, batch)
    assert_trees_close(optax.apply_updates(params, updates), wanted, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match=r"updates are the params inside optax.masked or optax.partition"):
        tx.update(params, state, params, oracle=oracle)
    sam.update(params, sam.init(params), params, oracle=oracle)  # where all are in sight, nothing is read
