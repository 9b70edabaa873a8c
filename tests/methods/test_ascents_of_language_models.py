"""Functional SAM and the preconditioned ascent: references, limits, cost, and what they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_sam
from tests.methods.small import BATCH, PARAMS, close, flatten, losses, one_step
from tests.methods.small import train as train_small
from tests.methods.trajectories import (
    BASE,
    PROBLEM,
    RISING,
    STEPS,
    assert_gradients,
    assert_same_trajectory,
    flatten_steps,
    random_weights,
    train,
    with_nan_where_padding,
)
from tests.references.functional_sam import functional_sam
from tests.references.preconditioned_sam import Adam, preconditioned_sam
from tests.references.trees import flatten as flatten_reference
from tests.rows import cross_entropy, logits


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


def logits_of_layer(params, batch):
    layer = params["layer_0"]
    return batch["image"] @ layer["kernel"] + layer["bias"][None]


@pytest.mark.parametrize(
    "weights", [None, pytest.param(random_weights(), marks=pytest.mark.slow)], ids=["all", "padding"]
)
def test_functional_sam_follows_its_reference(float64, weights):
    problem = PROBLEM if weights is None else with_nan_where_padding(PROBLEM, weights)
    method = optax_sam.functional_sam(logits, cross_entropy, RISING)
    run = train(method, problem, weights=weights)
    record = functional_sam(PROBLEM.params, PROBLEM.batches, rho=RISING, weights=weights, **BASE)
    assert_same_trajectory(run, record)
    assert_gradients(run, np.full(STEPS, 2.0))


def test_the_perturbation_does_not_move_the_losses_own_gradient():
    """Of a linear network the Jacobian is the same everywhere: the descent is the clean gradient."""
    method = optax_sam.functional_sam(logits_of_layer, cross_entropy, rho=1.0)
    descent, _, grads = one_step(method)
    close(flatten(descent), flatten(grads))
    assert np.abs(flatten(one_step(optax_sam.sam(1.0))[0]) - flatten(grads)).max() > 0.01


@pytest.mark.slow
def test_losses_that_are_linear_in_the_outputs_make_functional_sam_sam():
    method = optax_sam.functional_sam(losses, lambda outputs, batch: outputs, rho=0.5)
    close(flatten(one_step(method)[0]), flatten(one_step(optax_sam.sam(0.5))[0]))


def test_masked_logits_stay_infinite():
    """The difference of two infinities would be no number."""

    def masked(params, batch):
        return logits_of_layer(params, batch) + jnp.array([[0.0, 0.0, -jnp.inf]])

    batch = BATCH | {"label": BATCH["label"] % 2}
    method = optax_sam.functional_sam(masked, cross_entropy, rho=0.5)
    whole = lambda params, batch: cross_entropy(masked(params, batch), batch)
    descent, state, _ = one_step(method, whole, batch=batch)
    assert optax_sam.finite(state) and np.isfinite(flatten(descent)).all()


@pytest.mark.slow
def test_outputs_may_be_a_tree_and_losses_their_mean():
    def pair(params, batch):
        return {"logits": logits_of_layer(params, batch), "label": batch["label"]}

    def mean(outputs, batch):
        return cross_entropy(outputs["logits"], outputs).mean()

    whole = lambda params, batch: mean(pair(params, batch), batch)
    found = one_step(optax_sam.functional_sam(pair, mean, rho=0.5), whole)[0]
    wanted = one_step(optax_sam.functional_sam(logits_of_layer, cross_entropy, rho=0.5))[0]
    close(flatten(found), flatten(wanted))


@pytest.mark.slow
def test_functional_sam_costs_two_gradients_and_a_forward_pass_at_most():
    sizes = [64, 128, 128, 64]
    params = [jnp.ones(shape) / 64 for shape in zip(sizes[:-1], sizes[1:], strict=True)]

    def outputs(params, batch):
        for kernel in params:
            batch = jnp.tanh(batch @ kernel)
        return batch

    square = lambda outputs, batch: jnp.mean(jnp.square(outputs - batch), -1)
    whole = lambda params, batch: square(outputs(params, batch), batch)

    def flops(method):
        tx = optax.chain(method, optax.sgd(0.1))
        step, state = optax_sam.step(tx, whole), jax.eval_shape(tx.init, params)
        return jax.jit(step).lower(params, state, jnp.ones((256, 64))).compile().cost_analysis()["flops"]

    ratio = flops(optax_sam.functional_sam(outputs, square)) / flops(optax_sam.sam())
    assert 0.99 < ratio < 1.2


def test_preconditioned_ascent_follows_its_reference(float64):
    arguments = {"rho": RISING, "decay": 0.9, "epsilon": 1e-3}
    run = train(optax_sam.preconditioned_sam(**arguments))
    record = preconditioned_sam(PROBLEM.params, PROBLEM.batches, **arguments, **BASE)
    assert_same_trajectory(run, record)
    assert_gradients(run, np.full(STEPS, 2.0))
    moments = np.stack([flatten_reference(tree) for tree in record["moment"]])
    np.testing.assert_allclose(flatten_steps(run.after.direction) ** 2, moments, rtol=1e-8)


@pytest.mark.parametrize("unit", [1e-25, 1e25])
def test_a_second_moment_of_its_own_is_right_where_float32_holds_no_square(unit):
    method, params = optax_sam.preconditioned_sam(rho=0.5, decay=0.5, epsilon=1e-36), jnp.float32([3, 4])
    losses = lambda w, x: unit / 2 * jnp.sum((w[None] - x) ** 2, axis=1)
    state, found, wanted, moment = method.init(params), [], [], np.zeros(2)
    for centre in np.float32([[2, 2], [2, 12]]):
        _, grads, oracle = method.value_and_grad(losses)(params, centre[None], state=state)
        descent, state = method.update(grads, state, params, oracle=oracle)
        found.append(np.float64(descent) / unit)
        gradient = np.float64(params) - centre
        direction = gradient / (np.sqrt(moment) + 1e-36 / unit)
        wanted.append(gradient + 0.5 * direction / np.linalg.norm(direction))
        moment = (moment + wanted[-1] ** 2) / 2
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    np.testing.assert_allclose(np.float64(state.direction) / unit, np.sqrt(moment), rtol=1e-5)


def nu(opt_state):
    return optax.tree.get(opt_state, "nu")


@pytest.mark.parametrize("read", [None, pytest.param(nu, marks=pytest.mark.slow)], ids=["by name", "as read"])
def test_preconditioned_ascent_follows_the_second_moment_of_adam(float64, read):
    method = optax_sam.preconditioned_sam(RISING, epsilon=1e-3, read_second_moment=read)
    with jax.numpy_dtype_promotion("standard"):  # Adam's decay to the power of an integer
        run = train(method, tx=optax.chain(method, optax.adam(0.01, b1=0.8, b2=0.9)))
    adam = Adam(PROBLEM.params, 0.01, 0.8, 0.9)
    record = preconditioned_sam(PROBLEM.params, PROBLEM.batches, rho=RISING, epsilon=1e-3, adam=adam)
    assert_same_trajectory(run, record)
    kept = jax.tree.leaves(run.after.direction)
    assert not kept if read else not flatten_steps(run.after.direction).any()


@pytest.mark.slow
def test_the_first_preconditioned_step_is_sam():
    tx = optax.chain(optax_sam.preconditioned_sam(0.1), optax.adam(1e-3))
    sam = optax.chain(optax_sam.sam(0.1), optax.adam(1e-3))
    with jax.numpy_dtype_promotion("standard"):
        found, wanted = (
            jax.jit(optax_sam.step(t, losses))(PARAMS, t.init(PARAMS), BATCH)[0] for t in (tx, sam)
        )
    close(flatten(found), flatten(wanted))


@pytest.mark.slow
def test_a_constant_second_moment_leaves_sam():
    ones = lambda opt_state: jax.tree.map(jnp.ones_like, PARAMS)
    run = train_small(optax_sam.preconditioned_sam(0.1, read_second_moment=ones))
    close(run.params, train_small(optax_sam.sam(0.1)).params)


@pytest.mark.parametrize("epsilon", [1e-8, 1e-30, 1e-50])
def test_an_entry_without_a_second_moment_takes_the_radius_however_small_epsilon(epsilon):
    """A divisor that float32 rounds to zero is no reason to leave the entry out."""
    losses = lambda w, x: x * w[1] + w[0] ** 2
    method = optax_sam.preconditioned_sam(0.1, epsilon=epsilon)
    tx, w = optax.chain(method, optax.adam(1e-3)), jnp.ones(2)
    step, state = jax.jit(optax_sam.step(tx, losses)), tx.init(w)
    with jax.numpy_dtype_promotion("standard"):  # for Adam
        for batch in (jnp.zeros(1), jnp.ones(1)):
            w, state, _ = step(w, state, batch)
    info = optax_sam.info(state)
    np.testing.assert_allclose([info["perturbation_norm"], info["sharpness"]], 0.1, rtol=1e-3)


def test_where_the_second_moment_is():
    where = optax_sam.directions.where_second_moment_is
    method = optax_sam.preconditioned_sam(0.1)
    assert where(optax.chain(method, optax.sgd(0.1)).init(PARAMS), PARAMS) == "own"
    for first in (optax.scale_by_adam(), optax.scale_by_amsgrad()):
        both = optax.chain(method, first, optax.rmsprop(0.1)).init(PARAMS)
        with pytest.raises(ValueError, match=r"2 second moments like the parameters.*read_second_moment="):
            where(both, PARAMS)


def test_amsgrad_divides_by_the_largest_moment_and_so_does_the_ascent(as_optax_promotes):
    method, params = optax_sam.preconditioned_sam(rho=0.5), jnp.float32([1, 1])
    tx = optax.chain(method, optax.amsgrad(1e-9, b2=0.5))
    losses = lambda w, x: x @ w + jnp.sum(w**2)[None] / 2
    opt_state = tx.init(params)
    assert optax_sam.directions.where_second_moment_is(opt_state, params).endswith(".nu_max")
    for row in ([[100.0, 1.0]], [[1.0, 1.0]], [[1.0, 1.0]], [[1.0, 1.0]]):
        loss, grads, oracle = method.value_and_grad(losses)(params, jnp.float32(row), state=opt_state)
        moment = optax.tree.get(opt_state, "nu_max")
        descent, _ = method.update(grads, opt_state[0], params, oracle=oracle)
        _, opt_state = tx.update(grads, opt_state, params, oracle=oracle)
    direction = np.float64(grads) / (np.sqrt(np.float64(moment)) + 1e-8)
    wanted = 0.5 * direction / np.linalg.norm(direction)
    np.testing.assert_allclose(descent - grads, wanted, atol=1e-5)
    assert wanted[0] < 0.02


def test_what_a_preconditioned_ascent_refuses():
    wrong = optax_sam.preconditioned_sam(0.1, read_second_moment=lambda opt_state: jnp.ones(3))
    with pytest.raises(ValueError, match="read_second_moment returned a tree of the structure"):
        one_step(wrong)
    method = optax_sam.preconditioned_sam(0.1)
    with pytest.raises(ValueError, match="oracle was made by hand"):
        method.update(PARAMS, method.init(PARAMS), PARAMS, oracle=optax_sam.Oracle(losses, BATCH))
