"""The references are themselves checked: finite differences, limits, and invariants."""

from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest

from . import network
from .asam import asam
from .ausam import ausam, sampling_probabilities, upper_score
from .network import make_problem
from .pugd import pugd
from .rst import grst, rst
from .sam import sam
from .trajectory import weighted_mean
from .trees import add, flatten, leaves, norm, scale, subtract, tree_map, zeros_like
from .tsam import gaussian_noise, tsam, uniform_noise
from .vsam import mean_relative_change, renewed_rate, sliced_variance, vsam

PROBLEM = make_problem(0)
PARAMS, BATCHES, INDICES, NUM_EXAMPLES = PROBLEM
STEPS = len(BATCHES)
BASE = {"lr": 0.05, "momentum": 0.9, "weight_decay": 1e-3}
PLAIN = {"lr": 0.05, "momentum": 0.0, "weight_decay": 0.0}


def quadratic(hessian):
    """A model with the loss w H w / 2 for every example."""
    return SimpleNamespace(
        losses=lambda params, batch: np.full(4, 0.5 * params["w"] @ hessian @ params["w"]),
        gradient=lambda params, batch, weights=None: {"w": hessian @ params["w"]},
    )


def assert_same_params(a, b, **tolerance):
    assert len(a["params"]) == len(b["params"])
    for one, other in zip(a["params"], b["params"], strict=True):
        np.testing.assert_allclose(flatten(one), flatten(other), **({"rtol": 1e-12} | tolerance))


def difference(a, b):
    return max(norm(subtract(x, y)) for x, y in zip(a["params"], b["params"], strict=True))


def standard_normal(rng):
    return tree_map(lambda leaf: rng.normal(size=leaf.shape), PARAMS)


def draw(rng, probability):
    return [bool(x) for x in rng.random(STEPS) < probability]


# The network.


@pytest.mark.parametrize("sizes", [(5, 7, 3), (4, 3), (3, 4, 5, 2)])
def test_gradient_agrees_with_finite_differences(sizes):
    params, batches, *_ = make_problem(1, sizes=sizes)
    weights = np.random.default_rng(2).uniform(0.0, 2.0, 12)
    weights[3] = 0.0
    grads = flatten(network.gradient(params, batches[0], weights))

    def loss(tree):
        return weighted_mean(network.losses(tree, batches[0]), weights)

    step, slopes = 1e-6, []
    for leaf in leaves(params):
        for place in np.ndindex(leaf.shape):
            kept = leaf[place]
            leaf[place] = kept + step
            above = loss(params)
            leaf[place] = kept - step
            below = loss(params)
            leaf[place] = kept
            slopes.append((above - below) / (2 * step))
    np.testing.assert_allclose(grads, slopes, rtol=1e-6, atol=1e-8)


def test_rows_of_weight_zero_may_be_nan():
    batch = {name: leaf.copy() for name, leaf in BATCHES[0].items()}
    weights = np.ones(12)
    weights[[2, 5]] = 0.0
    expected = flatten(network.gradient(PARAMS, batch, weights))
    batch["image"][[2, 5]] = np.nan
    np.testing.assert_array_equal(flatten(network.gradient(PARAMS, batch, weights)), expected)
    assert np.isfinite(weighted_mean(network.losses(PARAMS, batch), weights))
    assert not flatten(network.gradient(PARAMS, batch, np.zeros(12))).any()


def test_per_example_norms_agree_with_the_outer_products():
    weights = np.eye(12)
    norms = [norm(network.gradient(PARAMS, BATCHES[0], row)) for row in weights]
    np.testing.assert_allclose(network.per_example_gradient_norms(PARAMS, BATCHES[0]), norms)


def test_problem_is_deterministic_and_visits_every_example_once_an_epoch():
    again = make_problem(0)
    np.testing.assert_array_equal(flatten(again.params), flatten(PARAMS))
    np.testing.assert_array_equal(again.batches[5]["image"], BATCHES[5]["image"])
    assert sorted(np.concatenate(INDICES[:4])) == list(range(NUM_EXAMPLES))
    assert all(leaf.dtype == np.float64 for leaf in leaves(PARAMS))


def test_leaves_come_in_sorted_order():
    tree = {"b": {"y": np.array(1.0), "x": np.array(2.0)}, "a": np.array(3.0)}
    assert [float(leaf) for leaf in leaves(tree)] == [3.0, 2.0, 1.0]


# SAM and ASAM.


def test_sam_without_radius_is_momentum_sgd_and_zero_gradients_stay_zero():
    w, v, run = PARAMS, zeros_like(PARAMS), sam(PARAMS, BATCHES, rho=0.0, **BASE)
    for batch, after in zip(BATCHES, run["params"], strict=True):
        v = add(scale(0.9, v), add(network.gradient(w, batch), scale(1e-3, w)))
        w = subtract(w, scale(0.05, v))
        np.testing.assert_allclose(flatten(after), flatten(w), rtol=1e-12)
    still = quadratic(np.zeros((2, 2)))
    for method in (sam, asam, pugd):
        run = method({"w": np.ones(2)}, BATCHES[:3], model=still, **PLAIN)
        np.testing.assert_array_equal(run["params"][-1]["w"], np.ones(2))


def test_radii_are_as_asked_and_a_schedule_is_read_at_the_step():
    assert np.allclose(sam(PARAMS, BATCHES, rho=0.1)["perturbation_norm"], 0.1)
    ramp = sam(PARAMS, BATCHES, rho=lambda t: 0.01 * t)["perturbation_norm"]
    np.testing.assert_allclose(ramp, 0.01 * np.arange(STEPS))
    assert np.allclose(asam(PARAMS, BATCHES, rho=0.3)["adaptive_norm"], 0.3)
    assert np.mean(sam(PARAMS, BATCHES)["loss"][:4]) > np.mean(sam(PARAMS, BATCHES)["loss"][-4:])


def test_asam_with_a_large_constant_in_the_size_of_kernels_alone_is_sam():
    kernels = {"only": {"kernel": np.array([0.3, -0.7])}}
    hessian = np.array([[2.0, 0.3], [0.3, 1.0]])
    model = SimpleNamespace(
        losses=lambda p, b: np.zeros(4),
        gradient=lambda p, b, w=None: {"only": {"kernel": hessian @ p["only"]["kernel"]}},
    )
    eta = 1e9
    one = asam(kernels, BATCHES, rho=0.05 / eta, eta=eta, model=model, **PLAIN)
    other = sam(kernels, BATCHES, rho=0.05, model=model, **PLAIN)
    assert_same_params(one, other, rtol=1e-6)


def test_asam_measures_kernels_by_their_size_and_biases_as_they_are():
    run = asam(PARAMS, BATCHES[:1], rho=0.3, eta=0.01, **PLAIN)
    for name, layer in run["perturbation"][0].items():
        grads, params = run["grads"][0][name], PARAMS[name]
        ratio = layer["bias"][0] / grads["bias"][0]
        np.testing.assert_allclose(layer["bias"], ratio * grads["bias"])
        squares = (np.abs(params["kernel"]) + 0.01) ** 2
        np.testing.assert_allclose(layer["kernel"], ratio * squares * grads["kernel"])


# RST and G-RST.


def test_rst_always_is_sam_and_never_is_sgd():
    assert_same_params(rst(PARAMS, BATCHES, [True] * STEPS, **BASE), sam(PARAMS, BATCHES, **BASE))
    never = rst(PARAMS, BATCHES, [False] * STEPS, **BASE)
    assert_same_params(never, sam(PARAMS, BATCHES, rho=0.0, **BASE))
    assert np.isnan(never["perturbed_loss"]).all()


def test_grst_reduces_to_rst_and_to_sgd_and_its_default_is_one_over_p():
    perturbed = draw(np.random.default_rng(3), 0.5)
    assert 0 < sum(perturbed) < STEPS
    one = grst(PARAMS, BATCHES, perturbed, alpha=1.0, **BASE)
    assert_same_params(one, rst(PARAMS, BATCHES, perturbed, **BASE))
    none = grst(PARAMS, BATCHES, perturbed, alpha=0.0, **BASE)
    assert_same_params(none, sam(PARAMS, BATCHES, rho=0.0, **BASE))
    default = grst(PARAMS, BATCHES, perturbed, probability=0.4, **BASE)
    assert_same_params(default, grst(PARAMS, BATCHES, perturbed, alpha=2.5, **BASE))
    assert difference(default, one) > 1e-4


# PUGD.


def test_pugd_moves_by_the_learning_rate_and_ignores_the_scale_of_the_loss():
    run = pugd(PARAMS, BATCHES, **PLAIN)
    points = [PARAMS, *run["params"]]
    np.testing.assert_allclose([norm(subtract(b, a)) for a, b in pairwise(points)], 0.05)
    np.testing.assert_allclose(run["perturbation_norm"], 1.0)
    scaled = SimpleNamespace(
        losses=lambda p, b: 7.0 * network.losses(p, b),
        gradient=lambda p, b, w=None: scale(7.0, network.gradient(p, b, w)),
    )
    assert_same_params(run, pugd(PARAMS, BATCHES, model=scaled, **PLAIN), rtol=1e-9)
    assert difference(run, pugd(PARAMS, BATCHES, sum_gradients=False, **PLAIN)) > 1e-3


# TSAM.


def test_tsam_of_one_sample_without_noise_is_sam():
    noises = [[zeros_like(PARAMS)]] * STEPS
    run = tsam(PARAMS, BATCHES, noises, tilt=3.0, **BASE)
    assert_same_params(run, sam(PARAMS, BATCHES, **BASE))


def test_tsam_weighs_samples_by_their_tilted_losses():
    rng = np.random.default_rng(4)
    noises = [[gaussian_noise(standard_normal(rng), 1.0, 1.0) for _ in range(3)] for _ in BATCHES]
    level = tsam(PARAMS, BATCHES[:1], noises[:1], tilt=0.0, **PLAIN)
    apart = [tsam(PARAMS, BATCHES[:1], [[n]], **PLAIN)["descent"][0] for n in noises[0]]
    mean = np.mean([flatten(tree) for tree in apart], axis=0)
    np.testing.assert_allclose(flatten(level["descent"][0]), mean)
    steep = tsam(PARAMS, BATCHES, noises, tilt=1e5, **BASE)
    for weights, losses in zip(steep["tilted_weights"], steep["losses"], strict=True):
        np.testing.assert_allclose(weights, np.eye(3)[np.argmax(losses)], atol=1e-6)
    np.testing.assert_allclose(np.array(steep["ascent_norms"]), 0.05)
    assert np.max(steep["offset_norms"]) <= 1.05 + 1e-12


def test_noise_has_its_radius():
    z = standard_normal(np.random.default_rng(5))
    np.testing.assert_allclose(norm(gaussian_noise(z, 0.5, 1.0)), 0.5)
    np.testing.assert_allclose(flatten(gaussian_noise(z, 1e3, 0.2)), 0.2 * flatten(z))
    np.testing.assert_allclose(norm(uniform_noise(z, 0.01, 2.0)), 2.0, rtol=1e-6)


# AUSAM.


def test_ausam_on_the_whole_batch_is_sam():
    run = ausam(PARAMS, BATCHES, INDICES, [None] * STEPS, NUM_EXAMPLES, **BASE)
    assert_same_params(run, sam(PARAMS, BATCHES, rho=0.1, **BASE))
    np.testing.assert_array_equal(run["counts"][3], np.ones(NUM_EXAMPLES))
    shuffled = [np.random.default_rng(6).permutation(12)] * STEPS
    other = ausam(PARAMS, BATCHES, INDICES, shuffled, NUM_EXAMPLES, **BASE)
    assert_same_params(run, other, rtol=1e-9)


@pytest.mark.parametrize("score", ["loss_difference", "gradient_norm"])
def test_ausam_averages_the_scores_of_drawn_examples_only(score):
    rng = np.random.default_rng(7)
    drawn = [rng.choice(12, size=6, replace=False) for _ in BATCHES]
    run = ausam(PARAMS, BATCHES, INDICES, drawn, NUM_EXAMPLES, score=score, **BASE)
    seen = {i: [] for i in range(NUM_EXAMPLES)}
    for t in range(STEPS):
        for position, value in zip(drawn[t], run["example_scores"][t], strict=True):
            seen[INDICES[t][position]].append(value)
        expected = [np.mean(seen[i]) if seen[i] else 1.0 for i in range(NUM_EXAMPLES)]
        np.testing.assert_allclose(run["scores"][t], expected)
        np.testing.assert_array_equal(run["counts"][t], [len(seen[i]) for i in seen])


def test_ausam_never_reads_or_writes_padding_and_counts_a_repeated_index_once():
    indices, batch = INDICES[0].copy(), {k: v.copy() for k, v in BATCHES[0].items()}
    indices[[1, 4]] = [-1, NUM_EXAMPLES]
    indices[7] = indices[2]
    batch["image"][[1, 4, 9]] = np.nan
    weights = np.ones(12)
    weights[9] = 0.0
    run = ausam(PARAMS, [batch], [indices], [None], NUM_EXAMPLES, weights=[weights], **PLAIN)
    kept = np.isin(np.arange(12), [1, 4, 9], invert=True)
    np.testing.assert_array_equal(run["probabilities"][0], np.where(kept, 1 / 9, 0.0))
    assert run["counts"][0].sum() == 8 and run["counts"][0].max() == 1
    assert run["scores"][0][indices[2]] == run["example_scores"][0][2]
    plain = sam(PARAMS, [BATCHES[0]], rho=0.1, weights=[kept.astype(float)], **PLAIN)
    assert_same_params(run, plain)


def test_ausam_probabilities_follow_the_ramp():
    assert [upper_score(t, (0.1, 0.5), 4) for t in (0, 2, 4, 9)] == pytest.approx([0.1, 0.3, 0.5, 0.5])
    assert upper_score(0, (0.1, 0.5), 0) == 0.5
    scores, real = np.array([0.0, 1.0, 3.0, 9.0]), np.array([True, True, True, False])
    q = np.array([0.1, 0.1 + 0.4 / 3, 0.5, 0.0])
    np.testing.assert_allclose(sampling_probabilities(scores, real, 0.1, 0.5), q / q.sum())
    level = [1 / 3, 1 / 3, 1 / 3, 0.0]
    np.testing.assert_allclose(sampling_probabilities(np.ones(4), real, 0.1, 0.5), level)
    np.testing.assert_allclose(sampling_probabilities(scores, real, 0.0, 0.0), level)


# vSAM.


def test_vsam_estimators_on_values_worked_out_by_hand():
    assert sliced_variance([4.0, 1.0, 9.0, 2.0, 3.0, 6.0], 2) == pytest.approx((1.0 + 19 / 3) / 2)
    assert mean_relative_change([0.0, 2.0, 3.0, 1.5]) == pytest.approx((0.0 + 0.5 - 0.5) / 3)
    assert renewed_rate(7.3, [2.0] * 10, [3.0] * 10, (0.13, 0.2), 8) == 7.3
    assert renewed_rate(7.3, [1.0, 50.0], [1.0, 0.9], (0.13, 0.2), 99) == pytest.approx(7.3 * 1.11)
    assert renewed_rate(7.9, [1.0, 50.0], [3.0] * 2, (0.13, 0.2), 8) == 8.0


def test_vsam_psf_of_a_quadratic_is_rho_h_g_over_norm_g():
    hessian = np.array([[2.0, 0.3], [0.3, 1.0]])
    start = {"w": np.array([1.0, -2.0])}
    perturbed = [True] + [False] * 8
    run = vsam(start, BATCHES[:9], perturbed=perturbed, model=quadratic(hessian), **PLAIN)
    g = run["grads"][0]["w"]
    np.testing.assert_allclose(run["psf"][0]["w"], 0.05 * hessian @ g / np.linalg.norm(g))
    factors = [0.0] + [0.7**j for j in range(1, 7)] + [0.0, 0.0]
    np.testing.assert_allclose(run["reuse_factor"], factors)
    for c, descent, grads in zip(factors[1:], run["descent"][1:], run["grads"][1:], strict=True):
        np.testing.assert_allclose(descent["w"], grads["w"] + c * run["psf"][0]["w"])


@pytest.mark.parametrize("warmup_steps", [0, 12])
def test_vsam_spends_exactly_its_quota_in_every_window(warmup_steps):
    batches = make_problem(8, steps=12 + 30 * 40).batches
    uniforms = np.random.default_rng(9).random(len(batches))
    run = vsam(
        PARAMS, batches, uniforms=uniforms, window=30, slices=5, rate_gain=(0.9, 0.9), tail=2,
        warmup_steps=warmup_steps, **BASE,
    )  # fmt: skip
    perturbed, quota = np.array(run["perturbed"]), np.array(run["quota"])
    assert perturbed[:warmup_steps].all()
    perturbed, quota = perturbed[warmup_steps:], quota[warmup_steps:]
    assert perturbed[:29].sum() == (0 if warmup_steps else 1)
    windows = range(29, len(perturbed) - 29, 30)
    for first in windows:
        assert len(set(quota[first : first + 30])) == 1
        assert perturbed[first : first + 30].sum() == quota[first]
    assert len({int(quota[first]) for first in windows}) > 3
    fed = vsam(
        PARAMS, batches, perturbed=run["perturbed"], window=30, slices=5, rate_gain=(0.9, 0.9),
        tail=2, warmup_steps=warmup_steps, **BASE,
    )  # fmt: skip
    assert fed["rate"] == run["rate"] and fed["used"] == run["used"]
    assert_same_params(fed, run)


def test_vsam_in_warm_up_is_sam_and_k_stands_still():
    run = vsam(PARAMS, BATCHES, uniforms=[0.0] * STEPS, warmup_steps=20, **BASE)
    short = {"params": run["params"][:20]}
    assert_same_params(short, sam(PARAMS, BATCHES[:20], **BASE))
    assert run["k"] == [1] * 20 + [1, 2, 3, 4] and run["perturbed"] == [True] * 20 + [False] * 4
