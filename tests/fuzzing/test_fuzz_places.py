"""Random places: masks nested among other ascents, nodes that compute arrays, steps under `pmap`."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import strategies as st
from jax import lax

import optax_sam
from optax_sam import ascents
from tests.fuzzing.settings import fuzz
from tests.registry import over

NAMES = ("a", "b", "c", "d")
SLOPES = {"a": 3.0, "b": -400.0, "c": 0.02, "d": 5.0}
COUNTS = over([6, 400], [6])


# Masks.


def around(inner: Any, how: str, mask: dict[str, bool]) -> Any:
    """An ascent with something around it that perturbs as far, where the mask lets it."""
    unit = optax.scale(1.0)
    of_one_axis = optax.stateless_with_tree_map(lambda e, w: 1.0 * e if w.ndim else e)
    wider = {name: mask[name] or name == "d" for name in NAMES}
    return {
        "before": lambda: optax.chain(unit, inner),
        "behind": lambda: optax.chain(inner, unit),
        "named": lambda: optax.named_chain(("one", unit), ("two", inner), ("three", unit)),
        "chained": lambda: ascents.chained(inner, unit),
        "condition": lambda: optax.conditionally_transform(inner, lambda step: step >= 0),
        "injected": lambda: optax.inject_hyperparams(lambda scale: optax.chain(inner, optax.scale(scale)))(
            scale=1.0
        ),
        "in a wider mask": lambda: optax.masked(inner, wider),
        "in no mask": lambda: optax.masked(inner, dict.fromkeys(NAMES, True)),
        "not finite": lambda: optax.apply_if_finite(inner, 3),
        "clipped": lambda: optax.chain(inner, optax.clip_by_global_norm(1.0)),
        "rounded": lambda: ascents.chained(inner, ascents.rounded_by_chance()),
        "kept": lambda: optax.chain(ascents.keep_random_fraction(1.0), inner),
        "of one alone": lambda: optax.chain(inner, of_one_axis),
        "before, of one alone": lambda: optax.chain(of_one_axis, inner),
    }[how]()


NESTINGS = (
    "before", "behind", "named", "chained", "condition", "injected", "in a wider mask", "in no mask",
    "not finite", "clipped", "rounded", "kept", "of one alone", "before, of one alone",
)  # fmt: skip


def check_mask(chosen: list[bool], hows: list[str], steps: int, by: str) -> list[str]:
    mask = dict(zip(NAMES, chosen, strict=True))
    is_ball = by != "in proportion"
    inner = ascents.to_radius(0.5 / steps) if is_ball else ascents.in_proportion(0.001 / steps)
    made = ascents.chained(optax.masked(inner, mask)) if by == "chained" else optax.masked(inner, mask)
    for how in hows:
        made = around(made, how, mask)
    if steps > 1:
        made = ascents.repeated(made, steps)
    method = optax_sam.sharpness_aware(made)
    params = dict.fromkeys(NAMES, jnp.asarray(1.0)) | {"c": jnp.ones(1)}
    seen: list[Any] = []

    def losses(params, batch):
        jax.debug.callback(lambda p: seen.append(jax.device_get(p)), params)
        return sum(SLOPES[name] * params[name] for name in NAMES) * batch

    oracle = optax_sam.Oracle(losses, jnp.ones(2))
    state = method.init(params)
    if hows and all(chosen) and not is_ball:  # The same as behind a mask of another transformation.
        with pytest.raises(ValueError, match="put optax.masked outermost"):
            method.update(params, state, params, oracle=oracle)
        return ["masks", "refused"]
    method.update(params, state, params, oracle=oracle)
    jax.effects_barrier()
    norm = np.sqrt(sum(SLOPES[name] ** 2 for name in NAMES if mask[name]))
    for name in NAMES:
        moved = SLOPES[name] * (0.5 / norm if is_ball else 0.001) if mask[name] else 0.0
        np.testing.assert_allclose(seen[-1][name], 1 + moved, rtol=1e-5, err_msg=f"{name} {hows}")
    return ["masks", f"{len(hows)} nestings"]


@pytest.mark.parametrize("draws", COUNTS)
def test_masks_nested_among_other_ascents_leave_out_what_they_leave_out(draws, as_optax_promotes):
    seen = fuzz(
        check_mask,
        draws,
        seed=3,
        chosen=st.lists(st.booleans(), min_size=4, max_size=4).filter(any),
        hows=st.lists(st.sampled_from(NESTINGS), max_size=4),
        steps=st.sampled_from([1, 1, 2, 3]),
        by=st.sampled_from(["itself", "chained", "in proportion"]),
    )
    assert seen["masks"] >= draws * 0.9


# Nodes.


class Computing:
    """A node that is taken for an array by whoever asks it."""

    function = staticmethod(jnp.exp)

    def __init__(self, raw):
        self.raw = raw

    def __jax_array__(self):
        return self.function(self.raw)


class Sine(Computing):
    function = staticmethod(jnp.sin)


class Variable(nnx.Variable):
    def get_value(self, **kwargs):
        return 3 * super().get_value(**kwargs)


class Parameter(nnx.Param):
    def get_value(self, **kwargs):
        return jnp.tanh(super().get_value(**kwargs))


for kind in (Computing, Sine):
    jax.tree_util.register_pytree_node(kind, lambda x: ((x.raw,), None), lambda _, xs, kind=kind: kind(*xs))

NODES = (lambda x: x, Computing, Sine, Variable, Parameter, nnx.BatchStat, nnx.Param)
METHODS = (
    optax_sam.sam,
    optax_sam.asam,
    optax_sam.vsam,
    optax_sam.pugd,
    optax_sam.momentum_sam,
    optax_sam.friendly_sam,
    optax_sam.eigen_sam,
    lambda: optax_sam.per_microbatch(optax_sam.gsam(), 2),
)


def check_nodes(kinds: list[int], method: int, measured: str) -> list[str]:
    params = {name: jnp.asarray([0.3 + n, -1.0]) for n, name in enumerate(NAMES)}
    boxed = {name: NODES[kind](params[name]) for name, kind in zip(NAMES, kinds, strict=True)}

    def losses(tree, batch):
        leaves = jax.tree.leaves(tree)
        return sum(jnp.sin(batch @ x) * (n + 1) for n, x in enumerate(leaves))

    batch = jnp.asarray([[1.0, 0.5], [-0.3, 2.0], [0.1, 0.2], [1.5, -1.0]])
    if measured == "norms":
        found = [optax_sam.per_example.gradient_norms(losses, tree, batch) for tree in (boxed, params)]
    elif measured == "curvature":
        found = [
            optax_sam.sharpness.trace(losses, tree, batch, num_products=3).value for tree in (boxed, params)
        ]
    else:
        tx = optax.chain(METHODS[method](), optax.sgd(0.1, momentum=0.9))
        step = optax_sam.step(tx, losses)
        found = [jax.tree.leaves(step(tree, tx.init(tree), batch)[0]) for tree in (boxed, params)]
    for one, other in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    return [measured]


@pytest.mark.parametrize("draws", COUNTS)
def test_nodes_that_compute_arrays_change_no_result(draws, as_optax_promotes):
    seen = fuzz(
        check_nodes,
        draws,
        seed=4,
        kinds=st.lists(st.integers(0, len(NODES) - 1), min_size=4, max_size=4),
        method=st.integers(0, len(METHODS) - 1),
        measured=st.sampled_from(["step", "step", "step", "norms", "curvature"]),
    )
    assert seen["step"] > draws / 4


# Devices.

WITH_GRAD_FN = (
    optax_sam.sam, optax_sam.asam, optax_sam.pugd, optax_sam.looksam, optax_sam.gsam, optax_sam.wsam,
    optax_sam.vsam, optax_sam.rst, optax_sam.friendly_sam, optax_sam.gradient_norm_penalty,
)  # fmt: skip


def check_pmap(method: int, devices: int, door: str, batch_seed: int) -> list[str]:
    rng = np.random.default_rng(batch_seed)
    batch = jnp.asarray(rng.normal(size=(devices, 3, 2)), jnp.float32)
    tx = optax.chain(WITH_GRAD_FN[method](), optax.sgd(0.1))
    params = jnp.asarray(rng.normal(size=2), jnp.float32)
    losses = lambda params, rows: jnp.sin(rows @ params)

    def grads_of(params, rows):
        return jax.grad(lambda params: jnp.mean(losses(params, rows)))(params)

    @functools.partial(jax.pmap, axis_name="batch", in_axes=(None, None, 0), devices=jax.devices()[:devices])
    def step(params, state, rows):
        mean = lambda params: lax.pmean(grads_of(params, rows), "batch")
        if door == "oracle":
            return tx.update(mean(params), state, params, oracle=optax_sam.Oracle(losses, rows))
        grad_fn = mean if door == "mean" else lambda params: grads_of(params, rows)
        return tx.update(mean(params), state, params, grad_fn=grad_fn)

    state = tx.init(params)
    if door != "mean":
        with pytest.raises(ValueError, match="drift apart"):
            step(params, state, batch)
        return [door]
    whole = lambda params: grads_of(params, batch.reshape(-1, 2))
    wanted, _ = tx.update(whole(params), state, params, grad_fn=whole)
    found = jax.device_get(step(params, state, batch)[0])
    for each in found:
        np.testing.assert_array_equal(each, found[0])
    np.testing.assert_allclose(found[0], wanted, rtol=1e-4, atol=1e-6)
    return [door]


@pytest.mark.parametrize("draws", over([5, 150], [5]))
def test_under_pmap_replicas_stay_alike_or_the_step_is_refused(draws, as_optax_promotes):
    seen = fuzz(
        check_pmap,
        draws,
        seed=5,
        method=st.integers(0, len(WITH_GRAD_FN) - 1),
        devices=st.sampled_from([2, 4]),
        door=st.sampled_from(["mean", "oracle", "alone"]),
        batch_seed=st.integers(0, 5),
    )
    assert seen["mean"] + seen["oracle"] + seen["alone"] >= draws * 0.9
