"""Where a method looks at single examples, each has random numbers of its own."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_sam
from optax_sam import ascents
from optax_sam.engine.examples import Examples, Rows
from optax_sam.pieces import bases

ROWS, WIDTH = 64, 40


def losses(params, batch, key):
    """Dropout of the inputs; a gradient is a row's mask."""
    return jnp.where(jax.random.bernoulli(key, 0.5, batch.shape), batch, 0.0) @ params["w"]


def taken(method, loss_scale=None):
    params = {"w": jnp.ones(WIDTH)}
    state, batch = method.init(params), jnp.ones((ROWS, WIDTH))
    given = {"indices": jnp.arange(ROWS), "key": jax.random.key(3), "loss_scale": loss_scale}
    _, grads, oracle = method.value_and_grad(losses)(params, batch, state=state, **given)
    return method.update(grads, state, params, oracle=oracle)


class Roots(bases.Combination):
    """The root of the mean of the squared gradients of all examples."""

    def combine(self, step):
        return step.oracle.root_mean_squares(step.params, ROWS)


def test_the_mean_of_squares_is_over_masks_of_their_own():
    found, _ = taken(optax_sam.sharpness_aware(ascents.to_radius(0.1), combination=Roots()))
    assert (
        0.25 < np.min(found["w"] ** 2) and np.max(found["w"] ** 2) < 0.75
    )  # half, with a standard error of 0.06


@pytest.mark.parametrize("loss_scale", [None, 1024.0])
def test_norms_of_single_examples_are_those_of_masks_of_their_own(loss_scale):
    _, state = taken(optax_sam.ausam(ROWS, fraction=1.0, score="gradient_norm"), loss_scale)
    squares = np.square(optax.tree.get(state, "score_sum"))
    np.testing.assert_allclose(squares, np.round(squares), atol=1e-4)  # so many inputs are left
    assert len({*np.round(squares)}) > 5 and abs(np.mean(squares) - WIDTH / 2) < 2


def test_no_example_alone_has_the_key_of_a_pass_or_a_slice():
    """All are counted from 0, each in its own way."""
    whole = Examples(Rows(jnp.ones((4, 3))), key=jax.random.key(3))
    counted = range(4)
    passes = [whole.with_key(n).key for n in counted]
    slices = [one.with_key_of_part(n).key for one in (whole, whole.with_key(1)) for n in counted]
    examples = [one.alone(jnp.ones(3), n).key for one in (whole, whole.with_key_of_part(1)) for n in counted]
    told = lambda found: {tuple(np.asarray(jax.random.key_data(key)).tolist()) for key in found}
    assert len(told(examples)) == 8 and not told(examples) & told(passes + slices)
