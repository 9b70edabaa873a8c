"""The references that choose entries or examples, draw noise or are optimizers, on known numbers."""

import numpy as np
import pytest

from . import examples as x
from . import masks as k
from . import network
from . import noise as n
from . import optimizers as o
from .network import make_problem
from .sam import sam
from .trees import add, filter_norms, flatten, leaves, norm, scale, subtract, tree_map, unflatten

PARAMS, BATCHES, *_ = make_problem(0)
STEPS, SIZE = len(BATCHES), 66
BASE = {"lr": 0.05, "momentum": 0.9, "weight_decay": 1e-3}
SAM, SGD = sam(PARAMS, BATCHES, **BASE), sam(PARAMS, BATCHES, rho=0.0, **BASE)
RNG = np.random.default_rng(2)
NORMALS, MORE_NORMALS = (
    [tree_map(lambda leaf: RNG.normal(size=leaf.shape), PARAMS) for _ in BATCHES] for _ in range(2)
)
UNIFORMS = [tree_map(lambda leaf: RNG.random(leaf.shape), PARAMS) for _ in BATCHES]


def assert_same(a, b):
    for one, other in zip(a["params"], b["params"], strict=True):
        np.testing.assert_allclose(flatten(one), flatten(other), rtol=1e-10, atol=1e-13)


def count(mask):
    return int(flatten(mask).sum())


# Masks.


def test_masks_on_values_worked_out_by_hand():
    tree = {"a": np.array([3.0, 1.0]), "b": {"kernel": np.array([[5.0, 0.0], [4.0, 1.0], [6.0, 1.0]])}}
    assert flatten(k.largest_entries(tree, 3)).tolist() == [0, 0, 1, 0, 1, 0, 1, 0]
    assert flatten(k.largest_entries(tree, 5)).tolist() == [1, 1, 1, 0, 1, 0, 1, 0]
    assert flatten(k.largest_leaves(tree, 5.9)).tolist() == [0, 0, 1, 1, 1, 1, 1, 1]
    assert count(k.largest_leaves(tree, 6.1)) == 8 and count(k.largest_leaves(tree, 0)) == 0
    masks = k.fisher_mask(tree, 0.5, "1:2")
    assert masks["a"].all() and masks["b"]["kernel"].astype(int).tolist() == [[1, 0], [0, 1], [1, 1]]
    image = np.arange(2 * 3 * 4 * 5.0).reshape(2, 3, 4, 5)
    mask = k.largest_in_groups(image, 1, 8)
    assert mask.shape == image.shape and mask.sum() == 3 * 5
    assert mask[0, 1, 3].all() and mask[1, 0, 3].all() and mask[1, 2, 3].all()
    np.testing.assert_array_equal(flatten(unflatten(np.arange(8.0), tree)), np.arange(8.0))


@pytest.mark.parametrize(
    ("pattern", "kept"), [("unstructured", 33), ("structured", None), ("2:4", 10 + 21 + 15)]
)
def test_fisher_masks_come_from_the_first_examples_and_hold_after_the_step(pattern, kept):
    run = k.sparse_sam(PARAMS, BATCHES, sparsity=0.5, refresh_steps=5, num_samples=4, pattern=pattern, **BASE)
    assert count(run["mask_used"][0]) == 0 and run["perturbation_norm"][0] == 0
    for t in range(STEPS):
        masked = flatten(run["mask_used"][t]) * flatten(run["grads"][t])
        wanted = 0.05 * masked / run["grad_norm"][t]
        np.testing.assert_allclose(flatten(run["perturbation"][t]), wanted)
        if t:
            assert run["mask_used"][t] is run["mask"][t - 1]
        if t % 5:
            assert run["mask"][t] is run["mask"][t - 1] and np.isnan(flatten(run["scores"][t])).all()
            continue
        rows = [network.gradient([PARAMS, *run["params"]][t], BATCHES[t], row) for row in np.eye(12)[:4]]
        fisher = np.mean([flatten(row) ** 2 for row in rows], axis=0)
        np.testing.assert_allclose(flatten(run["scores"][t]), fisher)
        mask = flatten(run["mask"][t])
        if pattern == "unstructured":
            assert fisher[mask].min() > fisher[~mask].max()
        assert count(run["mask"][t]) == kept or kept is None
        if pattern == "structured":
            parts = [leaf.all() for leaf in leaves(run["mask"][t])]
            assert parts == [leaf.any() for leaf in leaves(run["mask"][t])] and mask.sum() >= 33
    every_step = k.fisher_mask_sam(PARAMS, BATCHES, sparsity=0.0, refresh_steps=1, **BASE)
    np.testing.assert_allclose(every_step["perturbation_norm"], 0.05 * (np.arange(STEPS) > 0))


def test_dynamic_masks_drop_small_gradients_and_grow_by_the_uniforms():
    first = k.largest_entries(UNIFORMS[-1], 33)
    run = k.sparse_sam(
        PARAMS, BATCHES, sparsity=0.5, mask="dynamic", refresh_steps=4, drop_rate=0.6, total_steps=40,
        first_mask=first, uniforms=UNIFORMS, **BASE,
    )  # fmt: skip
    assert run["mask_used"][0] is first
    for t in range(0, STEPS, 4):
        dropped = 0.3 * (1 + np.cos(np.pi * t / 40))
        grow = int(33 * dropped)
        keep = 33 - grow
        before, after = flatten(run["mask_used"][t]), flatten(run["mask"][t])
        g, u = np.abs(flatten(run["grads"][t])), flatten(UNIFORMS[t])
        stayed, came = before & after, ~before & after
        if before.sum() >= keep:
            assert (stayed.sum(), came.sum()) == (keep, grow)
            assert g[stayed].min() > g[before & ~after].max()
        assert u[came].min() > u[~before & ~after].max()
    assert k.dynamic_rates(0, 100, 0.2, 0.5, 10) == (60, 20)
    assert k.dynamic_rates(10, 100, 0.2, 0.5, 10) == (80, 0)


# Examples.


def test_largest_scores_are_chosen_from_real_rows_of_every_stratum():
    scores = np.array([3.0, 9.0, 9.0, 1.0, 5.0, np.nan, 7.0, 2.0])
    real = np.arange(8) != 5
    assert x.positions_of_largest(scores, real, 0.4).tolist() == [1, 2, 6]
    assert x.positions_of_largest(scores, real, 0.5, strata=2).tolist() == [1, 2, 4, 6]
    assert x.positions_of_largest(scores, real, 1.0).tolist() == [0, 1, 2, 3, 4, 6, 7]
    assert x.positions_of_largest(np.ones(8), real, 0.7).tolist() == [0, 1, 2, 3, 4]


def test_esam_keeps_whole_leaves_and_descends_on_what_the_perturbation_makes_worst():
    coins = [tree_map(lambda leaf: RNG.random() < 0.6, PARAMS) for _ in BATCHES]
    coins[3] = tree_map(lambda leaf: False, PARAMS)
    run = x.esam(PARAMS, BATCHES, coins=coins, rho=0.1, weight_fraction=0.8, strata=2, **BASE)
    points = [PARAMS, *run["params"]]
    for t in range(STEPS):
        e, seen = run["perturbation"][t], run["seen"][t]
        kept = [bool(part.any()) for part in leaves(e)]
        assert kept == leaves(coins[t])
        np.testing.assert_allclose(norm(e), 0.125 * any(kept))
        at = add(points[t], e)
        increases = network.losses(at, BATCHES[t]) - network.losses(points[t], BATCHES[t])
        for part in (np.arange(6), np.arange(6, 12)):
            inside = np.isin(part, seen)
            assert inside.sum() == 3 and increases[part[inside]].min() >= increases[part[~inside]].max()
        wanted = network.gradient(at, BATCHES[t], np.isin(np.arange(12), seen).astype(float))
        np.testing.assert_allclose(flatten(run["descent"][t]), flatten(wanted), atol=1e-15)
    assert np.isnan(run["perturbed_loss"]).all() and np.isfinite(run["perturbed_grad_norm"]).all()


def test_padding_is_never_chosen():
    weights = [np.where(np.arange(12) % 3 == t % 3, 0.0, 1.0 + np.arange(12)) for t in range(STEPS)]
    spoiled = [{name: leaf.astype(float) for name, leaf in batch.items()} for batch in BATCHES]
    for batch, w in zip(spoiled, weights, strict=True):
        batch["image"][w == 0], batch["label"] = np.nan, batch["label"].astype(int)
    for method, own in [
        (x.esam, {"weight_fraction": 1.0, "example_fraction": 0.8}),
        (x.ksam, {"fraction": 0.4}),
        (x.reweighted_sam, {"noises": NORMALS, "weight": 2.0, "difference_step": 0.01}),
    ]:
        clean, run = (method(PARAMS, b, weights=weights, **own, **BASE) for b in (BATCHES, spoiled))
        assert_same(clean, run)
        assert np.isfinite(flatten(run["params"][-1])).all()
        for seen, w in zip(run.get("seen", []), weights, strict=False):
            assert (w[seen] > 0).all()


def test_ksam_is_sam_on_the_examples_of_largest_loss():
    run = x.ksam(PARAMS, BATCHES, fraction=0.25, **BASE)
    marks = [np.isin(np.arange(12), seen).astype(float) for seen in run["seen"]]
    assert_same(run, sam(PARAMS, BATCHES, weights=marks, **BASE))
    for losses, mark in zip(run["losses"], marks, strict=True):
        assert mark.sum() == 3 and losses[mark > 0].min() >= losses[mark == 0].max()


def test_reweighted_ascent_prefers_examples_of_steep_loss():
    signs = [tree_map(lambda leaf: RNG.choice([-1.0, 1.0], leaf.shape), PARAMS) for _ in BATCHES]
    run = x.reweighted_sam(PARAMS, BATCHES, noises=signs, weight=3.0, difference_step=1e-6, **BASE)
    for t, w in enumerate([PARAMS, *run["params"][:-1]]):
        rows = [flatten(network.gradient(w, BATCHES[t], row)) for row in np.eye(12)]
        slopes = np.abs(np.array(rows) @ flatten(signs[t]))
        np.testing.assert_allclose(run["slopes"][t], slopes, rtol=1e-4, atol=1e-5)
        p = np.exp(3.0 * run["slopes"][t])
        np.testing.assert_allclose(run["probabilities"][t], p / p.sum())
        np.testing.assert_allclose(flatten(run["grads"][t]), (p / p.sum()) @ np.array(rows), atol=1e-14)


# Noise.


def test_filters_share_the_last_index_and_small_leaves_are_one_filter():
    np.testing.assert_allclose(filter_norms(np.array([[3.0, 1.0], [4.0, 2.0]])), [[5.0, 5**0.5]])
    np.testing.assert_allclose(filter_norms(np.array([3.0, 4.0])), [5.0])
    assert filter_norms(np.array(-2.0)) == 2.0 and filter_norms(np.ones((2, 3, 4, 5))).shape == (1, 1, 1, 5)
    np.testing.assert_array_equal(n.filter_sums(np.array([3.0, 4.0])), [3.0, 4.0])
    np.testing.assert_array_equal(n.filter_sums(np.ones((2, 3, 4))), np.full((1, 1, 4), 6.0))
    assert np.array_equal(n.unit_filters(np.array([[0.0, -2.0]])), [[0.0, -1.0]])


def test_random_perturbation_mixes_the_halves_of_the_batch():
    still = {"noises": NORMALS, "noise_scale": 0.0}
    assert_same(n.random_perturbation(PARAMS, BATCHES, **still, **BASE), SGD)
    assert_same(n.random_perturbation(PARAMS, BATCHES, split_batch=False, **still, **BASE), SGD)
    assert_same(n.adaptive_random_perturbation(PARAMS, BATCHES, **still, **BASE), SGD)
    assert_same(n.adaptive_random_perturbation(PARAMS, BATCHES, alpha=0.5, **still, **BASE), SGD)
    lone = n.random_perturbation(PARAMS, BATCHES, noises=NORMALS, alpha=0.0, **BASE)
    halves = [{name: leaf[:6] for name, leaf in batch.items()} for batch in BATCHES]
    assert_same(lone, sam(PARAMS, halves, rho=0.0, **BASE))
    np.testing.assert_allclose(lone["loss"], sam(PARAMS, halves, rho=0.0, **BASE)["loss"])


@pytest.mark.parametrize("alpha", [1.0, 0.3])
def test_adaptive_noise_shrinks_where_gradients_were_large(alpha):
    own = {"noises": NORMALS, "noise_scale": 0.05, "alpha": alpha}
    plain = n.adaptive_random_perturbation(PARAMS, BATCHES, fisher_weight=0.0, **own, **BASE)
    assert_same(plain, n.random_perturbation(
        PARAMS, BATCHES, noises=NORMALS, noise_scale=0.05, alpha=alpha, split_batch=alpha < 1, **BASE
    ))  # fmt: skip
    run = n.adaptive_random_perturbation(PARAMS, BATCHES, fisher_decay=0.5, **own, **BASE)
    total = tree_map(np.zeros_like, PARAMS)
    for t, w in enumerate([PARAMS, *run["params"][:-1]]):
        e, z = run["perturbation"][t]["layer_0"], NORMALS[t]["layer_0"]
        sums = np.array([total["layer_0"]["kernel"][:, j].sum() for j in range(7)])
        norms = np.array([np.linalg.norm(w["layer_0"]["kernel"][:, j]) for j in range(7)])
        np.testing.assert_allclose(e["kernel"], 0.05 * norms * z["kernel"] / np.sqrt(1 + 0.1 * sums))
        length = np.linalg.norm(w["layer_0"]["bias"]) / np.sqrt(1 + 0.1 * total["layer_0"]["bias"])
        np.testing.assert_allclose(e["bias"], 0.05 * length * z["bias"])
        half = slice(None) if alpha == 1 else slice(6, None)
        part = {name: leaf[half] for name, leaf in BATCHES[t].items()}
        noisy = network.gradient(add(w, run["perturbation"][t]), part)
        total = add(scale(0.5, total), tree_map(np.square, noisy))


def test_random_sam_starts_at_filters_moved_by_their_own_length():
    run = n.random_sam(PARAMS, BATCHES, noises=NORMALS, rho=0.2, noise_scale=0.3, **BASE)
    np.testing.assert_allclose(run["perturbation_norm"], 0.2)
    for t, w in enumerate([PARAMS, *run["params"][:-1]]):
        for part, leaf in zip(leaves(run["start"][t]), leaves(w), strict=True):
            np.testing.assert_allclose(filter_norms(part), 0.3 * filter_norms(leaf))
        there = sam(add(w, run["start"][t]), [BATCHES[t]], rho=0.2)
        np.testing.assert_allclose(flatten(there["descent"][0]), flatten(run["descent"][t]), atol=1e-14)
        assert there["loss"][0] == pytest.approx(run["loss"][t])
        assert there["perturbed_loss"][0] == pytest.approx(run["perturbed_loss"][t])


# Optimizers.


def test_adasam_is_amsgrad_on_the_gradient_of_sam():
    run = o.adasam(PARAMS, BATCHES, learning_rate=0.01, b1=0.0, b2=0.0)
    steps = np.diff([flatten(tree) for tree in [PARAMS, *run["params"]]], axis=0)
    slopes = np.array([flatten(tree) for tree in run["descent"]])
    np.testing.assert_allclose(steps, -0.01 * slopes / np.maximum.accumulate(np.abs(slopes)), atol=1e-15)
    floor = o.adasam(PARAMS, BATCHES, learning_rate=5.0, b1=0.9, epsilon=10.0)
    flat = sam(PARAMS, BATCHES, lr=5.0 / 10 * 0.1, momentum=0.9)
    assert_same(floor, flat)


def test_bsam_of_one_precision_is_momentum_and_its_precision_follows_the_gradients():
    shards = [[tree_map(np.zeros_like, PARAMS)] for _ in BATCHES]
    own = {"num_examples": 48, "noises": shards, "num_microbatches": 1, "rho": 0.0}
    run = o.bsam(PARAMS, BATCHES, b2=1.0, learning_rate=0.5, **own)
    assert_same(run, sam(PARAMS, BATCHES, rho=0.0, lr=0.05, momentum=0.9, weight_decay=40 / 192))
    shards = [list(pair) for pair in zip(NORMALS, MORE_NORMALS, strict=True)]
    run = o.bsam(PARAMS, BATCHES, num_examples=48, noises=shards, num_microbatches=2, rho=0.3, b2=0.7)
    s, m, w = np.ones(SIZE), np.zeros(SIZE), flatten(PARAMS)
    for t in range(STEPS):
        halves = [
            {name: leaf[rows] for name, leaf in BATCHES[t].items()} for rows in np.split(np.arange(12), 2)
        ]

        def gradient(at, half):
            return flatten(network.gradient(unflatten(at, PARAMS), half))

        firsts = [gradient(w + flatten(z) / np.sqrt(192 * s), half)
                  for z, half in zip(shards[t], halves, strict=True)]  # fmt: skip
        seconds = [gradient(w + 0.3 * g / s, half) for g, half in zip(firsts, halves, strict=True)]
        m = 0.9 * m + 0.1 * (np.mean(seconds, axis=0) + 40 / 192 * w)
        w = w - 0.5 * m / s
        s = 0.7 * s + 0.3 * (np.sqrt(s) * np.mean(np.abs(firsts), axis=0) + 0.1 + 40 / 192)
        np.testing.assert_allclose(flatten(run["params"][t]), w, atol=1e-13)
        np.testing.assert_allclose(flatten(run["scale"][t]), s)
    assert norm(subtract(run["params"][-1], PARAMS)) > 0.1
