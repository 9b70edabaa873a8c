"""Parameters and batches split over devices: the same numbers, and vectors split as the parameters are."""

import jax
import jax.numpy as jnp
import numpy as np
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
