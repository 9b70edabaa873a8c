"""What `optax.masked` leaves out of an ascent is not perturbed, whatever stands around the mask."""

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


def seen_by(ascent, tx=None):
    """The last point at which the losses were seen, and the step's diagnostics."""
    method, params = optax_sam.sharpness_aware(ascent), {"w": jnp.asarray(1.0), "b": jnp.asarray(1.0)}
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


def test_a_second_mask_over_what_the_first_leaves_out_is_refused():
    params = dict.fromkeys("wbc", jnp.asarray(1.0))
    mask, wider = ({name: name in names for name in "wbc"} for names in ("w", "wb"))
    ascent = optax.chain(optax.masked(TO_RADIUS, mask), optax.masked(optax.clip(0.01), wider))
    method = optax_sam.sharpness_aware(ascent)
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
    ],
)
def test_what_nobody_can_tell_is_refused(ascent):
    with pytest.raises(ValueError, match=r"put optax\.masked outermost, .* optax\.partition"):
        seen_by(ascent)


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
