"""Eigen-SAM keeps a unit vector by Hessian products; Focal-SAM weighs examples in the sharpness alone."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from jax.sharding import PartitionSpec

import optax_sam
from tests.devices.test_devices import losses as losses_on_devices
from tests.devices.test_devices import placed_on, product_axes
from tests.problem import init_params, losses, make_batch
from tests.registry import over


def label(batch):
    return batch["label"]


def test_focal_sam_of_equal_classes_is_sam_and_without_weight_the_base_optimizer():
    def descent(method, **fixed):
        state = method.init(init_params())
        _, grads, oracle = method.value_and_grad(losses)(init_params(), make_batch(), state=state)
        return method.update(grads, state, init_params(), oracle=oracle, **fixed)[0], grads

    sam, grads = descent(optax_sam.sam(0.1))
    equal, _ = descent(optax_sam.focal_sam([1, 1, 1], label, weight=1.0, gamma=0.0, rho=0.1))
    without, _ = descent(optax_sam.focal_sam([3, 2, 1], label, weight=0.0, gamma=1.0, rho=0.1))
    for got, wanted in ((equal, sam), (without, grads)):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6), got, wanted)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda batch: batch["label"][:, None],
        lambda batch: batch["label"][:1],
        lambda batch: batch["image"][:, 0],
    ],
)
def test_labels_of_another_shape_or_kind_are_refused(wrong):
    tx = optax.chain(optax_sam.focal_sam([3, 2, 1], wrong, weight=1.0, gamma=1.0), optax.sgd(0.1))
    with pytest.raises(ValueError, match=r"^(labels returned|emphasis has) the shape .*: return (the|one)"):
        optax_sam.step(tx, losses)(init_params(), tx.init(init_params()), make_batch())


@pytest.mark.parametrize("wrong", [3, -1])
def test_a_label_beyond_the_classes_gives_nan_and_no_other_class(wrong):
    tx = optax.chain(
        optax_sam.focal_sam([3, 2, 1], lambda batch: batch["label"].at[0].set(wrong), weight=1.0, gamma=1.0),
        optax.sgd(0.1),
    )
    params, state, _ = optax_sam.step(tx, losses)(init_params(), tx.init(init_params()), make_batch())
    assert np.isnan(optax_sam.info(state)["sharpness"]) and np.isnan(ravel_pytree(params)[0]).all()


def test_a_start_that_is_a_part_of_a_step_is_refused_and_one_that_never_comes_is_not():
    with pytest.raises(ValueError, match=r"^start_step=0.8 is a part of a step: pass a number of steps"):
        optax_sam.late_sam(0.8)
    for start, due in ((2**40, False), (1.9, False), (1.0, True), (0, True)):
        gate = optax_sam.gates.after(start)
        tx = optax.chain(
            optax_sam.sharpness_aware(optax_sam.ascents.to_radius(0.1), gate=gate), optax.sgd(0.1)
        )
        state = tx.init(init_params())
        for _ in range(2):  # the second step is number 1
            _, state, _ = optax_sam.step(tx, losses)(init_params(), state, make_batch())
        assert bool(optax_sam.info(state)["perturbed"]) == due, start


def vector_after(method, steps=3):
    tx = optax.chain(method, optax.sgd(0.1))
    step, run = jax.jit(optax_sam.step(tx, losses)), (init_params(), tx.init(init_params()))
    for number in range(steps):
        *run, _ = step(*run, make_batch(number))
    return ravel_pytree(run[1][0].direction.vector)[0]


EIGEN = optax_sam.eigen_sam(0.1, 0.3, refresh_steps=2, power_iterations=2)
WRAPPED = {
    "alone": EIGEN,
    "slices": optax_sam.per_microbatch(EIGEN, 8),
    "slices at once": optax_sam.per_microbatch(EIGEN, 8, loop="vmap"),
    "draws": optax_sam.over_draws(EIGEN, 3, optax_sam.tilted(1.0)),
    "draws in slices": optax_sam.per_microbatch(optax_sam.over_draws(EIGEN, 2, optax_sam.tilted(0.0)), 4),
    "accumulated": optax_sam.accumulated(EIGEN, 4),
}


@pytest.mark.parametrize("form", over(WRAPPED, ["alone", "slices", "draws"]))
def test_the_vector_stays_a_unit_vector(form):
    vector = vector_after(WRAPPED[form])
    np.testing.assert_allclose(jnp.linalg.norm(vector), 1, rtol=1e-5)
    assert abs(vector @ vector_after(EIGEN)) > 0.5  # slices differ in their Hessians, not in the sign


@product_axes
def test_the_vector_stays_a_unit_vector_over_devices(kind):
    batch, params = make_batch(0, 32), init_params()

    def one(method, params, batch):
        state = method.init(params)
        _, grads, oracle = method.value_and_grad(losses_on_devices)(params, batch, state=state)
        return method.update(grads, state, params, oracle=oracle)[1].direction.vector

    wanted = one(optax_sam.per_microbatch(EIGEN, 8), params, batch)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    place = placed_on(mesh)
    with jax.set_mesh(mesh):
        on_mesh = place(params, PartitionSpec()), place(batch, PartitionSpec("data"))
        got = jax.jit(lambda *args: one(optax_sam.per_device(EIGEN), *args))(*on_mesh)
    got, wanted = (ravel_pytree(jax.device_get(tree))[0] for tree in (got, wanted))
    np.testing.assert_allclose(np.linalg.norm(got), 1, rtol=1e-5)
    np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-4)


def test_it_is_the_top_eigenvector_of_the_dense_hessian():
    flat, unravel = ravel_pytree(init_params())
    hessian = jax.hessian(lambda v: losses(unravel(v), make_batch()).mean())(flat)
    top = np.linalg.eigh(np.asarray(hessian))[1][:, -1]
    method = optax_sam.eigen_sam(0.0, refresh_steps=1, power_iterations=80)
    state = method.init(init_params())
    _, grads, oracle = method.value_and_grad(losses)(init_params(), make_batch(), state=state)
    state = method.update(grads, state, init_params(), oracle=oracle)[1]
    np.testing.assert_allclose(abs(ravel_pytree(state.direction.vector)[0] @ top), 1, rtol=1e-4)


def test_the_vector_of_a_complex_leaf_is_that_of_its_real_form():
    def bent(params, batch):
        z = params["z"]
        return batch * (0.5 * jnp.abs(z) ** 2 + 0.9 * z.real * z.imag)

    method = optax_sam.eigen_sam(0.1, refresh_steps=1, power_iterations=50)
    params = {"z": jnp.asarray(0.4 + 0.1j)}
    state = method.init(params)
    _, grads, oracle = method.value_and_grad(bent)(params, jnp.ones(3), state=state)
    vector = method.update(grads, state, params, oracle=oracle)[1].direction.vector["z"]
    np.testing.assert_allclose(abs(np.conj(vector) * (1 - 1j) / 2**0.5), 1, rtol=1e-5)
    np.testing.assert_allclose(abs(np.real(np.conj(vector) * (1 - 1j) / 2**0.5)), 1, rtol=1e-5)


def test_hessian_products_know_padding_and_slices():
    """Through the door of the oracle, as a piece asks: with padding of NaN, in parts of the batch."""
    seen = []

    class Look(optax_sam.pieces.bases.Combination):
        asks_anew = False

        def combine(self, step):
            seen.append(step.oracle.hessian_product(step.grads))
            return step.perturbed_grads

    inner = optax_sam.sharpness_aware(optax_sam.ascents.to_radius(0.1), combination=Look())
    accumulated = optax_sam.accumulated(inner, 2)
    batch = make_batch()
    padded = batch | {"image": batch["image"].at[12:].set(jnp.nan)}
    weights = jnp.where(jnp.arange(16) < 12, jnp.linspace(1.0, 2.0, 16), 0.0)
    for method in (inner, accumulated):
        state = method.init(init_params())
        _, grads, oracle = method.value_and_grad(losses)(init_params(), padded, state=state, weights=weights)
        after = method.update(grads, state, init_params(), oracle=oracle)[1]
        assert optax_sam.info(after)["gradients"] == 4 and optax_sam.finite(after)
    flat, unravel = ravel_pytree(init_params())
    mean = lambda v: jnp.sum(weights * losses(unravel(v), batch)) / weights.sum()
    wanted = jax.hessian(mean)(flat) @ jax.grad(mean)(flat)
    for found in seen:
        np.testing.assert_allclose(ravel_pytree(found)[0], wanted, rtol=1e-3, atol=1e-4)
