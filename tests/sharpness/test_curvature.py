"""Products, eigenvalues, trace and density against Hessians that are written out."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import io_callback
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.tree_util import Partial

from optax_sam import sharpness
from optax_sam.sharpness import reuse
from tests.registry import over
from tests.sharpness.problems import (
    dense_gauss_newton,
    dense_hessian,
    floats,
    joined,
    losses,
    losses_of_outputs,
    network,
    outputs,
    quadratic,
    random_vector_like,
)

ONE = jnp.ones([1])
SPECTRA = {
    "degenerate": [5.0, 5.0, 5.0, 3.0, 1.0, 1.0, 0.0, 0.0],
    "negative": [-1.0, -2.0, -2.0, -7.0],
    "indefinite": [4.0, 2.0, 0.0, -2.0, -4.0],
    "zero": [0.0, 0.0, 0.0],
    "one": [3.0],
}


def test_products_are_those_of_the_written_out_matrices():
    params, loss_fn, batches = network()
    vector = random_vector_like(params)
    whole = joined(batches)
    found = sharpness.hessian_vector_product(loss_fn, params, batches, vector)
    np.testing.assert_allclose(
        floats(found), dense_hessian(params, whole) @ floats(vector), rtol=1e-5, atol=1e-5
    )
    assert not found["count"].any() and found["count"].dtype == params["count"].dtype
    assert found["second"][1] is None and found["empty"].shape == (0,)
    one_batch = sharpness.hessian_vector_product(
        lambda p, b: (losses(p, b).mean(), "aux"), params, whole, vector
    )
    np.testing.assert_allclose(floats(one_batch), floats(found), rtol=1e-4, atol=1e-5)
    newton = sharpness.gauss_newton_vector_product(outputs, losses_of_outputs, params, batches, vector)
    expected = dense_gauss_newton(params, whole) @ floats(vector)
    np.testing.assert_allclose(floats(newton), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("which", ["largest", "smallest", "both"])
def test_eigenvalues_of_a_network_are_those_of_its_hessian(which):
    params, loss_fn, batches = network()
    exact = np.linalg.eigvalsh(dense_hessian(params, joined(batches)))[::-1]
    found = sharpness.top_eigenvalues(
        loss_fn, params, batches, 3, which=which, tolerance=1e-6, with_vectors=True
    )
    expected = {"largest": exact[:3], "smallest": exact[-3:]}.get(which, np.r_[exact[:3], exact[-3:]])
    np.testing.assert_allclose(found.values, expected, atol=1e-5 * np.abs(exact).max())
    assert found.converged and found.products <= exact.size
    units = np.array([floats(vector) for vector in found.vectors])
    np.testing.assert_allclose(units @ units.T, np.eye(len(units)), atol=1e-5)
    images = units @ dense_hessian(params, joined(batches)).T
    errors = np.linalg.norm(images - found.values[:, None] * units, axis=1)
    np.testing.assert_array_less(errors, found.residuals + 2e-6 * np.abs(exact).max())


def test_gauss_newton_eigenvalues_are_those_of_its_matrix():
    params, _, batches = network()
    newton = sharpness.GaussNewton(outputs, losses_of_outputs)
    exact = np.linalg.eigvalsh(dense_gauss_newton(params, joined(batches)))[::-1]
    found = sharpness.top_eigenvalues(newton, params, batches, 2, tolerance=1e-5)
    np.testing.assert_allclose(found.values, exact[:2], rtol=1e-5)


@pytest.mark.parametrize("name", over(SPECTRA, ["degenerate", "indefinite"]))
def test_every_copy_of_a_known_eigenvalue_is_found(name):
    spectrum = np.array(SPECTRA[name])
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=[spectrum.size] * 2))[0]
    matrix = jnp.asarray(rotation * spectrum @ rotation.T, jnp.float32)
    descending, size = np.sort(spectrum)[::-1], spectrum.size
    scale = max(np.abs(spectrum).max(), 1.0)
    for k in {1, min(3, size), size}:
        found = sharpness.top_eigenvalues(quadratic(matrix), jnp.zeros(size), ONE, k)
        np.testing.assert_allclose(found.values, descending[:k], atol=1e-5 * scale)
        assert found.converged


def test_residuals_bound_the_errors_on_a_random_matrix():
    matrix = np.random.default_rng(0).normal(size=[200, 200])
    matrix = (matrix + matrix.T) / 2
    exact = np.linalg.eigvalsh(matrix)
    loss_fn = Partial(lambda a, w, batch: batch * (w @ a @ w / 2), jnp.asarray(matrix, jnp.float32))
    for budget in (10, 25, 60):
        found = sharpness.top_eigenvalues(
            loss_fn, jnp.zeros(200), ONE, 2, tolerance=1e-6, max_products=budget
        )
        assert found.products <= budget and not found.converged
        nearest = np.abs(found.values[:, None] - exact).min(axis=1)
        assert np.all(nearest <= found.residuals + 1e-4)
        assert np.all(found.values <= exact[-1] + 1e-4)  # from inside
    assert "not converged" in str(found)
    one = sharpness.top_eigenvalues(loss_fn, jnp.zeros(200), ONE, tolerance=1e-12)
    assert one.products == 25


def test_the_trace():
    params, loss_fn, batches = network()
    exact = np.trace(dense_hessian(params, joined(batches)))
    for method in ("xtrace", "hutch++", "hutchinson"):
        found = sharpness.trace(loss_fn, params, batches, num_products=20, method=method)
        assert found.products == 20 and abs(found.value - exact) <= 4 * found.standard_error
        assert found.standard_error < abs(exact)
    # Signs read a diagonal exactly, and Hutch++ a matrix of low rank.
    diagonal = quadratic(jnp.diag(jnp.arange(1.0, 10.0)))
    found = sharpness.trace(diagonal, jnp.zeros(9), ONE, num_products=2, method="hutchinson")
    assert found.value == pytest.approx(45) and found.standard_error == pytest.approx(0, abs=1e-4)
    low = np.random.default_rng(0).normal(size=[50, 3])
    low_rank = quadratic(jnp.asarray(low @ low.T, jnp.float32))
    found = sharpness.trace(low_rank, jnp.zeros(50), ONE, num_products=15, method="hutch++")
    assert found.value == pytest.approx((low**2).sum(), rel=1e-5) and found.standard_error < 1e-3
    # As many products as there are directions leave nothing to estimate.
    for method in ("xtrace", "hutch++"):
        found = sharpness.trace(diagonal, jnp.zeros(9), ONE, num_products=60, method=method)
        assert found.value == pytest.approx(45, rel=1e-5) and found.standard_error == 0


def test_the_spectral_density():
    params, loss_fn, batches = network()
    exact = np.linalg.eigvalsh(dense_hessian(params, joined(batches)))
    found = sharpness.spectral_density(loss_fn, params, batches, num_vectors=3, num_steps=100)
    assert found.size == exact.size and found.products == 3 * exact.size  # no more steps than directions
    np.testing.assert_allclose(found.weights.sum(axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(found.nodes, np.tile(exact, [3, 1]), atol=1e-4 * np.abs(exact).max())
    # Few steps are exact for polynomials: the mean of v^T H v and v^T H^2 v over the same vectors.
    few = sharpness.spectral_density(loss_fn, params, batches, num_vectors=3, num_steps=3)
    for order in (1, 2, 4):
        assert few.moment(order) == pytest.approx(found.moment(order), rel=1e-4)
    grid, density = found.density()
    assert np.trapezoid(density, grid) == pytest.approx(1, abs=1e-3) and np.all(density >= 0)
    many = sharpness.spectral_density(
        quadratic(jnp.diag(jnp.array([1.0, 1.0, 1.0, 9.0]))), jnp.zeros(4), ONE, num_vectors=60, num_steps=2
    )
    assert many.weights[many.nodes < 5].sum() / 60 == pytest.approx(0.75, abs=0.1)
    assert "4 eigenvalues from 1 to 9" in str(many)


def test_what_a_loss_closes_over_is_read_anew_and_a_partial_is_compiled_once():
    scale, traces = jnp.array(1.0), []

    def loss_fn(w, batch):
        return scale * batch * w**2

    def of(scale, w, batch):
        traces.append(scale)
        return scale * batch * w**2

    def top(loss_fn):
        return sharpness.top_eigenvalues(loss_fn, jnp.array(0.0), ONE).values[0]

    assert top(loss_fn) == pytest.approx(2)
    scale = jnp.array(5.0)
    assert top(loss_fn) == pytest.approx(10)
    assert top(Partial(of, jnp.array(1.0))) == pytest.approx(2)
    count = len(reuse._COMPILED)
    assert traces and top(Partial(of, jnp.array(5.0))) == pytest.approx(10)
    assert len(reuse._COMPILED) == count  # traced, not compiled
    flagged = Partial(lambda w, batch, square: batch * (w**2 if square else w), square=True)
    assert top(flagged) == pytest.approx(2)  # what is no array may shape the program


def test_a_network_with_inner_programs_is_compiled_once():
    """Flax's relu is a `jit` of its own, whose equation names the mesh around it."""
    compilations = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: compilations.append(event) if "backend_compile" in event else None
    )

    def of(scale, params, batch):
        return scale * jax.nn.relu(batch @ params) ** 2

    def measure(scale):
        at = Partial(of, jnp.array(scale)), jnp.ones(3), [jnp.ones([4, 3]), 2 * jnp.ones([4, 3])]
        sharpness.top_eigenvalues(*at)
        sharpness.surrogate_gap(*at, 0.05)
        sharpness.batch_sharpness(*at)
        sharpness.critical_sharpness(*at, learning_rate=0.1)
        sharpness.directional_sharpness(*at, jnp.ones(3))

    measure(1.0)
    assert compilations
    compilations.clear()
    measure(2.0)
    assert not compilations


@pytest.mark.skipif(
    not hasattr(jax.config, "jax_use_simplified_jaxpr_constants"),
    reason="this JAX writes no array into a trace as a literal",
)
def test_arrays_that_a_trace_holds_as_literals_are_read_anew():
    """The text of a large one is shortened."""
    weights = [np.ones(3000, np.float32), np.ones(3000, np.float32)]
    weights[1][1500] = 3001.0
    before = jax.config.jax_use_simplified_jaxpr_constants
    jax.config.update("jax_use_simplified_jaxpr_constants", True)
    try:
        found = [
            sharpness.top_eigenvalues(
                Partial(lambda w, batch, held=held: batch * w**2 * np.float32(1) * jnp.mean(held)),
                jnp.array(0.0),
                ONE,
            ).values[0]
            for held in weights
        ]
    finally:
        jax.config.update("jax_use_simplified_jaxpr_constants", before)
    assert found == pytest.approx([2, 4])


def test_losses_that_place_their_rows_on_other_devices_are_told_apart():
    """Their text is the same: a mesh is written without its devices."""

    def top(devices):
        mesh = jax.make_mesh((2,), ("data",), devices=devices, axis_types=(AxisType.Auto,))
        rows = NamedSharding(mesh, P("data"))

        def losses(w, batch):
            return jax.nn.relu(jax.lax.with_sharding_constraint(batch, rows) @ w) ** 2

        at = jax.device_put(jnp.ones(3), NamedSharding(mesh, P())), [jax.device_put(jnp.ones([4, 3]), rows)]
        return sharpness.top_eigenvalues(Partial(losses), *at).values[0]

    two, others = jax.devices()[:2], jax.devices()[2:4]
    assert [top(two), top(others), top(others[::-1])] == pytest.approx([6, 6, 6])


DECAY = 0.0


class Trainer:
    decay = 0.0

    def losses(self, w, batch):
        return batch * w**2 + self.decay * w**2


def test_what_the_function_of_a_partial_reads_may_change(monkeypatch):
    def of_a_global(scale, w, batch):
        return scale * batch * w**2 + DECAY * w**2

    def of_an_array(w, batch):
        return batch * w**2 + held["decay"] * w**2

    def top(loss_fn):
        return sharpness.top_eigenvalues(loss_fn, jnp.array(0.0), ONE).values[0]

    trainer, held = Trainer(), {"decay": jnp.array(0.0)}
    assert top(Partial(trainer.losses)) == pytest.approx(2)
    trainer.decay = 10.0
    assert top(Partial(trainer.losses)) == pytest.approx(22)
    assert top(Partial(of_a_global, jnp.array(1.0))) == pytest.approx(2)
    monkeypatch.setattr(sys.modules[__name__], "DECAY", 10.0)
    assert top(Partial(of_a_global, jnp.array(1.0))) == pytest.approx(22)
    assert top(Partial(of_an_array)) == pytest.approx(2)
    held["decay"] = jnp.array(10.0)
    assert top(Partial(of_an_array)) == pytest.approx(22)


def test_what_an_inner_jit_a_derivative_rule_or_a_key_reads_may_change():
    held = {"scale": jnp.ones(2), "slope": 1.0, "key": jax.random.key(0)}

    @jax.custom_vjp
    def reversed_gradient(x):
        return x

    reversed_gradient.defvjp(lambda x: (x, None), lambda _, g: (-held["slope"] * g,))

    def of_an_inner_jit(w, batch):
        return batch * jax.jit(lambda x: x * held["scale"][0])(w) ** 2

    def of_a_rule(w, batch):
        return batch * reversed_gradient(w) ** 2

    def of_a_key(w, batch):
        return batch * (w + jax.random.normal(held["key"])) ** 2

    def length(losses):
        return sharpness.psf_norm(Partial(losses), jnp.array(3.0), ONE, rho=0.0).grad_norm

    before = [length(losses) for losses in (of_an_inner_jit, of_a_rule, of_a_key)]
    assert before[:2] == pytest.approx([6, 6])
    held |= {"scale": 2 * jnp.ones(2), "slope": -3.0, "key": jax.random.key(1)}
    after = [length(losses) for losses in (of_an_inner_jit, of_a_rule, of_a_key)]
    assert after[:2] == pytest.approx([24, 18])
    drawn = float(jax.random.normal(jax.random.key(1)))
    assert after[2] == pytest.approx(abs(2 * (3 + drawn)), rel=1e-5) and after[2] != before[2]


@pytest.mark.parametrize("kind", ["pure", "io", "debug", "inside a jit"])
def test_two_functions_of_the_host_are_told_apart(kind):
    """Partials that differ in nothing else."""
    seen = []

    def length(factor):
        def host(x):
            seen.append(factor)
            return np.asarray(x) * np.float32(factor)

        def losses(w, batch):
            like = jax.ShapeDtypeStruct(batch.shape, jnp.float32)
            if kind == "debug":
                jax.debug.callback(host, batch)
                return batch * w**2
            call = io_callback if kind == "io" else jax.pure_callback
            scale = lambda batch: call(host, like, batch)
            return (jax.jit(scale) if kind == "inside a jit" else scale)(batch) * w**2

        found = sharpness.psf_norm(Partial(losses), jnp.array(3.0), ONE, rho=0.0).grad_norm
        jax.effects_barrier()
        return found

    found = [length(factor) for factor in (1.0, 3.0)]
    assert set(seen) == {1.0, 3.0}
    assert found == pytest.approx([6, 6 if kind == "debug" else 18])


def test_low_precision_parameters_are_measured_in_float32():
    matrix = jnp.diag(jnp.array([4.0, 1.0, -2.0]))
    loss_fn = quadratic(matrix.astype(jnp.bfloat16))
    found = sharpness.top_eigenvalues(loss_fn, jnp.zeros(3, jnp.bfloat16), ONE, 3, with_vectors=True)
    np.testing.assert_allclose(found.values, [4, 1, -2], atol=0.05)
    assert np.all(found.residuals >= 4 * 2**-8)  # no closer than the parameters' own rounding
    assert found.vectors[0].dtype == jnp.float32


def test_in_double_precision_eigenvalues_are_exact_to_it():
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        matrix = rng.normal(size=[40, 40])
        matrix = matrix + matrix.T
        found = sharpness.top_eigenvalues(
            quadratic(matrix), jnp.zeros(40), jnp.ones([1]), 40, which="largest", tolerance=1e-12
        )
        np.testing.assert_allclose(found.values, np.linalg.eigvalsh(matrix)[::-1], atol=1e-10)
        single = quadratic(jnp.diag(jnp.array([4.0, 1.0], jnp.float32)))
        found = sharpness.top_eigenvalues(single, jnp.zeros(2, jnp.float32), jnp.ones([1], jnp.float32))
        assert found.values[0] == pytest.approx(4)
