"""What is promised of a budget of loss, of a radius that grows with the interval, and of Polyak's step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_sam
from optax_sam import (
    ascents,
    combinations,
    gates,
    geometries,
    schedules,
    selections,
    sharpness_aware,
    starts,
)
from tests.guarantees.climbing import SCALES, TREE, climb, flat, scaled
from tests.problem import assert_trees_close, init_params, losses, make_batch
from tests.registry import one_step

# A budget of loss.


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("jitted", [True, False], ids=["jitted", "eager"])
def test_the_loss_rises_by_the_budget_unless_the_radius_is_at_its_cap(scale, jitted):
    gradient, norm = scaled(scale), np.linalg.norm(flat(TREE))
    for budget, cap in ((0.2, 1e3), (0.2, 1e-3), (0.2, np.inf), (0.0, 0.5), (0.2, 0.0)):
        found, length = climb(ascents.within_loss_budget(budget, cap), gradient, jitted=jitted)
        rho = min(budget / norm / scale, cap)
        if rho > 1e37:  # no float32 is as long
            continue
        np.testing.assert_allclose(flat(found) / (rho or 1), bool(rho) * flat(TREE) / norm, rtol=1e-5)
        np.testing.assert_allclose(length, rho, rtol=1e-6)


@pytest.mark.parametrize("cap", [0.5, np.inf])
def test_a_zero_gradient_has_no_budget_to_spend(cap):
    zero = scaled(0.0)
    for budget in (0.3, 0.0):
        found, length = climb(ascents.within_loss_budget(budget, cap), zero)
        assert_trees_close(found, zero, rtol=0, atol=0)
        assert length == 0


def test_a_budget_has_derivatives_also_at_its_cap_and_at_zero():
    def length(budget, tree):
        return climb(ascents.within_loss_budget(budget, 0.1), tree, jitted=False)[1]

    assert jax.grad(length)(9.0, TREE) == 0  # at the cap
    np.testing.assert_allclose(jax.grad(length)(0.1, TREE), 1 / np.linalg.norm(flat(TREE)), rtol=1e-6)
    for tree in (scaled(1e-30), scaled(0.0)):
        assert np.isfinite(jax.grad(length)(0.3, tree))


def test_budgets_in_half_precision_and_under_vmap_are_those_of_each_alone():
    low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), {"kernel": TREE["kernel"]})
    ascent = ascents.within_loss_budget(0.3, 10.0)
    found, length = climb(ascent, low)
    assert found["kernel"].dtype == jnp.bfloat16 and length.dtype == jnp.float32
    np.testing.assert_allclose(np.vdot(flat(found), flat(low)), 0.3, rtol=1e-2)
    stacked = jnp.stack([x * TREE["kernel"] for x in SCALES])
    together = jax.vmap(lambda x: climb(ascent, x, jitted=False)[0])(stacked)
    np.testing.assert_allclose(together, [climb(ascent, x)[0] for x in stacked], rtol=1e-6)


def test_a_complex_leaf_rises_by_the_budget():
    gradient = jnp.array([1.0 + 2.0j, -0.5j])
    found, _ = climb(ascents.within_loss_budget(0.3, 10.0), jnp.conj(gradient))
    np.testing.assert_allclose(jnp.sum(gradient * found).real, 0.3, rtol=1e-6)


def test_a_short_gradient_makes_lesam_sam():
    run = [
        one_step(m, init_params(), make_batch())[0] for m in (optax_sam.lesam(9.0, 0.1), optax_sam.sam(0.1))
    ]
    assert_trees_close(*run, rtol=1e-6)


def test_a_budget_falls_along_a_cosine_to_zero_at_the_end():
    budget = jax.jit(jax.vmap(schedules.cosine_at_end(0.35, 200)))
    found = np.asarray(budget(jnp.arange(300)))
    np.testing.assert_array_equal(found[:161], np.float32(0.35))
    fall = 0.175 * (1 + np.cos(np.pi * np.arange(41) / 40))
    np.testing.assert_allclose(found[160:201], fall, atol=1e-7)
    assert not found[200:].any()
    whole = schedules.cosine_at_end(jnp.array(2.0), 10, start=0.0)
    np.testing.assert_allclose([whole(t) for t in (0, 5, 10)], [2, 1, 0], atol=1e-6)
    sudden = schedules.cosine_at_end(2.0, 10, start=1.0)
    np.testing.assert_allclose([sudden(t) for t in (9, 10, 11)], [2, 0, 0], atol=1e-6)
    late = schedules.cosine_at_end(2.0, 100, start=0.29)  # 0.29 * 100 is a little less than 29
    np.testing.assert_allclose(late(29), 2, rtol=1e-6)
    assert late(30) < late(29)
    between = schedules.cosine_at_end(2.0, 10, start=0.85)  # from 8.5 on
    np.testing.assert_allclose([between(8), between(9)], [2, 1.5], rtol=1e-5)


# The steps from one perturbed step to the next.


def lengths(gate, steps, ascent=None):
    """The length of each step's perturbation; 0 where there is none."""
    ascent = ascent or ascents.chained(ascents.to_radius(0.01), ascents.times_interval())
    method = optax_sam.sharpness_aware(ascent, gate=gate)
    tx = optax.chain(method, optax.sgd(0.01))

    def step(carry, _):
        carry = optax_sam.step(tx, losses)(*carry, make_batch())[:2]
        return carry, optax_sam.info(carry[1])["perturbation_norm"]

    found = jax.jit(lambda: jax.lax.scan(step, (init_params(), tx.init(init_params())), length=steps)[1])()
    return np.nan_to_num(np.asarray(found))


def test_the_radius_grows_with_the_interval_of_the_gate():
    np.testing.assert_allclose(lengths(gates.every(3), 9), [0.01, 0, 0, 0.03, 0, 0, 0.03, 0, 0], rtol=1e-5)
    np.testing.assert_allclose(lengths(gates.always(), 3), 0.01, rtol=1e-5)
    np.testing.assert_allclose(lengths(gates.after(2), 4), [0, 0, 0.01, 0.01], rtol=1e-5)


def test_behind_any_gate_the_radii_add_up_to_one_for_each_step():
    found = lengths(gates.with_probability(0.3), 40) / 0.01
    (paid,) = np.nonzero(found)
    assert 3 < len(paid) < 20
    np.testing.assert_allclose(found.sum(), 1 + paid[-1] - paid[0], rtol=1e-5)


def test_several_steps_of_one_ascent_are_alike():
    once = ascents.chained(ascents.to_radius(0.001), ascents.times_interval())
    found = lengths(gates.every(4), 9, ascents.repeated(once, 2))
    np.testing.assert_allclose(found[[0, 4, 8]], [0.002, 0.008, 0.008], rtol=1e-3)


def test_slices_and_draws_know_the_interval_of_their_step():
    inner = optax_sam.sharpness_aware(
        ascents.chained(ascents.to_radius(0.01), ascents.times_interval()), gate=gates.every(2)
    )
    for method in (optax_sam.per_microbatch(inner, 4), optax_sam.over_draws(inner, 2, optax_sam.tilted(0.0))):
        tx = optax.chain(method, optax.sgd(0.01))
        step, run = jax.jit(optax_sam.step(tx, losses)), (init_params(), tx.init(init_params()))
        for _ in range(3):
            *run, _ = step(*run, make_batch())
        assert tuple(run[1][0].ascent[1]) == (2, 2)
        np.testing.assert_allclose(optax_sam.info(run[1])["perturbation_norm"], 0.02, rtol=1e-5)


def test_an_interval_without_a_count_is_refused():
    ascent = ascents.times_interval()
    with pytest.raises(ValueError, match=r"pass the step count, update\(..., step=step\)"):
        ascent.update(TREE, ascent.init(TREE), TREE)


# Polyak's step.


def polyak_step(params, batch, rho=0.1, max_step=1.0, bound=0.0, fn=losses, weights=None):
    """By hand: `(gamma, g')` of SAM-SPS."""

    def mean(p):
        found = fn(p, batch)
        return jnp.mean(found) if weights is None else jnp.vdot(weights, found) / jnp.sum(weights)

    g = jax.grad(mean)(params)
    e = jax.tree.map(lambda x: rho * x / optax.tree.norm(g), g)
    loss, gs = jax.value_and_grad(mean)(jax.tree.map(jnp.add, params, e))
    square = optax.tree.vdot(gs, gs)
    gamma = jnp.clip((loss - bound - optax.tree.vdot(gs, e)) / square, 0, max_step)
    return gamma, gs


def sps(**arguments):
    return optax_sam.sam_sps(0.1, **arguments)


@pytest.mark.parametrize(
    ("arguments", "where"), [({}, "cap"), ({"max_step": 1e3}, "step"), ({"lower_bound": 9.0}, "zero")]
)
def test_a_polyak_step_is_bounded_from_both_sides(arguments, where):
    descent, _, _ = one_step(sps(**arguments), init_params(), make_batch())
    gamma, gs = polyak_step(
        init_params(),
        make_batch(),
        max_step=arguments.get("max_step", 1.0),
        bound=arguments.get("lower_bound", 0.0),
    )
    assert {"cap": gamma == 1, "step": 1 < gamma < 1e3, "zero": gamma == 0}[where]
    assert_trees_close(descent, jax.tree.map(lambda x: gamma * x, gs), rtol=1e-4, atol=1e-6)


def test_where_the_loss_is_a_parabola_polyaks_step_reaches_its_foot_without_a_perturbation():
    """Without a radius: `w - (w^2 / 2) / w^2 w`, half of the way, in every step."""
    tx = optax.chain(optax_sam.sam_sps(0.0), optax.sgd(1.0))
    step, w = (
        jax.jit(optax_sam.step(tx, lambda w, batch: 0.5 * jnp.sum(w**2) + 0 * batch)),
        jnp.array([3.0, -4.0]),
    )
    state = tx.init(w)
    for _ in range(3):
        w, state, _ = step(w, state, jnp.ones(4))
    np.testing.assert_allclose(w, [3 / 8, -0.5], rtol=1e-6)


@pytest.mark.parametrize("scale", [1e30, 1e-30])
def test_polyaks_step_is_as_long_for_a_loss_of_any_scale(scale):
    def steep(params, batch):
        return scale * losses(params, batch)

    descent, _, _ = one_step(sps(max_step=1e35), init_params(), make_batch(), loss_fn=steep)
    gamma, gs = polyak_step(init_params(), make_batch(), max_step=1e35)
    assert_trees_close(descent, jax.tree.map(lambda x: gamma * x, gs), rtol=1e-4, atol=1e-6)
    capped, _, _ = one_step(sps(max_step=0.5 / scale), init_params(), make_batch(), loss_fn=steep)
    assert_trees_close(capped, jax.tree.map(lambda x: 0.5 * x, gs), rtol=1e-4, atol=1e-6)


def test_polyaks_step_of_a_flat_loss_is_zero():
    descent, state, _ = one_step(
        sps(), init_params(), make_batch(), loss_fn=lambda p, b: 0 * losses(p, b) + 1
    )
    assert all(not x.any() for x in jax.tree.leaves(descent)) and optax_sam.finite(state)


def test_a_polyak_step_without_a_bound_of_a_zero_gradient_is_zero():
    w = jnp.array([-1.0, -2.0])
    tx = optax.chain(optax_sam.sam_sps(0.1, max_step=float("inf")), optax.sgd(1.0))
    flat = optax_sam.step(tx, lambda w, x: jax.nn.relu(x @ w) ** 2)
    np.testing.assert_array_equal(flat(w, tx.init(w), jnp.ones((2, 2)))[0], w)
    step = optax_sam.step(tx, lambda w, x: (x @ w) ** 2)
    np.testing.assert_array_equal(step(w, tx.init(w), jnp.ones((2, 2)), weights=jnp.zeros(2))[0], w)


def test_a_cap_may_be_infinite_in_a_schedule_too():
    for made in (
        lambda cap: optax_sam.lesam(0.3, max_rho=cap),
        lambda cap: optax_sam.sam_sps(max_step=cap),
        lambda cap: optax_sam.graphsam(max_leaf_norm=cap, refresh_steps=1),
    ):
        points = []
        for cap in (float("inf"), optax.constant_schedule(jnp.inf), lambda t: jnp.where(t < 0, 0.0, jnp.inf)):
            tx = optax.chain(made(cap), optax.sgd(0.1))
            params = init_params()
            points.append(optax_sam.step(tx, losses)(params, tx.init(params), make_batch())[0])
        assert all(same(points[0], point) for point in points[1:])


def same(one, other):
    return all(np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (one, other)), strict=True))


def test_a_schedule_may_give_the_step_itself():
    numbers = [optax_sam.sam_sps(rho, normalization=0.5) for rho in (lambda t: t, lambda t: t.astype(float))]
    params, batch = init_params(), make_batch()
    steps = [optax_sam.step(optax.chain(each, optax.sgd(1.0)), losses) for each in numbers]
    one, other = (
        step(params, optax.chain(each, optax.sgd(1.0)).init(params), batch)[0]
        for step, each in zip(steps, numbers, strict=True)
    )
    assert same(one, other)


def test_polyaks_step_refuses_a_gradient_that_is_not_of_its_loss():
    emphasized = selections.emphasized(lambda batch: jnp.arange(16.0))
    through = selections.through_outputs(losses, lambda outputs, batch: outputs)
    for pieces in (
        {"start": starts.reweighted(0.1, 0.01)},
        {"selection": emphasized},
        {"selection": through},
    ):
        method = sharpness_aware(ascents.to_radius(0.1), combination=combinations.polyak(), **pieces)
        tx = optax.chain(method, optax.sgd(1.0))
        params = init_params()
        with pytest.raises(ValueError, match=r"reads the loss .* changes the gradient alone: choose"):
            optax_sam.step(tx, losses)(params, tx.init(params), make_batch())


def test_slices_take_each_a_polyak_step_of_its_own_and_a_whole_step_in_parts_one():
    batch, params = make_batch(), init_params()
    whole = one_step(sps(max_step=1e3), params, batch)[0]
    in_parts = one_step(optax_sam.accumulated(sps(max_step=1e3), 4), params, batch)[0]
    assert_trees_close(in_parts, whole, rtol=1e-4, atol=1e-6)
    slices = [jax.tree.map(lambda x, i=i: x[4 * i : 4 * i + 4], batch) for i in range(4)]
    steps = [polyak_step(params, rows, max_step=1e3) for rows in slices]
    assert np.ptp([gamma for gamma, _ in steps]) > 0.1
    wanted = jax.tree.map(lambda *x: sum(x) / 4, *(jax.tree.map(lambda x, a=a: a * x, gs) for a, gs in steps))
    for loop in ("scan", "vmap"):
        found = one_step(optax_sam.per_microbatch(sps(max_step=1e3), 4, loop=loop), params, batch)[0]
        assert_trees_close(found, wanted, rtol=1e-3, atol=1e-6)


def test_polyaks_step_sees_weights_and_a_loss_scale_as_its_gradient_does():
    method, params, batch = sps(max_step=1e3), init_params(), make_batch()
    weights = jnp.arange(16.0)
    state = method.init(params)
    gamma, gs = polyak_step(params, batch, max_step=1e3, weights=weights)
    for scale in (None, 1024.0):
        _, grads, oracle = method.value_and_grad(losses)(
            params, batch, state=state, weights=weights, loss_scale=scale
        )
        descent, _ = method.update(grads, state, params, oracle=oracle)
        assert_trees_close(descent, jax.tree.map(lambda x: gamma * x, gs), rtol=1e-4, atol=1e-6)


def test_polyaks_step_of_complex_parameters_is_that_of_their_parts():
    def of_parts(p, batch):
        return jnp.sum((p["re"] - 1) ** 2 + p["re"] * p["im"] ** 2) + 0 * batch

    def of_complex(z, batch):
        return of_parts({"re": z.real, "im": z.imag}, batch)

    z = jnp.array([1.5 + 0.5j, 0.7 - 0.2j])
    parts = {"re": z.real, "im": z.imag}
    one, other = (
        one_step(sps(max_step=1e3), p, jnp.ones(16), loss_fn=fn)[0]
        for p, fn in ((z, of_complex), (parts, of_parts))
    )
    np.testing.assert_allclose(
        np.conj(one), np.asarray(other["re"]) + 1j * np.asarray(other["im"]), rtol=1e-5
    )


def test_polyaks_step_needs_the_loss_and_stands_behind_any_ascent():
    with pytest.raises(ValueError, match="grad_fn is given, but"):
        sps().update(init_params(), sps().init(init_params()), init_params(), grad_fn=lambda p: p)
    asam = optax_sam.sharpness_aware(
        ascents.to_radius(0.5, geometries.elementwise(0.01)), combination=combinations.polyak(1e3)
    )
    plain = one_step(optax_sam.asam(0.5), init_params(), make_batch())[0]
    found = one_step(asam, init_params(), make_batch())[0]
    np.testing.assert_allclose(np.diff(flat(found) / flat(plain)), 0, atol=1e-3)


def test_half_of_the_normalization_is_half_of_both_perturbations():
    norms = [
        optax_sam.info(one_step(m, init_params(), make_batch())[1])["perturbation_norm"]
        for m in (optax_sam.usam(0.1), optax_sam.sam(0.1), optax_sam.sam_sps(0.1, normalization=0.5))
    ]
    np.testing.assert_allclose(norms[2], (norms[0] + norms[1]) / 2, rtol=1e-5)


def test_under_vmap_runs_take_each_a_polyak_step_of_its_own():
    def one(shift):
        params = jax.tree.map(lambda x: x + shift, init_params())
        return one_step(sps(max_step=1e3), params, make_batch())[0]

    shifts = jnp.array([0.0, 0.3, -0.2])
    together = jax.vmap(one)(shifts)
    alone = jax.tree.map(lambda *x: jnp.stack(x), *map(one, shifts))
    assert_trees_close(together, alone, rtol=1e-4, atol=1e-6)
