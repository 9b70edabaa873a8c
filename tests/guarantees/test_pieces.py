"""What a user's piece is promised: counted wherever it asks, and told the whole step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import optax_sam
from optax_sam import ascents, directions, gates, reuses, selections, starts
from optax_sam.pieces import bases
from tests.problem import assert_trees_close, init_params, losses, make_batch
from tests.registry import one_step, over

RHO = 0.05


def info_after(method, **fixed):
    return optax_sam.info(one_step(method, init_params(), make_batch(), **fixed)[1])


# Counting and judging.


def test_repeated_ascents_count_every_gradient_however_they_are_nested():
    nested = ascents.repeated(ascents.repeated(ascents.to_radius(0.01), 2), 3)
    masked = optax.masked(nested, {"layer_0": True, "layer_1": False})
    for ascent in (nested, ascents.chained(nested, optax.scale(1.0)), masked, optax.chain(nested)):
        # 3 climbs of 2 steps each, of which the very first is along the step's own gradient, and 2 beside.
        assert info_after(optax_sam.sharpness_aware(ascent))["gradients"] == 7


class AsksTwice(bases.Combination):
    """Two further gradients, one of them in a loop, one by chance."""

    def combine(self, step):
        def once(carry, _):
            return carry + step.oracle.evaluate_moved(step.perturbation).norm, None

        total, _ = step.oracle.scan(once, jnp.zeros([]), length=3)

        def paid():
            return step.oracle.evaluate(step.point).grads

        return step.oracle.cond(total > 0, paid, lambda: step.perturbed_grads)


@pytest.mark.parametrize(
    ("wrap", "gradients"),
    [
        (lambda method: method, 6),
        (lambda method: optax_sam.per_microbatch(method, 4), 6),
        (lambda method: optax_sam.per_microbatch(method, 4, loop="vmap"), 6),
        (lambda method: optax_sam.accumulated(method, 4), 6),
        (lambda method: optax_sam.over_draws(method, 2, optax_sam.tilted(1.0)), 12),
        (lambda method: optax_sam.per_microbatch(optax_sam.accumulated(method, 2), 2), 6),
    ],
    ids=["alone", "slices", "slices at once", "accumulated", "draws", "nested"],
)
def test_what_a_users_piece_takes_is_counted_inside_every_wrapper(wrap, gradients):
    method = wrap(optax_sam.sharpness_aware(ascents.to_radius(RHO), combination=AsksTwice()))
    assert info_after(method)["gradients"] == gradients


def test_a_part_of_the_examples_counts_as_that_part():
    class OnHalf(bases.Combination):
        def combine(self, step):
            half = step.oracle.take(jnp.arange(8)[None])
            return half.evaluate(step.point).grads

    method = optax_sam.sharpness_aware(ascents.to_radius(RHO), combination=OnHalf())
    assert info_after(method)["gradients"] == 2.5


LOOPS = {
    "scan": lambda ask: lax.scan(lambda c, _: (c + ask(), None), jnp.zeros([]), length=2)[0],
    "fori_loop": lambda ask: lax.fori_loop(0, 2, lambda _, c: c + ask(), jnp.zeros([])),
    "while_loop": lambda ask: lax.while_loop(lambda c: c < 1, lambda c: c + ask(), jnp.zeros([])),
    "cond": lambda ask: lax.cond(jnp.ones([]) > 0, ask, lambda: jnp.zeros([])),
    "map": lambda ask: lax.map(lambda _: ask(), jnp.arange(2)).sum(),
    "vmap": lambda ask: jax.vmap(lambda _: ask())(jnp.arange(2)).sum(),
    "jit": lambda ask: jax.jit(ask)(),
    "grad": lambda ask: jax.grad(lambda x: x * ask())(1.0),
    "checkpoint": lambda ask: jax.checkpoint(ask)(),
}


@pytest.mark.parametrize("loop", LOOPS)
def test_a_gradient_in_a_loop_of_a_piece_s_own_is_refused_by_naming_the_doors(loop):
    class Asks(bases.Combination):
        def combine(self, step):
            LOOPS[loop](lambda: step.oracle.evaluate(step.point).norm)
            return step.perturbed_grads

    method = optax_sam.sharpness_aware(ascents.to_radius(RHO), combination=Asks())
    with pytest.raises(ValueError, match=r"use oracle.scan .* oracle.cond .* oracle.hessian_product"):
        one_step(method, init_params(), make_batch())


class BySlice(bases.Combination):
    """One gradient more where the examples say so."""

    def combine(self, step):
        return step.oracle.cond(
            jnp.mean(step.oracle.batch["flag"]) > 0.5,
            lambda: step.oracle.evaluate(step.point).grads,
            lambda: step.perturbed_grads,
        )


OWN = {
    "itself": lambda inner, w: inner(w),
    "scan": lambda inner, w: lax.scan(lambda w, _: (inner(w), None), w, length=2)[0],
    "vmap": lambda inner, w: jax.vmap(inner)(jnp.stack([w, w])).mean(axis=0),
    "jit": lambda inner, w: jax.jit(inner)(w),
}


@pytest.mark.parametrize("loop", OWN)
def test_gradients_inside_a_loss_are_its_own_and_counted_nowhere(loop):
    """A loss that takes an inner step, by an oracle of its own; and a gradient function that asks one."""
    inner_rows, rows, w = jnp.eye(2), jnp.asarray([[1.0, 2.0], [3.0, -1.0]]), jnp.ones(2)
    of_rows = lambda w, rows: jnp.square(rows @ w - 1)

    def by_oracle(w):
        return w - 0.1 * optax_sam.Oracle(of_rows, inner_rows).value_and_grad(w)[1]

    def by_jax(w):
        return w - 0.1 * jax.grad(lambda w: of_rows(w, inner_rows).mean())(w)

    method, found = optax_sam.sam(RHO), []
    for inner in (by_oracle, by_jax):
        tx = optax.chain(method, optax.sgd(0.1))
        step = optax_sam.step(tx, lambda w, rows, inner=inner: of_rows(OWN[loop](inner, 2 * w), rows))
        found.append(step(w, tx.init(w), rows))
    assert_trees_close(*found, rtol=1e-6)
    assert optax_sam.info(found[0][1])["gradients"] == 2
    grad_fn = lambda w: optax_sam.Oracle(of_rows, rows).value_and_grad(w)[1]
    _, state = method.update(grad_fn(w), method.init(w), w, grad_fn=grad_fn)
    assert optax_sam.info(state)["gradients"] == 2


@pytest.mark.parametrize("weights", over([None, [3.0, 1.0], [1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0]]), ids=str)
def test_the_count_of_slices_is_their_plain_mean_whatever_they_weigh(weights):
    batch = make_batch() | {"flag": jnp.repeat(jnp.array([1.0, 0.0]), 8)}
    if weights is not None:
        weights = jnp.repeat(jnp.asarray(weights), 8)
    inner = optax_sam.sharpness_aware(ascents.to_radius(RHO), combination=BySlice())
    for loop in ("scan", "vmap"):
        method = optax_sam.per_microbatch(inner, 2, loop=loop)
        state = method.init(init_params())
        _, grads, oracle = method.value_and_grad(losses)(init_params(), batch, state=state, weights=weights)
        state = method.update(grads, state, init_params(), oracle=oracle)[1]
        assert optax_sam.info(state)["gradients"] == 2.5


def test_counts_are_exact_over_slices_of_any_weight_and_any_number_of_draws():
    weights = jax.random.uniform(jax.random.key(1), [33])
    batch = make_batch(0, 33)
    draws = optax_sam.tsam(num_samples=11, radius=0.1)
    for method, each in ((optax_sam.per_microbatch(optax_sam.sam(), 11), 2), (draws, 22)):
        state = method.init(init_params())

        @jax.jit
        def step(state, method=method):
            _, grads, oracle = method.value_and_grad(losses)(
                init_params(), batch, state=state, weights=weights
            )
            return method.update(grads, state, init_params(), oracle=oracle)[1]

        for number in range(3):
            state = step(state)
            assert optax_sam.info(state)["gradients"] == each * (number + 1)


def test_finite_covers_what_a_mask_hides():
    def root(params, batch):
        return params["w"] ** 2 * batch + jnp.sqrt(params["b"])

    params = {"w": jnp.ones([]), "b": jnp.zeros([])}
    tx = optax.chain(optax.masked(optax_sam.sam(0.1), {"w": True, "b": False}), optax.sgd(0.1))
    _, state, _ = optax_sam.step(tx, root)(params, tx.init(params), jnp.ones(4))
    assert not optax_sam.finite(state)


OWN_MASKS = {
    "masked": lambda ascent: optax.masked(ascent, {"layer_0": True, "layer_1": False}),
    "partition": lambda ascent: optax.partition(
        {"a": ascent, "b": ascents.to_radius(0.2)}, {"layer_0": "a", "layer_1": "b"}
    ),
}


@pytest.mark.parametrize("around", [False, True], ids=["alone", "in a mask of everything"])
@pytest.mark.parametrize("name", OWN_MASKS)
def test_an_ascent_with_a_mask_and_a_state_of_its_own_needs_no_mask_around_the_method(name, around):
    ascent = OWN_MASKS[name](optax.chain(optax.trace(0.9), ascents.to_radius(RHO)))
    for direction in (directions.gradient(), directions.running_mean(0.9)):
        method = optax_sam.sharpness_aware(ascent, direction=direction, selection=selections.whole_batch())
        inner = optax.masked(method, {"layer_0": True, "layer_1": True}) if around else method
        tx = optax.chain(inner, optax.sgd(0.1))
        step, run = optax_sam.step(tx, losses), (init_params(), tx.init(init_params()))
        for number in range(2):
            *run, loss = step(*run, make_batch(number))
        assert np.isfinite(loss) and optax_sam.info(run[1])["gradients"] == 4


HIDDEN = {
    "mean": lambda: optax_sam.sharpness_aware(
        ascents.to_radius(RHO),
        direction=directions.running_mean(0.9),
        selection=selections.largest_increase(0.5),
    ),
    "foreign ascent": lambda: optax_sam.sharpness_aware(
        optax.chain(optax.trace(0.9), optax.scale(0.1)), direction=directions.batch_specific()
    ),
    "reuse": lambda: optax_sam.sharpness_aware(
        ascents.to_radius(RHO),
        gate=gates.every(2),
        selection=selections.whole_batch(),
        reuse=reuses.decayed_difference(0.5, 2),
    ),
    "sparse": lambda: optax_sam.sparse_sam(0.1, refresh_steps=1, num_samples=2),
    "eigenvector": lambda: optax_sam.eigen_sam(refresh_steps=1, power_iterations=1),
}


@pytest.mark.parametrize("name", HIDDEN)
def test_pieces_with_trees_in_their_state_stand_inside_a_mask(name):
    """A mask of whole subtrees, and one of leaves."""
    of_leaves = jax.tree.map_with_path(lambda path, _: "layer_0" in str(path), init_params())
    found = []
    for mask in ({"layer_0": True, "layer_1": False}, of_leaves):
        tx = optax.chain(optax.masked(HIDDEN[name](), mask), optax.sgd(0.1))
        step, run = jax.jit(optax_sam.step(tx, losses)), (init_params(), tx.init(init_params()))
        for number in range(2):
            *run, _ = step(*run, make_batch(number))
        found.append(run[0])
    assert_trees_close(*found, rtol=1e-6)


def test_finite_covers_the_third_gradient_and_the_descent():
    def root(params, batch):
        return jnp.sqrt(params["w"]) * jnp.ones_like(batch)

    def step(method):
        params = {"w": jnp.asarray(0.05)}
        state = method.init(params)
        _, grads, oracle = method.value_and_grad(root)(params, jnp.ones(4), state=state)
        return method.update(grads, state, params, oracle=oracle)

    descent, state = step(optax_sam.bilateral_sam(0.01, lower_rho=0.1))
    assert np.isnan(descent["w"]) and not optax_sam.finite(state)

    class Overflows(bases.Combination):
        def combine(self, step):
            return jax.tree.map(lambda g: g * jnp.inf, step.perturbed_grads)

    descent, state = step(optax_sam.sharpness_aware(ascents.to_radius(0.01), combination=Overflows()))
    assert np.isinf(descent["w"]) and not optax_sam.finite(state)

    class Recalls(bases.Reuse):
        def init(self, params, key):
            return jnp.zeros([])

        def recall(self, state, step):
            return jax.tree.map(lambda g: g / 0, step.grads), state + 1

    method = optax_sam.sharpness_aware(ascents.to_radius(0.01), gate=gates.after(9), reuse=Recalls())
    _, state = step(method)
    assert not optax_sam.finite(state) and state.reuse == 0


# Shares of the mean.


def test_slices_weigh_alike_whatever_the_method_makes_of_its_examples():
    """Losses of very unequal slopes, of which reweighting makes very unequal chances."""

    def steep(params, batch):
        return losses(params, batch) * batch["slope"]

    batch = make_batch() | {"slope": jnp.exp(jnp.linspace(0.0, 3.0, 16))}
    method = optax_sam.reweighted_sam(weight=2.0, difference_step=1e-3)
    for form in (optax_sam.per_microbatch(method, 4), optax_sam.per_microbatch(optax_sam.esam(), 4)):
        state = form.init(init_params())
        for weights in (None, jnp.ones(16)):
            loss, _, oracle = form.value_and_grad(steep)(init_params(), batch, state=state, weights=weights)
            np.testing.assert_allclose(loss, jnp.mean(steep(init_params(), batch)), rtol=1e-6)
            np.testing.assert_allclose(oracle._started.begun.parts[1], 0.25, rtol=1e-6)


def test_sharpness_is_the_difference_of_equally_weighted_losses():
    method = optax_sam.sharpness_aware(ascents.to_radius(1e-6), start=starts.reweighted(2.0, 1e-3))
    assert abs(info_after(method)["sharpness"]) < 1e-4


# What a piece is told, and what it may say.


def test_a_combination_is_told_the_whole_step():
    seen = {}

    class Looks(bases.Combination):
        asks_anew = False

        def combine(self, step):
            moved = jax.tree.map(jnp.subtract, step.point, step.params)
            seen["same"] = jax.tree.map(jnp.subtract, moved, step.perturbation)
            seen["dot"] = optax.tree.vdot(step.direction, step.perturbation)
            seen["norms"] = step.first.norm, step.perturbed.norm, step.count
            return step.perturbed_grads

    method = optax_sam.sharpness_aware(ascents.to_radius(RHO), combination=Looks())
    state = method.init(init_params())
    _, grads, oracle = method.value_and_grad(losses)(init_params(), make_batch(), state=state)
    method.update(grads, state, init_params(), oracle=oracle)
    assert_trees_close(seen["same"], jax.tree.map(jnp.zeros_like, init_params()), atol=1e-7)
    np.testing.assert_allclose(seen["dot"], RHO * optax.tree.norm(grads), rtol=1e-5)
    np.testing.assert_allclose(seen["norms"][0], optax.tree.norm(grads), rtol=1e-6)


def test_initial_states_may_be_random_each_by_a_key_of_its_own():
    class Random(bases.Direction):
        def init(self, params, key):
            return jax.random.normal(key, [3])

        def read(self, state, step):
            return step.grads, state

    class AlsoRandom(bases.Reuse):
        def init(self, params, key):
            return jax.random.normal(key, [3])

        def recall(self, state, step):
            return step.grads, state

    def states(seed):
        method = optax_sam.sharpness_aware(
            ascents.to_radius(RHO), direction=Random(), reuse=AlsoRandom(), seed=seed
        )
        state = method.init(init_params())
        return [np.asarray(x) for x in (state.direction, state.reuse)]

    found = [*states(0), *states(1)]
    assert all(np.any(x != y) for n, x in enumerate(found) for y in found[n + 1 :])


def test_a_piece_may_repair_the_mean_of_its_states():
    class Counter(bases.Direction):
        def init(self, params, key):
            return jnp.zeros([])

        def read(self, state, step):
            return step.grads, state

        def write(self, state, step):
            return state + jnp.where(step.grads["layer_0"]["bias"][0] > 0, 1.0, 2.0)

        def settle(self, mean, old):
            return old + 10.0

    method = optax_sam.sharpness_aware(ascents.to_radius(RHO), direction=Counter())
    for form in (
        optax_sam.per_microbatch(method, 4),
        optax_sam.over_draws(method, 2, optax_sam.tilted(0.0)),
        optax_sam.per_microbatch(optax_sam.over_draws(method, 2, optax_sam.tilted(0.0)), 2),
    ):
        assert one_step(form, init_params(), make_batch())[1].direction == 10.0
