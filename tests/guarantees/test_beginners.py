"""What goes wrong in the first minutes is answered with the line that mends it."""

import re

import jax.numpy as jnp
import optax
import pytest

import optax_sam

PARAMS = jnp.ones(3)
BATCH = jnp.ones((4, 3)), jnp.zeros(4)
SAM, KSAM = optax_sam.sam(), optax_sam.ksam()
SAM_SGD, KSAM_SGD = optax.chain(SAM, optax.sgd(0.1)), optax.chain(KSAM, optax.sgd(0.1))


def losses(params, batch):
    x, y = batch
    return jnp.square(x @ params - y)


def train(tx, losses=losses, batch=(BATCH,)):
    return optax_sam.step(tx, losses)(PARAMS, tx.init(PARAMS), *batch)


MISTAKES = {
    "wrong order in the chain": (
        lambda: train(optax.chain(optax.sgd(0.1), SAM)),
        "optax.chain(optax_sam.sam(), optax.sgd(0.1))",
    ),
    "a method without an optimizer": (lambda: train(SAM), "optax.chain(optax_sam.sam(), optax.sgd(0.1))"),
    "an optimizer without a method": (
        lambda: train(optax.sgd(0.1)),
        "opt_state = optax.chain(optax_sam.sam(), ...).init(params)",
    ),
    "no state": (lambda: SAM.value_and_grad(losses)(PARAMS, BATCH), "state=opt_state"),
    "gradients alone": (
        lambda: SAM.update(PARAMS, SAM.init(PARAMS), PARAMS),
        "tx.update(grads, opt_state, params, oracle=oracle)",
    ),
    "a scalar loss": (
        lambda: train(KSAM_SGD, lambda params, batch: losses(params, batch).mean()),
        "return jnp.square(predictions - targets), not jnp.mean(",
    ),
    "two arrays, cut": (
        lambda: train(KSAM_SGD, lambda params, x, y: losses(params, (x, y)), BATCH),
        "train_step(params, opt_state, (x, y))",
    ),
    "two arrays in a tuple": (
        lambda: train(SAM_SGD, lambda params, x, y: losses(params, (x, y))),
        "lambda params, batch: losses(params, *batch)",
    ),
    "a pair without has_aux": (
        lambda: train(SAM_SGD, lambda params, batch: (losses(params, batch), 1)),
        "has_aux=True",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_error_shows_the_line_that_mends_it(mistake):
    make, line = MISTAKES[mistake]
    with pytest.raises((ValueError, TypeError)) as error:
        make()
    said = "\n".join([str(error.value), *getattr(error.value, "__notes__", [])])
    assert re.search(re.escape(line), said), said
