"""Parameters and batches split over devices: the same numbers, and vectors split as the parameters are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from optax_sam import sharpness
from tests.devices.test_devices import product_axes


@product_axes
def test_measurements_keep_what_is_split_and_give_the_same_numbers(kind):
    rng = np.random.default_rng(0)
    params = {"w": rng.normal(size=[16, 8]).astype(np.float32), "b": np.zeros(8, np.float32)}
    batch = rng.normal(size=[24, 16]).astype(np.float32)

    def measured(params, batch):
        def losses(params, x):
            hidden = jnp.tanh(
                jnp.einsum("ni,io->no", x, params["w"], out_sharding=rows(x)) + params["b"][None]
            )
            return jnp.sum(hidden**2, axis=-1)

        found = sharpness.top_eigenvalues(losses, params, batch, 2, with_vectors=True)
        direction = sharpness.random_direction(params)
        return (
            found,
            direction,
            [
                *found.values,
                sharpness.trace(losses, params, batch, num_products=6).value,
                sharpness.ascent_sharpness(losses, params, batch, 0.1, num_steps=2).value,
                sharpness.ascent_sharpness(losses, params, batch, 0.1, microbatch_size=8).value,
                sharpness.average_sharpness(losses, params, batch, 0.1, num_samples=2).value,
                sharpness.psf_norm(losses, params, batch, 0.1).value,
                sharpness.critical_sharpness(losses, params, batch, tolerance=1e-4).step,
                sharpness.directional_sharpness(losses, params, batch, direction).value,
                sharpness.batch_sharpness(losses, params, batch, microbatch_size=8).value,
                *sharpness.landscape(losses, params, batch, [direction], num_points=2).losses,
            ],
        )

    def rows(x):
        return PartitionSpec("data", None) if kind == AxisType.Explicit and split else None

    split = False
    _, _, alone = measured(params, batch)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    with jax.set_mesh(mesh):
        split = True
        over = NamedSharding(mesh, PartitionSpec("data", None))
        params = {
            "w": jax.device_put(params["w"], over),
            "b": jax.device_put(params["b"], NamedSharding(mesh, PartitionSpec())),
        }
        found, direction, values = measured(params, jax.device_put(batch, over))
    np.testing.assert_allclose(values, alone, rtol=2e-4)
    for tree in (*found.vectors, direction):
        assert tree["w"].sharding.is_equivalent_to(over, 2)


@pytest.mark.slow
@product_axes
def test_layers_parts_and_other_matrices_give_the_same_numbers(kind):
    rng = np.random.default_rng(0)
    params = {"w": rng.normal(size=[16, 8]).astype(np.float32), "b": np.zeros(8, np.float32)}
    batch = rng.normal(size=[24, 16]).astype(np.float32)

    def measured(params, batch):
        def outputs(params, x):
            place = PartitionSpec("data", None) if kind == AxisType.Explicit and split else None
            return jnp.tanh(jnp.einsum("ni,io->no", x, params["w"], out_sharding=place) + params["b"][None])

        def losses(params, x):
            return jnp.sum(outputs(params, x) ** 2, axis=-1)

        def top(loss_fn, params):
            return sharpness.top_eigenvalues(loss_fn, params, batch, tolerance=1e-2).values[0]

        newton = sharpness.GaussNewton(outputs, lambda y, x: jnp.sum(y**2, axis=-1))
        fisher = sharpness.Fisher(outputs, lambda y, x: jnp.sum(y**2, axis=-1), lambda key, y, x: x)
        layers = sharpness.by_layer(losses, params, batch, num_products=2, max_products=4)
        diagonal = sharpness.diagonal(losses, params, batch, num_products=2).values
        part = sharpness.of_part(losses, params, {"w": True, "b": False})
        values = [
            *layers.traces,
            *layers.eigenvalues,
            sharpness.trace(losses, params, batch, num_products=6, method="xtrace").value,
            sharpness.worst_case_sharpness(losses, params, batch, 0.1, num_steps=3).value,
            sharpness.worst_case_sharpness(losses, params, batch, 0.1, norm="l2", num_steps=3).value,
            top(*part),
            top(newton, params),
            top(fisher, params),
            top(sharpness.EmpiricalFisher(losses), params),
        ]
        rough = sharpness.trace(sharpness.FiniteDifferences(losses), params, batch, num_products=4).value
        return diagonal, values, rough

    split = False
    _, alone, rough_alone = measured(params, batch)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    with jax.set_mesh(mesh):
        split = True
        over = NamedSharding(mesh, PartitionSpec("data", None))
        params = {
            "w": jax.device_put(params["w"], over),
            "b": jax.device_put(params["b"], NamedSharding(mesh, PartitionSpec())),
        }
        diagonal, values, rough = measured(params, jax.device_put(batch, over))
    np.testing.assert_allclose(values, alone, rtol=2e-3)
    assert rough == pytest.approx(rough_alone, rel=0.02)
    assert diagonal["w"].sharding.is_equivalent_to(over, 2)
