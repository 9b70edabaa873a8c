"""What users of SAM do to the state, to precision and to the call, over every public method; and Flax NNX.

The faults that these tests would find are reproduced in `test_traps_in_optax.py`.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import errors, nnx

import optax_sam
from tests.problem import assert_trees_close, assert_trees_equal
from tests.registry import VARIANTS, WRAPPED, over
from tests.traps.quadratic import INDICES, ROWS, START, gradient, losses

every_kind = pytest.mark.parametrize("name", over(WRAPPED))


@pytest.fixture
def as_optax_promotes():
    """Some of Optax's own transformations mix dtypes and ranks."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def begin(method, state, params=START, loss_fn=losses, **options):
    """The first half of a training step."""
    return method.value_and_grad(loss_fn, **options)(params, ROWS, state=state, indices=INDICES)


# Gradients and precision.


@pytest.mark.parametrize("name", over([*WRAPPED, "pugd_alone"]))
def test_zero_perturbed_gradient_poisons_nothing(name):
    method = optax_sam.pugd(sum_gradients=False) if name == "pugd_alone" else VARIANTS[name].make()

    def flat_elsewhere(params, rows):
        near = jnp.sum(jnp.abs(params - START)) < 1e-6
        return jnp.where(near, jnp.sum(params), 0.0) + 0 * rows[:, 0]

    @jax.jit
    def step(state):
        _, grads, oracle = begin(method, state, loss_fn=flat_elsewhere)
        return method.update(grads, state, START, oracle=oracle, perturb=True)

    with jax.debug_nans(True):
        descent, state = step(method.init(START))
    info = optax_sam.info(state)
    assert np.all(np.isfinite(descent)) and info["perturbed_grad_norm"] == 0
    if name == "tsam":  # it starts elsewhere, so that its first gradient is zero too
        assert info["grad_norm"] == info["perturbation_norm"] == 0
    else:
        assert info["grad_norm"] > 1 and info["perturbation_norm"] > 0.04
    if name not in ("grst", "pugd"):  # these descend along both gradients
        np.testing.assert_array_equal(descent, 0)


@every_kind
def test_tiny_step_from_a_zero_bias_in_bfloat16_arrives(name):
    """Were the parameters perturbed in place and restored, rounding would take the whole step."""
    method = VARIANTS[name].make()
    tx = optax.chain(method, optax.sgd(1e-5))

    def linear(params, rows):
        return jnp.sum(params["bias"].astype(jnp.float32)) + 0 * rows[:, 0]

    @jax.jit
    def step(params, state):
        _, grads, oracle = begin(method, state, params, linear)
        updates, state = tx.update(grads, state, params, oracle=oracle, perturb=True)
        return optax.apply_updates(params, updates), state

    params = {"bias": jnp.zeros(4, jnp.bfloat16)}
    after, state = step(params, tx.init(params))
    slope = 0.5 if name == "pugd" else 1.0  # of PUGD's unit gradient
    assert after["bias"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(after["bias"], jnp.full(4, -1e-5 * slope, jnp.bfloat16))
    np.testing.assert_array_equal(params["bias"], 0)
    perturbed = optax_sam.info(state)["perturbation_norm"] > 0.04
    assert perturbed or name == "pugd"  # which does not perturb zeros


# State and call.


@every_kind
def test_keys_and_flags_of_the_base_optimizer_keep_their_types(name, as_optax_promotes):
    method = VARIANTS[name].make()
    noisy = optax.add_noise(0.1, 0.5, jax.random.key(0))
    tx = optax.chain(method, noisy, optax.apply_if_finite(optax.sgd(0.1), 3))

    def step(carry, _):
        params, state = carry
        _, grads, oracle = begin(method, state, params)
        updates, state = tx.update(grads, state, params, oracle=oracle)
        return (optax.apply_updates(params, updates), state), None

    def run(params):
        carry = params, tx.init(params)
        return carry, jax.lax.scan(step, carry, length=2)[0]  # refuses a carry whose types change

    before, after = jax.eval_shape(run, jnp.asarray(START))
    assert jax.tree.structure(before) == jax.tree.structure(after)
    types = [leaf.dtype for leaf in jax.tree.leaves(after)]
    assert types == [leaf.dtype for leaf in jax.tree.leaves(before)]
    assert jnp.bool_ in types and any(jnp.issubdtype(t, jax.dtypes.prng_key) for t in types)


@every_kind
def test_gradient_function_with_aux_is_refused(name):
    method = VARIANTS[name].make()
    with_aux = lambda params: (gradient(params), {"stats": jnp.ones(2)})

    def step(params, state):
        return method.update(gradient(params), state, params, grad_fn=with_aux, perturb=True)

    with pytest.raises(ValueError, match="grad_fn"):
        jax.eval_shape(step, START, method.init(START))
    with pytest.raises(ValueError, match="pass has_aux=True"):
        jax.eval_shape(
            lambda state: begin(method, state, loss_fn=lambda *a: (losses(*a), 1)), method.init(START)
        )


@every_kind
def test_forgotten_params_are_asked_for(name):
    method = VARIANTS[name].make()
    oracle = optax_sam.Oracle(losses, ROWS, indices=INDICES)
    tx = optax.chain(method, optax.sgd(0.1))
    with pytest.raises(ValueError, match="params=None: pass the parameters"):
        tx.update(START, tx.init(START), oracle=oracle)


# Flax NNX: evaluations on a copy of the model.


class Network(nnx.Module):
    """Batch norm and dropout, whose variables change whenever the model is called."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.norm = nnx.BatchNorm(3, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.out = nnx.Linear(3, 2, rngs=rngs)

    def __call__(self, images):
        return self.out(self.drop(self.norm(images)))


def squares(model, images):
    return jnp.sum(model(images) ** 2, axis=-1)


def changing(model):
    """The batch statistics and the counts of random draws."""
    return jax.tree.map(
        jnp.array, nnx.to_pure_dict(nnx.state(model, nnx.filterlib.Any(nnx.BatchStat, nnx.RngCount)))
    )


IMAGES = np.arange(24, dtype=np.float32).reshape(8, 3) / 10


def nnx_step(method, model, **merge_options):
    """A training step's two passes over copies, or not, of the model; returns the aux of the first."""
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    def losses(params, images):
        merged = nnx.merge(graphdef, params, rest, **merge_options)
        return squares(merged, images), nnx.state(merged, nnx.Not(nnx.Param))

    @jax.jit
    def step(params, state):
        (_, aux), grads, oracle = method.value_and_grad(losses, has_aux=True)(
            params, IMAGES, state=state, indices=np.arange(8, dtype=np.int32)
        )
        return aux, method.update(grads, state, params, oracle=oracle, perturb=True)[1]

    return step(params, method.init(params))


@every_kind
def test_passes_over_a_copied_nnx_model_leave_the_live_one_alone(name, as_optax_promotes):
    model, method = Network(), VARIANTS[name].make()
    before = changing(model)
    aux, state = nnx_step(method, model, copy=True)
    assert_trees_equal(changing(model), before)
    assert optax_sam.info(state)["perturbed_grad_norm"] > 0
    case = VARIANTS[name]
    if not (case.starts_at_params and case.examples == 1) or name.startswith(("m_", "accumulated")):
        return  # the first pass is at another point, or on other examples, or in slices
    nnx.update(model, aux)
    by_hand = Network()
    by_hand(IMAGES)
    assert_trees_close(changing(model), changing(by_hand), rtol=1e-5)
    assert changing(model)["drop"]["rngs"]["count"] == 1


def test_an_nnx_model_that_was_not_copied_is_an_error_and_not_a_leak(as_optax_promotes):
    model = Network()
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    before = changing(model)
    nnx.grad(lambda merged: jnp.mean(squares(merged, IMAGES)))(nnx.merge(graphdef, params, rest))
    leaked = changing(model)
    assert leaked["drop"]["rngs"]["count"] == 1  # what a gradient function of the user's own may do
    assert np.all(leaked["norm"]["mean"] != before["norm"]["mean"])
    with pytest.raises(
        errors.TraceContextError, match="Cannot mutate BatchStat from a different trace level"
    ):
        nnx_step(optax_sam.sam(), model)
    assert_trees_equal(changing(model), leaked)
