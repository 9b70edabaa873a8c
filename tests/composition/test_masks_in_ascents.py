"""What `optax.masked` leaves out of an ascent is not perturbed, whatever stands around the mask."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_sam
from optax_sam import ascents

HERE, THERE = {"w": True, "b": False}, {"w": False, "b": True}
TO_RADIUS = ascents.to_radius(0.05)
UNIT = optax.scale(1.0)

NESTED = {
    "bare": lambda mask: optax.masked(TO_RADIUS, mask),
    "before": lambda mask: optax.chain(UNIT, optax.masked(TO_RADIUS, mask)),
    "behind": lambda mask: optax.chain(optax.masked(TO_RADIUS, mask), UNIT),
    "both": lambda mask: optax.chain(UNIT, optax.masked(TO_RADIUS, mask), UNIT),
    "clipped": lambda mask: optax.chain(optax.masked(TO_RADIUS, mask), optax.clip_by_global_norm(0.05)),
    "named": lambda mask: optax.named_chain(("mask", optax.masked(TO_RADIUS, mask)), ("unit", UNIT)),
    "chained": lambda mask: ascents.chained(optax.masked(TO_RADIUS, mask), UNIT),
    "conditional": lambda mask: optax.conditionally_transform(
        optax.masked(TO_RADIUS, mask), lambda step: step >= 0
    ),
    "conditionally_masked": lambda mask: optax.conditionally_mask(
        optax.masked(TO_RADIUS, mask), lambda step: step >= 0
    ),
    "injected": lambda mask: optax.inject_hyperparams(
        lambda rho: optax.chain(optax.masked(ascents.to_radius(rho), mask), UNIT)
    )(rho=0.05),
    "chain_in_mask": lambda mask: optax.chain(optax.masked(optax.chain(TO_RADIUS, UNIT), mask), UNIT),
    "mask_in_mask": lambda mask: optax.chain(optax.masked(optax.masked(TO_RADIUS, mask), True), UNIT),
    "mask_of_a_function": lambda mask: optax.chain(optax.masked(TO_RADIUS, lambda params: mask), UNIT),
    "in_steps": lambda mask: ascents.repeated(
        optax.chain(optax.masked(ascents.to_radius(0.025), mask), UNIT), 2
    ),
    "steps_in_mask": lambda mask: optax.chain(
        optax.masked(ascents.repeated(ascents.to_radius(0.025), 2), mask), UNIT
    ),
    "of_optax": lambda mask: optax.masked(optax.scale(0.05), mask),
    "partition": lambda mask: optax.chain(
        optax.partition(
            {"near": TO_RADIUS, "none": optax.set_to_zero()},
            {name: "near" if here else "none" for name, here in mask.items()},
        ),
        UNIT,
    ),
}


def compiled(ascent):
    return optax.GradientTransformation(ascent.init, jax.jit(ascent.update))


NESTED |= {
    "compiled": lambda mask: compiled(optax.masked(TO_RADIUS, mask)),
    "compiled, of optax": lambda mask: compiled(optax.masked(optax.scale(0.05), mask)),
    "compiled twice": lambda mask: compiled(compiled(optax.masked(optax.scale(0.05), mask))),
}


def losses(params, batch):
    return (params["w"] + 100 * params["b"]) * batch


def seen_by(ascent, **pieces):
    """The last point at which the losses were seen, and the step's diagnostics."""
    method = optax_sam.sharpness_aware(ascent, **pieces)
    params = {"w": jnp.asarray(1.0), "b": jnp.asarray(1.0)}
    points = []

    def watched(params, batch):
        jax.debug.callback(lambda w, b: points.append((float(w), float(b))), params["w"], params["b"])
        return losses(params, batch)

    @jax.jit
    def step(params, state):
        _, grads, oracle = method.value_and_grad(watched)(params, jnp.ones(2), state=state)
        return method.update(grads, state, params, oracle=oracle)

    _, state = step(params, method.init(params))
    jax.effects_barrier()
    return points[-1], optax_sam.info(state)


@pytest.mark.parametrize("name", NESTED)
def test_what_a_mask_leaves_out_is_not_perturbed_under_any_nesting(name, as_optax_promotes):
    """The gradient of `b` is a hundred times that of `w`: any part of it would show."""
    point, info = seen_by(NESTED[name](HERE))
    np.testing.assert_allclose(point, (1.05, 1.0), rtol=1e-6)
    np.testing.assert_allclose(info["perturbation_norm"], 0.05, rtol=1e-6)
    assert info["gradients"] == (3 if "steps" in name else 2)


@pytest.mark.parametrize("chain", [optax.chain, ascents.chained])
@pytest.mark.parametrize("behind", [(), (UNIT,)], ids=["alone", "behind"])
def test_each_of_two_masks_perturbs_its_own_part(chain, behind):
    point, _ = seen_by(
        chain(optax.masked(TO_RADIUS, HERE), optax.masked(ascents.to_radius(0.1), THERE), *behind)
    )
    np.testing.assert_allclose(point, (1.05, 1.1), rtol=1e-6)


BEHIND = {
    "in_proportion": (ascents.in_proportion(0.5), 0.025),
    "kept": (ascents.keep_random_fraction(1.0), 0.05),
    "within": (ascents.within_leaf_norm(0.01), 0.01),
    "chained": (ascents.chained(ascents.in_proportion(0.5), ascents.within_leaf_norm(1.0)), 0.025),
    "scaled": (optax.scale(0.5), 0.025),
}


@pytest.mark.parametrize("chain", [optax.chain, ascents.chained])
@pytest.mark.parametrize("name", BEHIND)
def test_what_changes_the_size_behind_a_mask_brings_nothing_back(name, chain):
    """It is given every leaf, and says of none how far."""
    behind, moved = BEHIND[name]
    point, _ = seen_by(chain(optax.masked(TO_RADIUS, HERE), behind))
    np.testing.assert_allclose(point, (1 + moved, 1.0), rtol=1e-6)


ONLY_IN_PROPORTION = {
    "rounded": (ascents.rounded_by_chance(), 0.1),
    "times the interval": (ascents.times_interval(), 0.1),
    "within": (ascents.within_leaf_norm(0.01), 0.01),
    "kept": (ascents.keep_random_fraction(1.0), 0.1),
    "chained": (ascents.chained(ascents.within_leaf_norm(0.01), ascents.rounded_by_chance()), 0.01),
}


@pytest.mark.parametrize("chain", [optax.chain, ascents.chained])
@pytest.mark.parametrize("name", ONLY_IN_PROPORTION)
def test_behind_a_masked_ascent_without_a_ball_the_hidden_leaf_stays(name, chain):
    """The gradient of `w` is 1, and that of `b` is 100."""
    behind, moved = ONLY_IN_PROPORTION[name]
    point, _ = seen_by(chain(optax.masked(ascents.in_proportion(0.1), HERE), behind))
    np.testing.assert_allclose(point, (1 + moved, 1.0), rtol=1e-6)


@pytest.mark.parametrize("name", ONLY_IN_PROPORTION)
def test_before_a_masked_ascent_without_a_ball_the_hidden_leaf_stays(name):
    before, _ = ONLY_IN_PROPORTION[name]
    point, _ = seen_by(ascents.chained(before, optax.masked(ascents.in_proportion(0.1), HERE)))
    assert point[0] > 1 and point[1] == 1.0


def test_noise_in_a_part_stays_in_it_when_it_is_rounded():
    ascent = ascents.chained(optax.masked(ascents.in_proportion(0.01), HERE), ascents.rounded_by_chance())
    noise = {"direction": optax_sam.directions.gaussian(), "start": optax_sam.starts.ahead()}
    point, _ = seen_by(ascent, **noise)
    assert point[0] != 1.0 and point[1] == 1.0


HEAD = {"head": True, "bias": False, "kernel": False}
KERNELS_FURTHER = optax.stateless_with_tree_map(lambda e, w: 2 * e if w.ndim > 1 else e)
KERNELS_IN_GROUPS = optax.partition(
    {"near": optax.scale(2.0), "far": optax.identity()}, {"head": "near", "bias": "far", "kernel": "near"}
)


def moved_by(ascent):
    """The perturbation of each leaf, where the gradient is twice the parameters."""
    params = {"head": jnp.asarray([3.0, 4.0]), "bias": jnp.asarray([5.0]), "kernel": jnp.ones((2, 2))}
    method = optax_sam.sharpness_aware(ascent)
    oracle = optax_sam.Oracle(lambda p, batch: sum(jnp.sum(x**2) for x in p.values()) * batch, jnp.ones(2))
    descent, _ = method.update(params, method.init(params), params, oracle=oracle)
    return {name: np.asarray(descent[name]) / 2 - np.asarray(params[name]) for name in params}


@pytest.mark.parametrize("chain", [optax.chain, ascents.chained])
@pytest.mark.parametrize("ascent", [ascents.to_radius(0.1), ascents.in_proportion(0.01)])
def test_a_leaf_that_passes_unchanged_does_not_show_that_the_mask_is_alone(ascent, chain):
    """Kernels alone are changed behind the mask or before it: the hidden bias comes through as it was."""
    on_head = optax.masked(ascent, HEAD)
    for members in ((on_head, KERNELS_FURTHER), (KERNELS_FURTHER, on_head)):
        found = moved_by(chain(*members))
        np.testing.assert_allclose(found["head"], (0.06, 0.08), rtol=1e-4)
        assert not np.any(found["bias"]) and not np.any(found["kernel"])


def test_a_second_mask_over_what_the_first_leaves_out_is_refused():
    params = dict.fromkeys("wbc", jnp.asarray(1.0))
    mask, wider = ({name: name in names for name in "wbc"} for names in ("w", "wb"))
    ascent = optax.chain(optax.masked(TO_RADIUS, mask), optax.masked(optax.clip(0.01), wider))
    method = optax_sam.sharpness_aware(ascent)
    with pytest.raises(ValueError, match="put optax.masked outermost"):
        method.update(params, method.init(params), params, grad_fn=lambda p: p)


def test_a_mask_in_a_mask_beside_another_is_refused():
    """The masks in a mask may be two that are seen, and the one beside it may hold Optax alone."""
    params = dict.fromkeys("wbc", jnp.asarray(1.0))
    inner, wider, rest = ({name: name in names for name in "wbc"} for names in ("w", "wb", "c"))
    near = optax.masked(optax.chain(TO_RADIUS, optax.masked(TO_RADIUS, inner)), wider)
    method = optax_sam.sharpness_aware(optax.chain(near, optax.masked(optax.scale(0.1), rest)))
    with pytest.raises(ValueError, match="put optax.masked outermost"):
        method.update(params, method.init(params), params, grad_fn=lambda p: p)


SLOPES = np.array([1.0, 100.0])
OF_ALL = {
    "set to zero": (lambda: (optax.masked(optax.set_to_zero(), THERE), TO_RADIUS), (0.05, 0.0)),
    "scaled before": (
        lambda: (optax.masked(optax.scale(200.0), HERE), TO_RADIUS),
        0.05 * np.array([200, 100]) / np.hypot(200, 100),
    ),
    "scaled behind": (
        lambda: (TO_RADIUS, optax.masked(optax.scale(30.0), HERE)),
        0.05 * SLOPES * np.array([30, 1]) / np.hypot(*SLOPES),
    ),
    "shortened behind": (
        lambda: (TO_RADIUS, optax.masked(ascents.within_leaf_norm(0.01), THERE)),
        (0.05 / np.hypot(*SLOPES), 0.01),
    ),
}


@pytest.mark.parametrize("chain", [optax.chain, ascents.chained])
@pytest.mark.parametrize("name", OF_ALL)
def test_an_ascent_beside_a_mask_sees_every_leaf(name, chain):
    """None is left out: the mask says what is done with a part beside."""
    make, moved = OF_ALL[name]
    point, _ = seen_by(chain(*make()))
    np.testing.assert_allclose(np.array(point) - 1, moved, rtol=1e-4, atol=1e-7)


def test_an_ascent_of_the_flattened_part_perturbs_that_part():
    flat = optax.masked(optax.flatten(TO_RADIUS), HERE)
    np.testing.assert_allclose(seen_by(flat)[0], (1.05, 1.0), rtol=1e-6)


def test_what_stands_around_a_mask_without_a_state_of_its_own_is_seen():
    inner = optax.masked(TO_RADIUS, HERE)

    def update(updates, state, params=None, **extra_args):
        return inner.update(optax.tree.scale(2.0, updates), state, params, **extra_args)

    doubled = optax.GradientTransformationExtraArgs(inner.init, update)
    np.testing.assert_allclose(seen_by(doubled)[0], (1.05, 1.0), rtol=1e-6)


def test_a_group_of_a_partition_is_no_mask():
    point, _ = seen_by(
        optax.partition({"near": TO_RADIUS, "far": optax.scale(0.5)}, {"w": "near", "b": "far"})
    )
    np.testing.assert_allclose(point, (1.05, 51.0), rtol=1e-6)


def test_a_compiled_mask_leaves_out_in_every_trace():
    """In a second trace nobody tells what the mask shows: JAX has kept the first."""
    ascent = compiled(optax.masked(TO_RADIUS, HERE))
    for _ in range(2):
        np.testing.assert_allclose(seen_by(ascent)[0], (1.05, 1.0), rtol=1e-6)


def test_a_mask_that_leaves_nothing_out_perturbs_everything():
    for ascent in (UNIT, compiled(UNIT)):
        point, _ = seen_by(optax.masked(ascent, dict.fromkeys("wb", True)))
        np.testing.assert_allclose(point, (2.0, 101.0), rtol=1e-6)


def around(ascent):
    """A function around a mask, which changes what the mask hands on."""

    def update(updates, state, params=None):
        return optax.tree.scale(2.0, ascent.update(updates, state, params)[0]), state

    return optax.GradientTransformation(ascent.init, update)


@pytest.mark.parametrize(
    "ascent",
    [
        around(optax.masked(optax.scale(0.05), HERE)),
        compiled(around(optax.masked(optax.scale(0.05), HERE))),
        optax.chain(optax.masked(optax.scale(0.05), HERE), UNIT),
        optax.chain(optax.masked(TO_RADIUS, HERE), optax.masked(optax.scale(0.1), THERE), UNIT),
        ascents.chained(optax.masked(optax.scale(0.05), HERE), UNIT),
        ascents.chained(optax.masked(optax.scale(0.1), HERE), ascents.rounded_by_chance()),
        optax.chain(optax.masked(optax.scale(0.1), HERE), ascents.within_leaf_norm(1.0)),
        ascents.chained(ascents.keep_random_fraction(1.0), optax.masked(optax.scale(0.1), HERE)),
        ascents.chained(optax.masked(optax.scale(0.1), HERE), ascents.in_proportion(1.0)),
        ascents.chained(optax.masked(ascents.within_leaf_norm(1.0), THERE), ascents.in_proportion(0.1)),
        ascents.chained(compiled(optax.masked(optax.scale(0.1), HERE)), ascents.times_interval()),
    ],
)
def test_what_nobody_can_tell_is_refused(ascent):
    with pytest.raises(ValueError, match=r"^ascent has .* put optax\.masked outermost, .* optax\.partition"):
        seen_by(ascent)


@pytest.mark.parametrize(
    "ascent",
    [
        optax.chain(optax.masked(TO_RADIUS, HEAD), KERNELS_IN_GROUPS),
        optax.chain(optax.masked(optax.scale(0.1), HEAD), KERNELS_FURTHER),
        optax.chain(KERNELS_FURTHER, optax.masked(optax.scale(0.1), HEAD)),
    ],
)
def test_what_nobody_can_tell_is_refused_though_a_leaf_passes_unchanged(ascent):
    with pytest.raises(ValueError, match=r"^ascent has .* put optax\.masked outermost, .* optax\.partition"):
        moved_by(ascent)


def test_a_function_that_bears_the_name_of_a_mask_is_none():
    inner = optax.masked(optax.scale(0.1), HEAD)

    @functools.wraps(inner.update)
    def update(updates, state, params=None, **extra_args):
        found, state = inner.update(updates, state, params, **extra_args)
        return KERNELS_FURTHER.update(found, optax.EmptyState(), params)[0], state

    with pytest.raises(ValueError, match=r"put optax\.masked outermost"):
        moved_by(optax.GradientTransformationExtraArgs(inner.init, update))


@pytest.mark.parametrize("wrap", [compiled, ascents.chained, lambda mask: ascents.repeated(mask, 1)])
def test_a_mask_that_is_outermost_may_hold_groups_and_transformations_of_optax(wrap):
    groups = optax.partition({"near": TO_RADIUS, "far": optax.scale(0.5)}, {"w": "near", "b": "far"})
    np.testing.assert_allclose(seen_by(wrap(optax.masked(optax.scale(0.1), HERE)))[0], (1.1, 1.0), rtol=1e-6)
    np.testing.assert_allclose(seen_by(wrap(optax.masked(groups, True)))[0], (1.05, 51.0), rtol=1e-6)


def test_an_identity_in_a_group_stays_unperturbed_before_a_piece_that_says_not_how_far():
    groups = {"near": ascents.in_proportion(0.1), "none": optax.identity()}
    parts = optax.partition(groups, {"w": "near", "b": "none"})
    point, _ = seen_by(ascents.chained(parts, ascents.rounded_by_chance()))
    np.testing.assert_allclose(point, (1.1, 1.0), rtol=1e-6)


def test_a_mask_in_an_ascent_stands_inside_a_mask_around_the_method():
    """Leaves that the outer mask hides, and a prefix of the tree as a mask."""
    part = optax.chain(optax.masked(TO_RADIUS, {"w": True, "b": False}), UNIT)
    method = optax_sam.sharpness_aware(part)
    tx = optax.masked(method, {"w": {"x": True, "y": False}, "b": True})
    params = jax.tree.map(jnp.asarray, {"w": {"x": 1.0, "y": 1.0}, "b": {"x": 1.0, "y": 1.0}})

    def squares(params, batch):
        (x, y), (u, v) = (tuple(params[name].values()) for name in ("w", "b"))
        return (jnp.square(x) + 3 * y + 100 * jnp.square(u) + 7 * v) * batch

    state = tx.init(params)
    _, grads, oracle = method.value_and_grad(squares)(params, jnp.ones(2), state=state)
    descent, _ = tx.update(grads, state, params, oracle=oracle)
    wanted = {"w": {"x": 2.1, "y": 3.0}, "b": {"x": 200.0, "y": 7.0}}
    for found, right in zip(jax.tree.leaves(descent), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(found, right, rtol=1e-6)
