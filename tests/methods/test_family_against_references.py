"""The family, step by step, against literal NumPy code that shares nothing with the package."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_sam
from tests.methods.trajectories import (
    BASE,
    MEASURED,
    PROBLEM,
    RISING,
    STEPS,
    assert_gradients,
    assert_same_trajectory,
    flatten_steps,
    in_float64,
    is_bias,
    losses,
    normal,
    random_weights,
    rising,
    surrogate_losses,
    train,
    tree_draws,
    with_nan_where_padding,
)
from tests.references import (
    combining,
    directions,
    examples,
    linear_network,
    masks,
    noise,
    optimizers,
)
from tests.references.by_name import extra, reference
from tests.references.trees import flatten
from tests.registry import FAMILY, METHODS, ROWS, over


@pytest.fixture(autouse=True, scope="module")
def float64():
    """Everything here is compared in double precision."""
    yield from in_float64()


PLAIN = {
    "looksam": ("looksam", {"rho": 0.1, "every_k": 3, "alpha": 0.7}),
    "looksam with schedules": (
        "looksam",
        {"rho": RISING, "alpha": rising(0.1, 0.02)},
    ),
    "look_layersam": ("look_layersam", {"rho": 0.1, "every_k": 4}),
    "late_sam": ("late_sam", {"rho": 0.1, "start_step": 9}),
    "aesam": ("aesam", {"rho": 0.1, "total_steps": 20}),
    "aelooksam": (
        "aelooksam",
        {"rho": 0.1, "total_steps": 24, "decay": 0.7, "start_threshold": 0.5, "end_threshold": 0.1},
    ),
    "friendly_sam": ("friendly_sam", {"rho": RISING}),
    "friendly_sam with sigma": (
        "friendly_sam",
        {"sigma": 0.6, "decay": 0.5},
    ),
    "vasso": ("vasso", {"rho": 0.1, "theta": 0.4}),
    "fisher_sam": ("fisher_sam", {"rho": RISING, "eta": 30.0}),
    "usam": ("usam", {"rho": RISING}),
    "multistep_sam": ("multistep_sam", {"rho": RISING, "num_steps": 3}),
    "sam_on": ("sam_on", {"mask": is_bias, "rho": 0.5}),
    "sam_on of infinite order": (
        "sam_on",
        {"mask": is_bias, "rho": 0.2, "eta": 0.0, "order": np.inf},
    ),
    "single_step_sam": ("single_step_sam", {"rho": RISING}),
    "friendly single_step_sam": (
        "single_step_sam",
        {"rho": 0.1, "friendly": True, "decay": 0.8},
    ),
    "extrapolation": ("extrapolation", {"step_size": RISING}),
    "extragradient": (
        "extrapolation",
        {"step_size": 0.1, "source": "gradient"},
    ),
    "graphsam": (
        "graphsam",
        {"refresh_steps": 5, "rho": RISING, "max_leaf_norm": 0.03, "decay": 0.6},
    ),
    "graphsam not adaptive": (
        "graphsam",
        {"refresh_steps": 4, "max_leaf_norm": rising(0.01, 0.002), "adaptive": False},
    ),
    "gsam": ("gsam", {"rho": RISING, "alpha": rising(0.4, 0.01)}),
    "gsam of the clean loss": ("gsam", {"rho": 0.2, "minimize_clean": True}),
    "gradient_norm_penalty": (
        "gradient_norm_penalty",
        {"rho": RISING, "alpha": 0.3},
    ),
    "wsam": ("wsam", {"rho": 0.1, "gamma": 0.8}),
    "bilateral_sam": ("bilateral_sam", {"rho": 0.1, "lower_rho": RISING}),
    "sparse_sam": (
        "sparse_sam",
        {"sparsity": 0.4, "refresh_steps": 3, "num_samples": 5},
    ),
    "sparse_sam structured": (
        "sparse_sam",
        {"sparsity": 0.5, "refresh_steps": 4, "num_samples": 100, "pattern": "structured"},
    ),
    "sparse_sam 2:4": (
        "sparse_sam",
        {"refresh_steps": 4, "num_samples": 3, "pattern": "2:4"},
    ),
    "fisher_mask_sam": (
        "fisher_mask_sam",
        {"rho": 0.1, "refresh_steps": 6, "num_samples": 4},
    ),
    "ksam": ("ksam", {"rho": 0.1, "fraction": 0.4}),
    "ksam in strata": ("ksam", {"rho": RISING, "fraction": 0.5, "strata": 3}),
    "esam of all weights": (
        "esam",
        {"rho": 0.1, "weight_fraction": 1.0, "example_fraction": 0.34},
    ),
}

# Compared below, or in a file of their own: with draws, coins or a surrogate, or as whole optimizers.
ELSEWHERE = {*METHODS, "momentum_sam", "reweighted_sam", "random_perturbation", "random_sam"}
ELSEWHERE |= {"adaptive_random_perturbation", "fgsam", "fgsam_plus", "eigen_sam", "focal_sam"}
ELSEWHERE |= {"functional_sam", "preconditioned_sam"}

# A method that is named nowhere here is compared with the arguments of its row.
PLAIN |= {
    name: (name, case.required | case.own)
    for name, case in FAMILY.items()
    if name not in ELSEWHERE | {method for method, _ in PLAIN.values()}
}


def evaluations(name, arguments, run, record):
    """Gradients of every step, by the reference or the docstrings; else of the first, by the row."""
    if "gradients" in record:
        return np.asarray(record["gradients"])
    steps, method = np.arange(STEPS), getattr(optax_sam, PLAIN[name][0])
    if name == "extragradient":
        return np.full(STEPS, 2.0)
    if method is optax_sam.graphsam:
        return 1.0 + (steps % arguments["refresh_steps"] == 0)
    if method is optax_sam.multistep_sam:
        return np.full(STEPS, arguments["num_steps"] + 1.0)
    if method in (optax_sam.sparse_sam, optax_sam.fisher_mask_sam):
        return 2.0 + (steps % arguments["refresh_steps"] == 0) * min(arguments["num_samples"], 12) / 12
    if method is optax_sam.ksam:
        strata = arguments.get("strata", 1)
        return np.full(STEPS, 2 * strata * int(arguments["fraction"] * 12 / strata) / 12)
    if method is optax_sam.esam:
        return np.full(STEPS, 1 + int(arguments["example_fraction"] * 12) / 12)
    found = np.where(run.info["perturbed"], FAMILY[PLAIN[name][0]].cost_of_first_step, 1.0)
    return found if name not in FAMILY else found[:1]


def test_every_method_has_a_reference_that_is_compared():
    for name in ROWS:
        reference(name)
    for name, arguments in PLAIN.values():
        wanted = set(extra(name)) - set(arguments)
        assert not wanted, (
            f"the reference of {name} wants {wanted}: compare it in a test that hands them in, and name it "
            "in ELSEWHERE"
        )


@pytest.mark.parametrize("name", PLAIN)
def test_methods_follow_their_references(name):
    method, arguments = PLAIN[name]
    run = train(getattr(optax_sam, method)(**arguments))
    record = reference(method)(PROBLEM.params, PROBLEM.batches, **arguments, **BASE)
    assert_same_trajectory(run, record)
    assert_gradients(run, evaluations(name, arguments, run, record))
    if method in ("aesam", "aelooksam"):
        assert 4 < sum(record["perturbed"]) < 20
    if jax.tree.leaves(run.after.reuse):
        remembered = np.stack([flatten(tree) for tree in record["reused"]])
        np.testing.assert_allclose(flatten_steps(run.after.reuse), remembered, rtol=1e-8, atol=1e-12)
    if "mask" in record:
        kept = np.stack([flatten(tree) for tree in record["mask"]])
        np.testing.assert_array_equal(flatten_steps(run.after.ascent[1].mask), kept)
        assert 0.2 < kept.mean() < 0.9
    if method == "ksam":
        np.testing.assert_array_equal(np.stack(run.seen), np.stack(record["seen"]))


def test_momentum_sam_follows_the_momentum_of_the_base_optimizer():
    run = train(optax_sam.momentum_sam(rho=RISING))
    record = directions.momentum_sam(PROBLEM.params, PROBLEM.batches, reads_base=True, rho=RISING, **BASE)
    assert_same_trajectory(run, record)
    assert_gradients(run, np.ones(STEPS))
    assert not flatten_steps(run.after.direction.own).any()  # nobody reads it, so it is not written


@pytest.mark.parametrize("name", ["momentum_sam", "extrapolation"])
def test_without_a_momentum_in_the_base_its_own_is_followed(name):
    base = {"lr": 0.1, "momentum": 0.0, "weight_decay": 0.0}
    if name == "momentum_sam":
        method = optax_sam.momentum_sam(rho=0.2, momentum=0.8)
        own = {"rho": 0.2, "reads_base": False}
    else:
        method = optax_sam.extrapolation(0.2, source="momentum", momentum=0.8)
        own = {"step_size": 0.2, "source": "momentum"}
    run = train(method, tx=optax.chain(method, optax.sgd(0.1)))
    record = reference(name)(PROBLEM.params, PROBLEM.batches, trace_momentum=0.8, **own, **base)
    assert_same_trajectory(run, record)


@pytest.mark.parametrize("arguments", [{}, {"weight_fraction": 0.3, "example_fraction": 1.0}, {"strata": 2}])
def test_esam_follows_its_reference(arguments):
    arguments = {"rho": RISING} | arguments
    run = train(optax_sam.esam(**arguments, seed=4))
    probability = arguments.get("weight_fraction", 0.6)

    def coin(key, x):
        return jax.random.uniform(key, dtype=jnp.float32) < probability

    coins = tree_draws(run, "ascent", coin)
    record = examples.esam(PROBLEM.params, PROBLEM.batches, coins=coins, **arguments, **BASE)
    assert_same_trajectory(run, record)
    thrown = np.stack([[bool(c) for c in jax.tree.leaves(tree)] for tree in coins])
    assert 0.1 < thrown.mean() < 0.9


@pytest.mark.parametrize(
    "name", over(["ksam", "esam", "looksam", "friendly_sam", "sparse_sam"], ["esam", "looksam"])
)
def test_weights_and_padding_follow_the_references(name):
    weights = random_weights()
    fisher = {"num_samples": 5, "refresh_steps": 2, "sparsity": 0.5}
    own = {"ksam": {"fraction": 0.5}, "esam": {"weight_fraction": 1.0}, "sparse_sam": fisher}.get(name, {})
    run = train(getattr(optax_sam, name)(**own), with_nan_where_padding(PROBLEM, weights), weights=weights)
    record = reference(name)(PROBLEM.params, PROBLEM.batches, weights=weights, **own, **BASE)
    assert_same_trajectory(run, record)


def test_reweighted_sam_follows_its_reference():
    arguments = {"rho": 0.1, "weight": 0.8, "difference_step": 1e-2}
    run = train(optax_sam.reweighted_sam(**arguments, seed=3))
    signs = tree_draws(run, "start", lambda key, x: jax.random.rademacher(key, x.shape, x.dtype))
    record = examples.reweighted_sam(PROBLEM.params, PROBLEM.batches, noises=signs, **arguments, **BASE)
    assert_same_trajectory(run, record)
    assert_gradients(run, np.full(STEPS, 2.0))
    assert np.ptp(record["probabilities"], axis=1).max() > 0.1


def test_sparse_sam_with_a_dynamic_mask_follows_its_reference():
    arguments = {"rho": RISING, "sparsity": 0.4, "refresh_steps": 2, "drop_rate": 0.7, "total_steps": 20}
    run = train(optax_sam.sparse_sam(mask="dynamic", **arguments, seed=6))
    first = jax.tree.map(lambda x: x[0], run.before.ascent[1].mask)
    uniforms = tree_draws(run, "ascent", lambda key, x: jax.random.uniform(key, x.shape, jnp.float32))
    record = masks.sparse_sam(
        PROBLEM.params,
        PROBLEM.batches,
        mask="dynamic",
        first_mask=first,
        uniforms=uniforms,
        **arguments,
        **BASE,
    )
    assert_same_trajectory(run, record)
    kept = flatten_steps(run.after.ascent[1].mask)
    np.testing.assert_array_equal(kept, np.stack([flatten(tree) for tree in record["mask"]]))
    assert len(set(kept.sum(axis=1))) == 1 and len(np.unique(kept, axis=0)) > 8


@pytest.mark.parametrize("split", [True, False])
def test_random_perturbation_follows_its_reference(split):
    arguments = {"noise_scale": RISING, "alpha": 0.3, "split_batch": split}
    run = train(optax_sam.random_perturbation(**arguments, seed=1))
    noises = tree_draws(run, "direction", normal)
    record = noise.random_perturbation(PROBLEM.params, PROBLEM.batches, noises=noises, **arguments, **BASE)
    assert_same_trajectory(run, record)
    assert_gradients(run, np.full(STEPS, 1.0 if split else 2.0))


@pytest.mark.parametrize("alpha", [1.0, 0.4])
def test_adaptive_random_perturbation_follows_its_reference(alpha):
    arguments = {"noise_scale": RISING, "fisher_weight": 5.0, "fisher_decay": 0.8, "alpha": alpha}
    run = train(optax_sam.adaptive_random_perturbation(**arguments, seed=1))
    noises = tree_draws(run, "direction", normal)
    record = noise.adaptive_random_perturbation(
        PROBLEM.params, PROBLEM.batches, noises=noises, **arguments, **BASE
    )
    assert_same_trajectory(run, record)
    assert_gradients(run, np.ones(STEPS))
    fisher = np.stack([flatten(tree) for tree in record["fisher"]])
    np.testing.assert_allclose(flatten_steps(run.after.direction), fisher, rtol=1e-8)


def test_extrapolation_along_noise_follows_its_reference():
    arguments = {"step_size": RISING, "source": "noise"}
    run = train(optax_sam.extrapolation(**arguments, seed=8))
    noises = tree_draws(run, "direction", normal)
    record = directions.extrapolation(PROBLEM.params, PROBLEM.batches, noises=noises, **arguments, **BASE)
    assert_same_trajectory(run, record)


def test_random_sam_follows_its_reference():
    arguments = {"rho": 0.1, "noise_scale": RISING}
    run = train(optax_sam.random_sam(**arguments, seed=2))
    noises = tree_draws(run, "start", normal)
    record = noise.random_sam(PROBLEM.params, PROBLEM.batches, noises=noises, **arguments, **BASE)
    assert_same_trajectory(run, record)
    assert_gradients(run, np.full(STEPS, 2.0))


def test_fgsam_follows_its_reference():
    run = train(optax_sam.fgsam(surrogate_losses, rho=RISING, mix=0.3))
    record = combining.fgsam(
        PROBLEM.params, PROBLEM.batches, surrogate=linear_network, rho=RISING, mix=0.3, **BASE
    )
    assert_same_trajectory(run, record)


def test_fgsam_plus_follows_its_reference():
    arguments = {"rho": 0.1, "mix": 0.4, "every_k": 3, "alpha": 0.5}
    run = train(optax_sam.fgsam_plus(surrogate_losses, **arguments))
    record = combining.fgsam_plus(
        PROBLEM.params, PROBLEM.batches, surrogate=linear_network, **arguments, **BASE
    )
    expected = np.stack([flatten(params) for params in record["params"]])
    np.testing.assert_allclose(run.params, expected, rtol=1e-9, atol=1e-12)
    paid = np.arange(STEPS) % 3 == 0
    np.testing.assert_array_equal(run.info["perturbed"], paid)
    assert_gradients(run, np.where(paid, 3, 1))
    for name in ("grad_norm", "perturbed_grad_norm", "perturbation_norm"):
        np.testing.assert_allclose(run.info[name], record[name], rtol=1e-5, err_msg=name)
    np.testing.assert_allclose(run.loss[paid], np.array(record["loss"])[paid], rtol=1e-9)


def test_decoupled_wsam_follows_its_reference():
    method = optax_sam.wsam(rho=RISING, gamma=0.7)
    base = optax.chain(
        optax.add_decayed_weights(BASE["weight_decay"]), optax.sgd(BASE["lr"], momentum=BASE["momentum"])
    )
    rate = rising(0.05, 0.001)
    run = train(method, tx=optax_sam.decoupled(method, base, learning_rate=rate))
    record = combining.decoupled_wsam(
        PROBLEM.params, PROBLEM.batches, rho=RISING, gamma=0.7, learning_rate=rate, **BASE
    )
    assert_same_trajectory(run, record)


def test_adasam_follows_its_reference():
    arguments = {"learning_rate": rising(0.01, 0.001), "rho": 0.1, "b1": 0.8, "b2": 0.9, "epsilon": 1e-2}
    method = optax_sam.adasam(**arguments)
    run = train(method, tx=method)
    assert_same_trajectory(run, optimizers.adasam(PROBLEM.params, PROBLEM.batches, **arguments))


def test_bsam_follows_its_reference():
    arguments = {
        "num_examples": 48, "learning_rate": rising(0.1, 0.01), "rho": 0.05, "b2": 0.9,
        "augmentation_factor": 2, "num_microbatches": 3,
    }  # fmt: skip
    method = optax_sam.bsam(**arguments, seed=5)
    run = train(method, tx=method)

    def noises_of(key_data, step):
        def of_shard(number):
            key = jax.random.wrap_key_data(key_data, impl="threefry2x32")
            key = jax.lax.cond(number == 0, lambda: key, lambda: jax.random.fold_in(key, number))
            keys = jax.random.split(jax.random.fold_in(key, step), len(leaves))
            return [normal(k, jnp.asarray(x)) for k, x in zip(keys, leaves, strict=True)]

        return [of_shard(number) for number in range(3)]

    leaves, treedef = jax.tree.flatten(PROBLEM.params)
    noises = [
        [jax.tree.unflatten(treedef, jax.tree.map(np.asarray, shard)) for shard in noises_of(key, step)]
        for key, step in zip(jnp.asarray(run.before.key), jnp.arange(STEPS, dtype=jnp.int32), strict=True)
    ]
    record = optimizers.bsam(PROBLEM.params, PROBLEM.batches, noises=noises, **arguments)
    expected = np.stack([flatten(params) for params in record["params"]])
    np.testing.assert_allclose(run.params, expected, rtol=1e-8, atol=1e-11)
    scale = np.stack([flatten(tree) for tree in record["scale"]])
    np.testing.assert_allclose(flatten_steps(run.after.ascent.scale), scale, rtol=1e-8)
    for name in MEASURED:
        np.testing.assert_allclose(run.info[name], record[name], rtol=1e-5, err_msg=name)
    assert_gradients(run, np.full(STEPS, 2.0))


def test_the_surrogate_of_these_tests_is_that_of_the_references():
    batch = jax.tree.map(jnp.asarray, PROBLEM.batches[0]) | {"position": jnp.arange(12)}
    params = jax.tree.map(jnp.asarray, PROBLEM.params)
    found = surrogate_losses(params, batch)[0]
    np.testing.assert_allclose(found, linear_network.losses(PROBLEM.params, PROBLEM.batches[0]), rtol=1e-12)
    assert np.abs(found - losses(params, batch)[0]).max() > 0.01
