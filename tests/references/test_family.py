"""The references of the SAM family at their limits, and where a number is known by other means."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

from . import combining as c
from . import directions as d
from . import examples as x
from . import linear_network, network
from . import masks as k
from . import noise as n
from . import reusing as r
from .asam import asam
from .network import make_problem
from .sam import sam
from .trajectory import weighted_mean
from .trees import add, dot, flatten, leaves, norm, scale, subtract, tree_map

PARAMS, BATCHES, *_ = make_problem(0)
STEPS = len(BATCHES)
BASE = {"lr": 0.05, "momentum": 0.9, "weight_decay": 1e-3}
PLAIN = {"lr": 0.05, "momentum": 0.0, "weight_decay": 0.0}


def random_trees(draw):
    rng = np.random.default_rng(1)
    return [tree_map(lambda leaf: draw(rng, leaf.shape), PARAMS) for _ in BATCHES]


NORMALS = random_trees(lambda rng, shape: rng.normal(size=shape))
SIGNS = random_trees(lambda rng, shape: rng.choice([-1.0, 1.0], shape))
UNIFORMS = random_trees(lambda rng, shape: rng.random(shape))
COINS = random_trees(lambda rng, shape: rng.random() < 0.6)
EVERYWHERE = tree_map(lambda leaf: np.ones(leaf.shape, bool), PARAMS)
DYNAMIC = {"mask": "dynamic", "first_mask": EVERYWHERE, "uniforms": UNIFORMS, "total_steps": STEPS}
ALWAYS = {"total_steps": STEPS, "start_threshold": -1e9, "end_threshold": -1e9}
NEVER = {"total_steps": STEPS, "start_threshold": 1e9, "end_threshold": 1e9}
REWEIGHTED = {"noises": SIGNS, "difference_step": 0.01}
SURROGATE = {"surrogate": network, "mix": 0.0}

SAM_LIMITS = {
    "looksam": partial(r.looksam, every_k=1),
    "late_sam": partial(r.late_sam, start_step=0),
    "aesam": partial(r.aesam, **ALWAYS),
    "aelooksam": partial(r.aelooksam, **ALWAYS),
    "friendly_sam": partial(d.friendly_sam, sigma=0.0),
    "vasso": partial(d.vasso, theta=1.0),
    "graphsam": partial(d.graphsam, refresh_steps=1, adaptive=False, max_leaf_norm=1.0),
    "fisher_sam": partial(d.fisher_sam, eta=0.0),
    "multistep_sam": partial(d.multistep_sam, num_steps=1),
    "gsam": partial(c.gsam, alpha=0.0),
    "gradient_norm_penalty": partial(c.gradient_norm_penalty, alpha=1.0),
    "wsam": partial(c.wsam, gamma=0.5),
    "fgsam": partial(c.fgsam, **SURROGATE),
    "fgsam_plus": partial(c.fgsam_plus, every_k=1, **SURROGATE),
    "sparse_sam_dynamic": partial(k.sparse_sam, sparsity=0.0, drop_rate=0.0, refresh_steps=5, **DYNAMIC),
    "esam": partial(x.esam, weight_fraction=1.0, example_fraction=1.0),
    "ksam": partial(x.ksam, fraction=1.0),
    "reweighted_sam": partial(x.reweighted_sam, weight=0.0, **REWEIGHTED),
    "random_sam": partial(n.random_sam, noises=NORMALS, noise_scale=0.0),
}

WITHOUT_RADIUS = SAM_LIMITS | {
    "looksam": r.looksam,
    "look_layersam": r.look_layersam,
    "late_sam": partial(r.late_sam, start_step=5),
    "aelooksam": partial(r.aelooksam, total_steps=STEPS),
    "friendly_sam": d.friendly_sam,
    "vasso": d.vasso,
    "single_step_sam": d.single_step_sam,
    "single_step_friendly": partial(d.single_step_sam, friendly=True),
    "momentum_sam": partial(d.momentum_sam, reads_base=True),
    "graphsam": partial(d.graphsam, refresh_steps=4),
    "fisher_sam": d.fisher_sam,
    "usam": d.usam,
    "multistep_sam": d.multistep_sam,
    "sam_on": partial(d.sam_on, mask=lambda path, leaf: path[-1] == "bias"),
    "gsam": c.gsam,
    "gsam_clean": partial(c.gsam, minimize_clean=True),
    "gradient_norm_penalty": c.gradient_norm_penalty,
    "wsam": c.wsam,
    "decoupled_wsam": c.decoupled_wsam,
    "bilateral_sam": partial(c.bilateral_sam, lower_rho=0.0),
    "fisher_mask_sam": k.fisher_mask_sam,
    "esam_coins": partial(x.esam, coins=COINS, example_fraction=1.0),
    "reweighted_sam": partial(x.reweighted_sam, weight=2.0, **REWEIGHTED),
}


def assert_same(a, b, **tolerance):
    assert len(a["params"]) == len(b["params"])
    for one, other in zip(a["params"], b["params"], strict=True):
        np.testing.assert_allclose(
            flatten(one), flatten(other), **({"rtol": 1e-10, "atol": 1e-13} | tolerance)
        )


def differ(a, b):
    return norm(subtract(a["params"][-1], b["params"][-1])) > 1e-5


SAM, SGD = sam(PARAMS, BATCHES, **BASE), sam(PARAMS, BATCHES, rho=0.0, **BASE)


@pytest.mark.parametrize("name", SAM_LIMITS)
def test_limits_are_sam(name):
    run = SAM_LIMITS[name](PARAMS, BATCHES, rho=0.05, **BASE)
    assert_same(run, SAM)
    np.testing.assert_allclose(run["perturbation_norm"], SAM["perturbation_norm"])
    np.testing.assert_allclose(run["perturbed"], True)


@pytest.mark.parametrize("name", [name for name in WITHOUT_RADIUS if name != "fgsam_plus"])
def test_without_radius_it_is_sgd(name):
    assert_same(WITHOUT_RADIUS[name](PARAMS, BATCHES, rho=0.0, **BASE), SGD)


@pytest.mark.parametrize("name", [name for name in WITHOUT_RADIUS if not name.startswith("fgsam")])
def test_a_radius_matters_and_zero_gradients_leave_the_parameters_alone(name):
    method = WITHOUT_RADIUS[name]
    assert differ(method(PARAMS, BATCHES, rho=0.2, **BASE), SGD)
    still = SimpleNamespace(
        losses=lambda params, batch: np.ones(len(batch["label"])),
        gradient=lambda params, batch, weights=None: tree_map(np.zeros_like, params),
    )
    with np.errstate(all="raise"):
        run = method(PARAMS, BATCHES[:6], rho=0.2, model=still, **PLAIN)
    np.testing.assert_array_equal(flatten(run["params"][-1]), flatten(PARAMS))


def test_surrogate_gradient_agrees_with_finite_differences():
    direction, step = NORMALS[0], 1e-6

    def loss(at):
        return weighted_mean(linear_network.losses(add(PARAMS, scale(at, direction)), BATCHES[0]))

    slope = dot(linear_network.gradient(PARAMS, BATCHES[0]), direction)
    np.testing.assert_allclose(slope, (loss(step) - loss(-step)) / (2 * step), rtol=1e-7)


# Reuse and gates.


def test_looksam_reuses_a_part_orthogonal_to_the_gradient_scaled_to_it():
    run = r.looksam(PARAMS, BATCHES, rho=0.1, every_k=3, alpha=0.7, **BASE)
    assert run["perturbed"] == [t % 3 == 0 for t in range(STEPS)]
    for t in range(STEPS):
        g, gv, descent = (run[name][t] for name in ("grads", "reused", "descent"))
        if t % 3 == 0:
            assert abs(dot(gv, g)) < 1e-14 and norm(gv) > 1e-3
        else:
            added = subtract(descent, g)
            np.testing.assert_allclose(norm(added), 0.7 * norm(g))
            np.testing.assert_allclose(dot(added, gv), norm(added) * norm(gv))
    assert np.isnan(run["perturbed_loss"]).tolist() == [not paid for paid in run["perturbed"]]
    assert_same(r.looksam(PARAMS, BATCHES, every_k=1000, alpha=0.0, **PLAIN), {
        "params": sam(PARAMS, BATCHES[:1], **PLAIN)["params"]
        + sam(sam(PARAMS, BATCHES[:1], **PLAIN)["params"][0], BATCHES[1:], rho=0.0, **PLAIN)["params"]
    })  # fmt: skip


def test_fgsam_plus_with_the_network_as_its_own_surrogate_is_looksam():
    run = c.fgsam_plus(PARAMS, BATCHES, every_k=3, alpha=0.6, **SURROGATE, **BASE)
    assert_same(run, r.looksam(PARAMS, BATCHES, every_k=3, alpha=0.6, **BASE))
    linear = c.fgsam_plus(PARAMS, BATCHES, surrogate=linear_network, **BASE)
    for t in range(STEPS):
        kept = linear["kept_gradient"][t], linear["kept_perturbed"][t]
        gm = linear["surrogate_grads"][t]
        if t % 2 == 0:
            assert all(abs(dot(part, gm)) < 1e-13 < norm(part) for part in kept)
        else:
            lengths = 0.7, 0.5
            rest = subtract(linear["descent"][t], scale(1.5, gm))
            for part, length in zip(reversed(kept), lengths, strict=True):
                rest = subtract(rest, scale(length * norm(gm) / norm(part), part))
            assert norm(rest) < 1e-13


def test_look_layersam_perturbs_every_leaf_in_proportion_to_it():
    run = r.look_layersam(PARAMS, BATCHES[:1], rho=0.3, **BASE)
    e, g = run["perturbation"][0], run["grads"][0]
    for part, slope, leaf in zip(leaves(e), leaves(g), leaves(PARAMS), strict=True):
        np.testing.assert_allclose(norm({"": part}), 0.3 * norm({"": leaf}))
        np.testing.assert_allclose(part / slope, np.full(part.shape, (part / slope).flat[0]))


def test_adaptive_gate_follows_the_gradient_norms():
    assert_same(r.aesam(PARAMS, BATCHES, **NEVER, **BASE), SGD)
    run = r.aesam(PARAMS, BATCHES, total_steps=10, decay=0.8, **BASE)
    assert 3 < sum(run["perturbed"]) < STEPS
    squares = np.square(run["grad_norm"])
    weights = 0.2 * 0.8 ** np.arange(STEPS)
    means = [np.sum(weights[: t + 1][::-1] * squares[: t + 1]) for t in range(STEPS)]
    spreads = [np.sum(weights[: t + 1][::-1] * (squares - means)[: t + 1] ** 2) for t in range(STEPS)]
    levels = np.array(means) + np.interp(np.arange(STEPS), [0, 10], [1, -1]) * np.sqrt(spreads)
    np.testing.assert_allclose(run["threshold"], levels)
    np.testing.assert_array_equal(run["perturbed"], squares >= levels)
    never_reused = r.aelooksam(PARAMS, BATCHES, total_steps=10, decay=0.8, alpha=0.0, **BASE)
    assert_same(run, never_reused)
    assert differ(run, r.aelooksam(PARAMS, BATCHES, total_steps=10, decay=0.8, **BASE))


# Directions.


def test_friendly_directions_leave_out_the_running_mean():
    run = d.friendly_sam(PARAMS, BATCHES, sigma=0.8, decay=0.6, **BASE)
    mean = run["grads"][0]
    for g, e in zip(run["grads"][1:], run["perturbation"][1:], strict=True):
        direction = flatten(subtract(g, scale(0.8, mean)))
        np.testing.assert_allclose(flatten(e), 0.1 * direction / np.linalg.norm(direction))
        mean = add(scale(0.6, mean), scale(0.4, g))
    single = d.single_step_sam(PARAMS, BATCHES, friendly=True, decay=0.6, **BASE)
    assert norm(single["perturbation"][0]) == 0
    for t, wanted in [
        (1, single["descent"][0]),
        (2, subtract(single["descent"][1], single["descent"][0])),
        (3, subtract(subtract(single["descent"][2], scale(0.6, single["descent"][0])),
                     scale(0.4, single["descent"][1]))),
    ]:  # fmt: skip
        np.testing.assert_allclose(flatten(single["direction"][t]), flatten(wanted))


def test_momentum_sam_reads_the_velocity_that_a_trace_of_the_descents_is():
    base = BASE | {"weight_decay": 0.0}
    own, read = (d.momentum_sam(PARAMS, BATCHES, reads_base=reads, **base) for reads in (False, True))
    assert_same(own, read)
    decayed = (d.momentum_sam(PARAMS, BATCHES, reads_base=reads, **BASE) for reads in (False, True))
    assert differ(*decayed)
    points = [PARAMS, *read["params"]]
    for t in range(1, STEPS):
        last_step = flatten(subtract(points[t], points[t - 1]))
        np.testing.assert_allclose(
            flatten(read["perturbation"][t]), 0.3 * last_step / np.linalg.norm(last_step), rtol=1e-6
        )
    ahead = d.extrapolation(PARAMS, BATCHES, step_size=0.05, source="momentum", **base)
    points = [PARAMS, *ahead["params"]]
    for t in range(1, STEPS):
        np.testing.assert_allclose(
            flatten(ahead["perturbation"][t]), flatten(subtract(points[t], points[t - 1])), atol=1e-14
        )


def test_extrapolation_descends_before_it_measures():
    fresh = d.extrapolation(PARAMS, BATCHES, step_size=0.1, source="gradient", **BASE)
    assert_same(fresh, d.usam(PARAMS, BATCHES, rho=-0.1, **BASE))
    last = d.extrapolation(PARAMS, BATCHES, step_size=0.1, **BASE)
    for t in range(1, STEPS):
        np.testing.assert_array_equal(flatten(last["perturbation"][t]), -0.1 * flatten(last["grads"][t - 1]))
    noisy = d.extrapolation(PARAMS, BATCHES, step_size=0.1, source="noise", noises=NORMALS, **BASE)
    minus = [scale(-1.0, z) for z in NORMALS]
    other = n.random_perturbation(
        PARAMS, BATCHES, noises=minus, noise_scale=0.1, alpha=1.0, split_batch=False, **BASE
    )
    assert_same(noisy, other)


def test_elementwise_sizes_are_those_of_asam_on_kernels():
    kernels, hessian = {"only": {"kernel": np.array([0.3, -0.7])}}, np.array([[2.0, 0.3], [0.3, 1.0]])
    model = SimpleNamespace(
        losses=lambda p, b: np.zeros(12),
        gradient=lambda p, b, w=None: {"only": {"kernel": hessian @ p["only"]["kernel"]}},
    )
    setting = {"model": model, **PLAIN}
    everything = d.sam_on(kernels, BATCHES, mask=lambda path, leaf: True, rho=0.5, **setting)
    assert_same(everything, asam(kernels, BATCHES, rho=0.5, eta=0.01, **setting))
    graph = d.graphsam(kernels, BATCHES, refresh_steps=1, rho=0.5, max_leaf_norm=9.0, **setting)
    assert_same(graph, asam(kernels, BATCHES, rho=0.5, eta=0.0, **setting))
    cut = d.graphsam(kernels, BATCHES, refresh_steps=1, rho=0.5, max_leaf_norm=0.02, **setting)
    np.testing.assert_allclose(cut["perturbation_norm"], 0.02)
    paths = []
    run = d.sam_on(
        PARAMS, BATCHES[:1], mask=lambda path, leaf: paths.append(path) or path[0] == "layer_1", order=np.inf
    )
    assert set(paths) == {(a, b) for a in ("layer_0", "layer_1") for b in ("bias", "kernel")}
    first, second = run["perturbation"][0]["layer_0"], run["perturbation"][0]["layer_1"]
    assert not flatten(first).any()
    np.testing.assert_allclose(np.abs(second["bias"]), 10 * (np.abs(PARAMS["layer_1"]["bias"]) + 0.01))


def test_graphsam_averages_descents_whose_leaves_have_length_one():
    run = d.graphsam(PARAMS, BATCHES, refresh_steps=4, decay=0.7, adaptive=False, max_leaf_norm=9.0, **BASE)
    assert run["refreshed"] == [t % 4 == 0 for t in range(STEPS)]
    points = [PARAMS, *run["params"]]
    for t in range(STEPS):
        if t % 4 == 0:
            wanted = leaves(network.gradient(points[t], BATCHES[t]))
        else:
            last = [leaf / np.linalg.norm(leaf) for leaf in leaves(run["descent"][t - 1])]
            wanted = [0.7 * old + 0.3 * new for old, new in zip(wanted, last, strict=True)]
        length = np.sqrt(sum(np.sum(leaf**2) for leaf in wanted))
        for part, leaf in zip(leaves(run["perturbation"][t]), wanted, strict=True):
            np.testing.assert_allclose(part, 0.05 * leaf / length, rtol=1e-9)


def test_methods_of_one_gradient_measure_it_where_it_is_taken():
    for run in (
        d.single_step_sam(PARAMS, BATCHES, **BASE),
        d.momentum_sam(PARAMS, BATCHES, reads_base=True, **BASE),
        d.extrapolation(PARAMS, BATCHES, step_size=0.1, **BASE),
        d.graphsam(PARAMS, BATCHES, refresh_steps=3, **BASE),
        n.adaptive_random_perturbation(PARAMS, BATCHES, noises=NORMALS, noise_scale=0.1, **BASE),
    ):
        points = [PARAMS, *run["params"]]
        for t in range(STEPS):
            there = add(points[t], run["perturbation"][t])
            assert run["loss"][t] == network.losses(there, BATCHES[t]).mean()
            assert run["grad_norm"][t] == norm(network.gradient(there, BATCHES[t]))
            assert run["perturbation_norm"][t] == norm(run["perturbation"][t])
        assert all(run["perturbed"])
        assert np.isnan(run["perturbed_loss"] + run["perturbed_grad_norm"]).all()


def test_fisher_perturbations_have_their_radius_in_the_fisher_norm():
    run = d.fisher_sam(PARAMS, BATCHES, rho=0.2, eta=30.0, **BASE)
    for g, e in zip(run["grads"], run["perturbation"], strict=True):
        g, e = flatten(g), flatten(e)
        np.testing.assert_allclose(e @ ((1 + 30.0 * g * g) * e), 0.04)


# Combinations.


def test_gsam_changes_sam_only_across_the_perturbed_gradient():
    run = c.gsam(PARAMS, BATCHES, alpha=0.4, **BASE)
    clean = c.gsam(PARAMS, BATCHES, alpha=0.4, minimize_clean=True, **BASE)
    for t in range(STEPS):
        gs = network.gradient(add([PARAMS, *run["params"]][t], run["perturbation"][t]), BATCHES[t])
        away = subtract(run["descent"][t], gs)
        assert abs(dot(away, gs)) < 1e-13 < norm(away)
        np.testing.assert_allclose(dot(away, run["grads"][t]), -(norm(away) ** 2) / 0.4)
        across = subtract(clean["descent"][t], clean["grads"][t])
        assert abs(dot(across, clean["grads"][t])) < 1e-13 < norm(across)


def test_decoupled_sharpness_is_coupled_where_the_base_is_linear_and_has_no_memory():
    one = c.decoupled_wsam(PARAMS, BATCHES, gamma=0.8, **PLAIN)
    assert_same(one, c.wsam(PARAMS, BATCHES, gamma=0.8, **PLAIN))
    assert_same(one, c.gradient_norm_penalty(PARAMS, BATCHES, rho=0.05, alpha=4.0, **PLAIN))
    assert_same(c.decoupled_wsam(PARAMS, BATCHES, gamma=0.8, learning_rate=0.0, **BASE), SGD)
    assert differ(c.decoupled_wsam(PARAMS, BATCHES, gamma=0.8, **BASE),
                  c.wsam(PARAMS, BATCHES, gamma=0.8, **BASE))  # fmt: skip


def test_bilateral_descent_of_a_linear_loss_is_its_gradient():
    slope = {"w": np.array([3.0, -4.0])}
    model = SimpleNamespace(losses=lambda p, b: np.zeros(12), gradient=lambda p, b, w=None: slope)
    run = c.bilateral_sam({"w": np.zeros(2)}, BATCHES[:2], model=model, **PLAIN)
    np.testing.assert_allclose(run["descent"][0]["w"], slope["w"])
    run = c.bilateral_sam(PARAMS, BATCHES, lower_rho=0.0, **BASE)
    for t in range(STEPS):
        factor = 1 - run["perturbed_grad_norm"][t] / run["grad_norm"][t]
        there = network.gradient(add([PARAMS, *run["params"]][t], run["perturbation"][t]), BATCHES[t])
        np.testing.assert_allclose(
            flatten(run["descent"][t]), flatten(add(there, scale(factor, run["grads"][t]))), atol=1e-15
        )
