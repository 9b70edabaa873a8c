"""A loss may write into the batch that it is given: each call sees the user's one."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_sam
from optax_sam import selections, sharpness

PARAMS, ROWS = jnp.array([1.0, 1.0]), jnp.array([[2.0, 0.0], [0.0, 1.0]])


def outputs(w, batch):
    batch["x"] = batch["x"] / 2
    return batch["x"] @ w


def square(outputs, batch):
    return outputs**2 / 2


def losses(w, batch):
    return square(outputs(w, batch), batch)


def plain_outputs(w, batch):
    return batch["x"] / 2 @ w


def plain(w, batch):
    return square(plain_outputs(w, batch), batch)


def target_of_the_written(outputs, batch):
    return jnp.square(outputs - batch["x"].sum(axis=1))


MEASURED = {
    "eigenvalues": lambda loss: sharpness.top_eigenvalues(loss, PARAMS, {"x": ROWS}, k=2).values,
    "batch sharpness": lambda loss: sharpness.batch_sharpness(loss, PARAMS, {"x": ROWS}).value,
    "gradient noise": lambda loss: sharpness.gradient_noise(loss, PARAMS, {"x": ROWS}).variance,
    "finite differences": lambda loss: (
        sharpness.trace(sharpness.FiniteDifferences(loss), PARAMS, {"x": ROWS}, method="hutch++").value
    ),
    "empirical Fisher": lambda loss: (
        sharpness.trace(sharpness.EmpiricalFisher(loss), PARAMS, {"x": ROWS}).value
    ),
}


@pytest.mark.parametrize("name", MEASURED)
def test_a_loss_that_writes_into_its_batch_is_measured_as_one_that_does_not(name):
    np.testing.assert_allclose(MEASURED[name](losses), MEASURED[name](plain), rtol=1e-6)


def test_the_eigenvalues_are_those_worked_out_by_hand():
    np.testing.assert_allclose(MEASURED["eigenvalues"](losses), [0.5, 0.125], rtol=1e-6)


@pytest.mark.parametrize("loss", [square, target_of_the_written])
def test_the_gauss_newton_matrix_sees_what_the_outputs_have_written(loss):
    got = sharpness.top_eigenvalues(sharpness.GaussNewton(outputs, loss), PARAMS, {"x": ROWS}, k=2).values
    factor = 1.0 if loss is square else 2.0
    np.testing.assert_allclose(got, [0.5 * factor, 0.125 * factor], rtol=1e-6)


@pytest.mark.parametrize("loss", [square, target_of_the_written])
def test_a_step_through_outputs_that_write_is_sgd_where_the_network_is_linear(loss):
    tx = optax.chain(optax_sam.functional_sam(outputs, loss, rho=0.5), optax.sgd(1.0))
    whole = lambda w, batch: loss(outputs(w, batch), batch)
    got, _, _ = optax_sam.step(tx, whole)(PARAMS, tx.init(PARAMS), {"x": ROWS})
    wanted = PARAMS - jax.grad(lambda w: whole(w, {"x": ROWS}).mean())(PARAMS)
    np.testing.assert_allclose(got, wanted, rtol=1e-6)


def test_an_emphasis_may_write_too():
    def writing(batch):
        batch["x"] = batch["x"] / 2
        return batch["x"].sum(axis=1)

    def stepped(emphasis):
        selection = selections.emphasized(emphasis)
        method = optax_sam.sharpness_aware(optax_sam.ascents.to_radius(0.1), selection=selection)
        tx = optax.chain(method, optax.sgd(0.1))
        return optax_sam.step(tx, plain)(PARAMS, tx.init(PARAMS), {"x": ROWS})[0]

    np.testing.assert_array_equal(stepped(writing), stepped(lambda batch: batch["x"].sum(axis=1) / 2))


@pytest.mark.parametrize("make", [optax_sam.fgsam, optax_sam.fgsam_plus], ids=["fgsam", "fgsam_plus"])
def test_a_surrogate_and_the_loss_may_both_write(make):
    """They stand in the branches of one conditional."""

    def trained(loss, surrogate):
        tx = optax.chain(make(surrogate, 0.1), optax.sgd(0.1))
        params, state, step = PARAMS, tx.init(PARAMS), jax.jit(optax_sam.step(tx, loss))
        for _ in range(3):
            params, state, _ = step(params, state, {"x": ROWS})
        return params

    def cheap(w, batch):
        return losses(w, batch) * 2

    np.testing.assert_array_equal(
        trained(losses, cheap), trained(plain, lambda w, batch: plain(w, batch) * 2)
    )


def test_labels_may_write_too():
    def writing(batch):
        batch["label"] -= 2
        return batch["label"]

    def stepped(labels):
        tx = optax.chain(
            optax_sam.focal_sam([8, 4, 2], labels, weight=0.8, gamma=1.0, rho=0.1), optax.sgd(0.1)
        )
        batch = {"x": ROWS, "label": jnp.array([2, 4], jnp.int32)}
        return optax_sam.step(tx, lambda w, b: plain(w, b) * (b["label"] - 1).astype(float))(
            PARAMS, tx.init(PARAMS), batch
        )[0]

    np.testing.assert_array_equal(stepped(writing), stepped(lambda batch: batch["label"] - 2))
