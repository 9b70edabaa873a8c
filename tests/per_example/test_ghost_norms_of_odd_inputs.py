"""Norms of single examples' gradients where a layer is given integers, complex numbers, or any units."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optax_sam import per_example
from optax_sam.arithmetic import trees
from tests.per_example.test_ghost_norms import EXAMPLES, X, by_vmap, check, normal

UNITS = jnp.array([1e10, 1e-10])

ODD = {
    "bytes": lambda w, x: jnp.sin((jnp.abs(x) * 60).astype(jnp.uint8) @ w),
    "int8": lambda w, x: jnp.sin((x * 30).astype(jnp.int8) @ w),
    "int32": lambda w, x: jnp.sin((x * 1e5).astype(jnp.int32) @ w * 1e-5),
    "booleans": lambda w, x: jnp.sin((x > 0) @ w),
    "behind a Fourier transform": lambda w, x: jnp.abs(jnp.fft.rfft(x, 10) @ w) ** 2,
    "an imaginary part": lambda w, x: (jnp.fft.rfft(x, 10) @ w).imag * x[:, :1],
    "a complex table": lambda w, x: jnp.abs(w.astype(jnp.complex64)[(x > 0).astype(int)] * 1j).sum(-1),
    "tiny activations": lambda w, x: jnp.sin((1e-23 * x) @ w * 1e23),
    "huge activations": lambda w, x: jnp.sin((1e20 * x) @ w * 1e-20),
    "tiny ones at many positions": lambda w, x: jnp.sin(
        (1e-23 * x[:, None] * jnp.arange(1.0, 60)[:, None]) @ w * 1e23
    ).mean(1),
    "positions of different units": lambda w, x: jnp.sin(
        (x[:, None] * UNITS[:, None]) @ w / UNITS[:, None]
    ).sum(1),
    "many positions of different units": lambda w, x: jnp.sin(
        (x[:, None] * jnp.tile(UNITS, 30)[:, None]) @ w / jnp.tile(UNITS, 30)[:, None]
    ).mean(1),
    "two uses of different units": lambda w, x: (
        jnp.sin((1e10 * x) @ w * 1e-10) + jnp.sin((1e-10 * x) @ w * 1e10)
    ),
    "a tied table": lambda w, x: jnp.sin((w[(x[:, 0] > 0).astype(int)] * 1e10) @ w.T * 1e-10),
    "layers of different units": lambda w, x: (
        jnp.sin((1e-20 * x) @ w * 1e20) + jnp.sin((1e15 * x) @ (w * 1e-15))
    ),
}


# JAX 0.8 warns in the gradient of a product of real and complex numbers.
@pytest.mark.filterwarnings("ignore:Casting complex values to real:numpy.exceptions.ComplexWarning")
@pytest.mark.parametrize("name", ODD)
def test_integers_complex_numbers_and_any_units_beside_a_matrix(name, as_optax_promotes):
    """What a layer is given may be of any dtype and any size."""
    check(lambda p, b: jnp.sum(ODD[name](p["w"], b["x"]), -1), {"w": normal(9, 6, 7)}, X)


@pytest.mark.parametrize("rows", [200, 256, 300])
@pytest.mark.parametrize("mode", ["fill", "clip"])
def test_a_table_that_is_read_by_bytes(rows, mode, as_optax_promotes):
    """The reference multiplies with one-hot rows: without fusion, XLA's own scatter by bytes is wrong."""
    text = {"x": jax.random.randint(jax.random.key(5), [EXAMPLES, 6], 0, 190).astype(jnp.uint8)}

    def losses(params, batch):
        return jnp.sum(jnp.sin(jnp.take(params["table"], batch["x"], axis=0, mode=mode)), (1, 2))

    def by_one_hot(params, batch):
        return jnp.sum(jnp.sin(jax.nn.one_hot(batch["x"].astype(int), rows) @ params["table"]), (1, 2))

    params = {"table": normal(6, rows, 3)}
    got = per_example.gradient_norms(losses, params, text)
    np.testing.assert_allclose(got, by_vmap(by_one_hot, params, text), rtol=2e-5)


@pytest.mark.parametrize("kind", ["a head of zeros", "dead units"])
def test_derivatives_of_the_norms_are_finite_where_a_layer_has_no_gradient(kind):
    params = {name: normal(number, 6, 6) for number, name in enumerate("uvw")}
    if kind == "a head of zeros":
        params["w"] = jnp.zeros([6, 6])
    else:
        params["v"] = -jnp.abs(params["v"])

    def losses(params, batch):
        hidden = jax.nn.relu(jnp.abs(jnp.tanh(batch["x"] @ params["u"])) @ params["v"])
        return jnp.sum(jnp.sin(hidden @ params["w"] + 1), -1)

    got, wanted = (
        jax.grad(lambda params, f=f: jnp.sum(f(losses, params, X) * jnp.arange(1.0, EXAMPLES + 1)))(params)
        for f in (per_example.gradient_norms, by_trees_norm)
    )
    for name in params:
        np.testing.assert_allclose(got[name], wanted[name], rtol=1e-3, atol=1e-4)


def by_trees_norm(losses, params, batch):
    """The norms of gradients written out, whose derivative at zero is zero."""

    def norm(row):
        row = jax.tree.map(lambda x: x[None], row)
        return trees.norm(jax.grad(lambda params: losses(params, row)[0])(params))

    return jax.vmap(norm)(batch)
