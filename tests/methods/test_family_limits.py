"""Limits and reductions of the family: where one method is another one."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_sam
from optax_sam.pieces.ascents import to_radius
from tests.methods.small import (
    BATCH,
    BATCHES,
    PARAMS,
    STEPS,
    close,
    flatten,
    losses,
    one_step,
    stepper,
    train,
)

pytestmark = pytest.mark.slow  # the references have said what each method is
RHO = 0.1


def linear(params, batch):
    """A loss without curvature in any direction: every gradient is the same."""
    return losses(jax.tree.map(jax.lax.stop_gradient, params), batch) + sum(
        jnp.sum(x) for x in jax.tree.leaves(params)
    )


SAM = {
    "looksam every step": optax_sam.looksam(RHO, every_k=1),
    "late_sam from the first step": optax_sam.late_sam(0, RHO),
    "esam of everything": optax_sam.esam(RHO, 1.0, 1.0),
    "friendly_sam without the mean": optax_sam.friendly_sam(RHO, sigma=0.0),
    "vasso of the present": optax_sam.vasso(RHO, theta=1.0),
    "fisher_sam in a Euclidean ball": optax_sam.fisher_sam(RHO, eta=0.0),
    "ksam of all": optax_sam.ksam(RHO, fraction=1.0),
    "random_sam without noise": optax_sam.random_sam(RHO, noise_scale=0.0),
    "reweighted_sam without weights": optax_sam.reweighted_sam(RHO, weight=0.0, difference_step=0.1),
    "gsam without the gap": optax_sam.gsam(RHO, alpha=0.0),
    "gradient_norm_penalty of one": optax_sam.gradient_norm_penalty(RHO, alpha=1.0),
    "wsam of one half": optax_sam.wsam(RHO, gamma=0.5),
    "multistep_sam of one step": optax_sam.multistep_sam(RHO, 1),
    "sparse_sam that keeps all": optax_sam.sparse_sam(
        RHO, sparsity=0.0, mask="dynamic", refresh_steps=2, total_steps=20
    ),
    "sam_on everything": optax_sam.sharpness_aware(
        optax_sam.ascents.chained(optax_sam.ascents.only(lambda path, leaf: True), to_radius(RHO))
    ),
    "graphsam refreshed always": optax_sam.graphsam(1, RHO, max_leaf_norm=10.0, adaptive=False),
    "fgsam of the loss itself": optax_sam.fgsam(
        lambda params, batch: (losses(params, batch), batch["position"]), RHO, mix=0.0
    ),
    "aesam with an open gate": optax_sam.aesam(10, RHO, start_threshold=-1e6, end_threshold=-1e6),
    "one slice of gsam": optax_sam.per_microbatch(optax_sam.gsam(RHO, alpha=0.0), 1),
}


@pytest.mark.parametrize("name", SAM)
def test_limits_that_are_sam(name, sam_run):
    run = train(SAM[name])
    close(run.params, sam_run.params)


SGD = {
    "gsam of the clean loss": optax_sam.gsam(RHO, alpha=0.0, minimize_clean=True),
    "gradient_norm_penalty of zero": optax_sam.gradient_norm_penalty(RHO, alpha=0.0),
    "wsam of zero": optax_sam.wsam(RHO, gamma=0.0),
    "late_sam that never begins": optax_sam.late_sam(STEPS + 1, RHO),
    "aesam with a closed gate": optax_sam.aesam(10, RHO, start_threshold=1e6, end_threshold=1e6),
    "looksam without reuse": optax_sam.looksam(0.0, every_k=3, alpha=5.0),
}


@pytest.mark.parametrize("name", SGD)
def test_limits_that_are_the_base_optimizer(name, sgd_run):
    close(train(SGD[name]).params, sgd_run)


def test_fisher_masks_that_keep_all_are_sam_from_the_first_renewal_on():
    method = optax_sam.sparse_sam(RHO, sparsity=0.0, refresh_steps=1, num_samples=2)
    _, state, grads = one_step(method)
    assert optax_sam.info(state)["perturbation_norm"] == 0
    descent, state, _ = one_step_from(method, state)
    assert optax_sam.info(state)["perturbation_norm"] == pytest.approx(RHO, rel=1e-5)
    close(flatten(descent), flatten(one_step(optax_sam.sam(RHO))[0]))


def test_padding_has_no_part_in_a_fisher_mask():
    """Two of the first five rows are padding: the mask is that of the first five real ones."""
    padding = np.isin(np.arange(12), (0, 3, 11))
    padded = BATCH | {"image": jnp.where(padding[:, None], jnp.nan, BATCH["image"])}
    real = jax.tree.map(lambda x: x[~padding], BATCH)

    def mask_of(number, batch, weights=None):
        method = optax_sam.fisher_mask_sam(RHO, 0.5, refresh_steps=1, num_samples=number)
        state = method.init(PARAMS)
        _, grads, oracle = method.value_and_grad(losses)(PARAMS, batch, state=state, weights=weights)
        return flatten(method.update(grads, state, PARAMS, oracle=oracle)[1].ascent[1].mask)

    got = mask_of(5, padded, jnp.asarray(~padding, jnp.float32))
    np.testing.assert_array_equal(got, mask_of(5, real))


def one_step_from(method, state):

    return stepper(method)(PARAMS, state)


def test_fgsam_plus_in_every_step_is_fgsam():
    def surrogate(params, batch):
        return jnp.square(losses(params, batch)), batch["position"]

    run = train(optax_sam.fgsam_plus(surrogate, RHO, every_k=1))
    close(run.params, train(optax_sam.fgsam(surrogate, RHO)).params)


def test_aelooksam_without_reuse_is_aesam():
    run, other = train(optax_sam.aelooksam(20, RHO, alpha=0.0)), train(optax_sam.aesam(20, RHO))
    close(run.params, other.params)
    np.testing.assert_array_equal(run.info["perturbed"], other.info["perturbed"])


def test_the_extragradient_is_unnormalized_sam_downhill():
    run = train(optax_sam.extrapolation(0.1, source="gradient"))
    close(run.params, train(optax_sam.usam(-0.1)).params)


def test_layers_move_by_a_part_of_their_norm():
    _, state, _ = one_step(optax_sam.look_layersam(0.1))
    wanted = 0.1 * np.linalg.norm(flatten(PARAMS))
    assert optax_sam.info(state)["perturbation_norm"] == pytest.approx(wanted, rel=1e-5)


def test_the_way_of_several_steps_is_no_longer_than_the_radius():
    _, state, _ = one_step(optax_sam.multistep_sam(0.5, 4))
    length = optax_sam.info(state)["perturbation_norm"]
    assert 0.3 < length <= 0.5
    _, state, _ = one_step(optax_sam.multistep_sam(0.5, 4), linear)
    assert optax_sam.info(state)["perturbation_norm"] == pytest.approx(0.5, rel=1e-5)


def test_leaves_of_graphsam_are_shortened_to_their_bound():
    _, state, _ = one_step(optax_sam.graphsam(1, rho=5.0, max_leaf_norm=0.01))
    leaves = len(jax.tree.leaves(PARAMS))
    assert optax_sam.info(state)["perturbation_norm"] == pytest.approx(0.01 * leaves**0.5, rel=1e-4)


def test_the_coins_of_esam_divide_the_radius_by_their_chance():
    lengths = []
    for seed in range(6):
        _, state, _ = one_step(optax_sam.esam(RHO, weight_fraction=0.5, example_fraction=1.0, seed=seed))
        lengths.append(round(float(optax_sam.info(state)["perturbation_norm"]), 5))
    assert set(lengths) == {0.0, 0.2}  # two leaves: neither, or some


def test_decoupled_sharpness_of_plain_descent_is_coupled_sharpness():
    method = optax_sam.wsam(RHO, gamma=0.8)
    run = train(method, base=optax.sgd(0.1))
    whole = optax_sam.decoupled(method, optax.sgd(0.1), learning_rate=0.1)

    state, params = whole.init(PARAMS), PARAMS
    oracle = optax_sam.Oracle(losses, {k: jnp.asarray(v[0]) for k, v in BATCHES.items()})
    updates, state = whole.update(PARAMS, state, params, oracle=oracle)
    close(flatten(optax.apply_updates(params, updates)), run.params[0])


FROZEN = {
    "partition": lambda base: optax.partition(
        {"trained": base, "frozen": optax.set_to_zero()}, {"a": "trained", "b": "frozen"}
    ),
    "mask behind": lambda base: optax.chain(base, optax.masked(optax.set_to_zero(), {"a": False, "b": True})),
    "by hand": lambda base: optax.chain(
        base, optax.stateless(lambda updates, params: updates | {"b": 0.0 * updates["b"]})
    ),
}


@pytest.mark.parametrize("freeze", FROZEN)
def test_decoupled_leaves_what_its_base_freezes(freeze):
    params, batch = {"a": jnp.array([1.0, -2.0]), "b": jnp.array([0.5, 3.0])}, jnp.ones((4, 1))
    tx = optax_sam.decoupled(
        optax_sam.wsam(0.5), FROZEN[freeze](optax.sgd(0.1, momentum=0.9)), learning_rate=0.1
    )
    step = optax_sam.step(tx, lambda p, rows: rows @ jnp.sum(p["a"] ** 2 * p["b"] ** 2)[None])
    trained, _, _ = step(params, tx.init(params), batch)
    np.testing.assert_array_equal(trained["b"], params["b"])
    assert np.all(np.asarray(trained["a"]) != np.asarray(params["a"]))


def test_decoupled_refuses_a_base_of_several_steps():
    several = optax.chain(optax.MultiSteps(optax.sgd(0.1), 4).gradient_transformation())
    with pytest.raises(ValueError, match=r"base holds optax.MultiSteps, .* accumulated\(method, k\)"):
        optax_sam.decoupled(optax_sam.wsam(), several, 0.1).init(PARAMS)


def test_decoupled_sharpness_takes_the_branch_that_it_is_told():
    """FGSAM+ takes another first gradient in unpaid steps: base and difference see the same one."""

    def surrogate(params, batch):
        return 3.0 * losses(params, batch)

    batch = {k: jnp.asarray(v[0]) for k, v in BATCHES.items()}
    inner, base = (
        optax_sam.fgsam_plus(surrogate, RHO),
        optax_sam.ascents.in_proportion(lambda step: -0.1 * (1.0 + jnp.asarray(step, float))),
    )
    whole = optax_sam.decoupled(inner, base, learning_rate=0.1)
    for perturb in (True, False):
        state = whole.init(PARAMS)
        _, grads, oracle = whole.value_and_grad(losses)(PARAMS, batch, state=state)
        updates, _ = whole.update(grads, state, PARAMS, oracle=oracle, perturb=perturb)
        descent, _ = inner.update(grads, state[0], PARAMS, oracle=oracle, perturb=perturb)
        close(flatten(updates), -0.1 * flatten(descent))


def test_a_dynamic_mask_keeps_its_number_of_entries_in_double_precision():
    """Live entries without a gradient outrank dead ones there too."""
    with jax.enable_x64(True):
        params = jnp.ones(40, jnp.float64)
        method = optax_sam.sparse_sam(RHO, 0.5, mask="dynamic", refresh_steps=1, total_steps=9, drop_rate=0.3)

        def reads_four(params, batch):
            return jnp.sum(jnp.square(params[:4] - 2.0)) * batch

        @jax.jit
        def step(state):
            _, grads, oracle = method.value_and_grad(reads_four)(params, jnp.ones(4), state=state)
            return method.update(grads, state, params, oracle=oracle)[1]

        state = method.init(params)
        for _ in range(4):
            state = step(state)
            assert state.ascent[1].mask.sum() == 20


def test_adasam_forgets_a_gradient_that_is_not_finite():
    base = optax_sam.scale_by_adasam()
    state = base.update(PARAMS, base.init(PARAMS))[1]
    after = base.update(jax.tree.map(lambda x: x / 0, PARAMS), state)[1]
    jax.tree.map(np.testing.assert_array_equal, after, state)


def test_bsam_descends_on_complex_leaves():
    params, target = jnp.array([1.0 + 2.0j, 3.0 - 1.0j]), jnp.array([0.0 - 1.0j, 1.0 + 1.0j])
    method = optax_sam.bsam(10**9, learning_rate=0.1, b1=0.0, num_microbatches=2)

    def distance(params, batch):
        return batch * jnp.sum(jnp.abs(params - target) ** 2)

    @jax.jit
    def step(params, state):
        _, grads, oracle = method.value_and_grad(distance)(params, jnp.ones(4), state=state)
        updates, state = method.update(grads, state, params, oracle=oracle)
        return optax.apply_updates(params, updates), state

    state = method.init(params)
    for _ in range(30):
        params, state = step(params, state)
    np.testing.assert_allclose(params, target, atol=2e-2)


def test_a_split_batch_needs_two_halves():
    method = optax_sam.random_perturbation()
    with pytest.raises(ValueError, match="2 parts do not divide the batch of 3 examples"):
        one_step(method, batch=jax.tree.map(lambda x: jnp.asarray(x[0][:3]), BATCHES))


def test_a_mean_of_perturbed_gradients_waits_in_unpaid_steps():
    direction = optax_sam.directions.mean_of_perturbed(0.9, refresh_steps=3)
    method = optax_sam.sharpness_aware(
        optax_sam.ascents.to_radius(RHO), direction=direction, gate=optax_sam.gates.every(2)
    )
    kept = flatten(train(method).after.direction, axes=1)
    moved = np.any(np.diff(kept, axis=0) != 0, axis=1)
    np.testing.assert_array_equal(moved, np.arange(1, len(kept)) % 2 == 0)


def test_decoupled_takes_a_python_number_as_a_parameter():
    params = {"w": jnp.ones(2), "b": 0.5}
    whole = optax_sam.decoupled(optax_sam.wsam(RHO), optax.sgd(0.1), learning_rate=0.1)
    quadratic = lambda p, batch: batch * (jnp.sum(p["w"] ** 2) + p["b"] ** 2)
    _, grads, oracle = whole.value_and_grad(quadratic)(params, jnp.ones(3), state=whole.init(params))
    updates, _ = whole.update(grads, whole.init(params), params, oracle=oracle)
    assert float(updates["b"]) < 0


def test_the_loss_of_reweighted_sam_is_the_plain_mean_where_weights_underflow():
    steep = lambda p, batch: 1e3 * jnp.arange(1.0, 5.0) * jnp.sum(p**2) * batch
    method = optax_sam.reweighted_sam(RHO, weight=50.0, difference_step=0.001)
    loss, _, _ = method.value_and_grad(steep)(jnp.ones(2), jnp.ones(4), state=method.init(jnp.ones(2)))
    np.testing.assert_allclose(loss, 5e3, rtol=1e-5)
