"""One layer alone, layer by layer, and entry by entry: against blocks of Hessians that are written out."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optax_sam import sharpness
from optax_sam.arithmetic import keys, random_trees
from optax_sam.sharpness.xtrace import estimates
from tests.sharpness.problems import (
    dense_gauss_newton,
    floats,
    joined,
    losses,
    losses_of_outputs,
    network,
    outputs,
    quadratic,
    written_out,
)

ONE = jnp.ones([1])
FIRST = slice(0, 16)  # of the network's entries: bias and kernel
MASKS = {
    "a predicate": lambda path, leaf: "first" in jax.tree_util.keystr(path),
    "a prefix": {"first": True, "second": False, "count": False, "empty": False},
    "a tree": {
        "first": {"kernel": True, "bias": True},
        "second": [False, None],
        "count": False,
        "empty": True,
    },
}


@pytest.mark.parametrize("name", MASKS)
def test_eigenvalues_of_a_part_are_those_of_its_block(name):
    params, loss_fn, batches = network()
    block = written_out()[1].mean(0)[FIRST, FIRST]
    part = sharpness.of_part(loss_fn, params, MASKS[name])
    found = sharpness.top_eigenvalues(*part, batches, 2, which="both", tolerance=1e-6, with_vectors=True)
    exact = np.linalg.eigvalsh(block)[::-1]
    np.testing.assert_allclose(found.values, np.r_[exact[:2], exact[-2:]], atol=1e-5 * np.abs(exact).max())
    assert found.vectors[0]["second"][0] == optax.MaskedNode()
    unit = floats(found.vectors[0])
    np.testing.assert_allclose(block @ unit, exact[0] * unit, atol=1e-3)


@pytest.mark.slow
def test_any_measurement_and_any_matrix_takes_a_part():
    params, loss_fn, batches = network()
    whole = joined(batches)
    part = sharpness.of_part(loss_fn, params, MASKS["a predicate"])

    def at(first):
        return losses(params | {"first": first}, whole).mean()

    gradient = jax.grad(at)(params["first"])
    there = jax.tree.map(lambda w, g: w + 0.1 * g / optax.tree.norm(gradient), params["first"], gradient)
    found = sharpness.ascent_sharpness(*part, batches, 0.1)
    assert found.value == pytest.approx(float(at(there) - at(params["first"])), rel=1e-3)
    newton = sharpness.GaussNewton(outputs, losses_of_outputs)
    found = sharpness.top_eigenvalues(
        *sharpness.of_part(newton, params, MASKS["a tree"]), batches, tolerance=1e-5
    )
    exact = np.linalg.eigvalsh(dense_gauss_newton(params, whole)[FIRST, FIRST])[-1]
    assert found.values[0] == pytest.approx(exact, rel=1e-4)


@pytest.mark.slow
def test_layers_have_the_traces_and_eigenvalues_of_their_blocks():
    params, loss_fn, batches = network()
    hessian = written_out()[1].mean(0)
    blocks = [hessian[FIRST, FIRST], hessian[16:, 16:]]
    found = sharpness.by_layer(loss_fn, params, batches, num_products=40, max_products=30, tolerance=1e-6)
    assert found.names == ("first", "second") and found.sizes.tolist() == [16, 8]
    exact = np.array([np.trace(block) for block in blocks])
    assert np.all(np.abs(found.traces - exact) <= 4 * found.standard_errors)
    assert np.all(found.standard_errors < np.abs(exact))
    tops = [np.linalg.eigvalsh(block)[-1] for block in blocks]
    np.testing.assert_allclose(found.eigenvalues, tops, rtol=1e-4)
    assert found.products <= 40 + 16 + 8
    same = sharpness.trace(loss_fn, params, batches, num_products=40, method="hutchinson")
    assert found.traces.sum() == pytest.approx(same.value, rel=1e-4)  # the same random signs
    lines = str(found).splitlines()
    assert len(lines) == 3 and lines[0].startswith("layer") and lines[2].startswith("second")


def test_groups_have_the_names_that_they_are_given():
    params, loss_fn, batches = network()

    def groups(path, leaf):
        return "matrices" if leaf.ndim == 2 else "the rest"

    found = sharpness.by_layer(loss_fn, params, batches, groups=groups, num_products=2, max_products=0)
    assert found.names == ("the rest", "matrices") and found.sizes.tolist() == [4, 20]
    assert np.all(np.isnan(found.eigenvalues)) and found.products == 2
    one = sharpness.by_layer(quadratic(jnp.diag(jnp.array([4.0, -1.0]))), jnp.ones(2), ONE, num_products=1)
    assert one.names == ("params",) and one.traces[0] == pytest.approx(3)
    assert one.eigenvalues[0] == pytest.approx(4) and np.isnan(one.standard_errors[0])


def test_layers_whose_keys_hold_a_slash_stay_apart():
    params = {"a": {"b": {"w": jnp.array(1.0)}}, "a/b": jnp.array(1.0), "c": jnp.array(1.0)}

    def loss_fn(params, batch):
        return batch * (params["a"]["b"]["w"] ** 2 + 5 * params["a/b"] ** 2 + params["c"] ** 2)

    found = sharpness.by_layer(loss_fn, params, ONE, num_products=2, max_products=2)
    assert found.names == ("['a']['b']", "['a/b']", "c")
    np.testing.assert_allclose(found.traces, [2, 10, 2])
    np.testing.assert_allclose(found.eigenvalues, [2, 10, 2])


def test_the_diagonal_is_that_of_the_hessian_within_its_errors():
    params, loss_fn, batches = network()
    exact = np.diag(written_out()[1].mean(0))
    found = sharpness.diagonal(loss_fn, params, batches, num_products=50)
    values, errors = floats(found.values), floats(found.standard_errors)
    assert np.all(np.abs(values - exact) <= 5 * errors) and errors.mean() < np.abs(exact).max() / 4
    assert found.values["second"][1] is None and not found.values["count"].any()
    diagonal = quadratic(jnp.diag(jnp.array([3.0, -1.0, 0.0])))
    found = sharpness.diagonal(diagonal, jnp.ones(3), ONE, num_products=2)
    np.testing.assert_allclose(found.values, [3, -1, 0], atol=1e-6)
    np.testing.assert_allclose(found.standard_errors, 0, atol=1e-6)


def test_the_errors_of_the_diagonal_are_those_of_its_samples():
    found = sharpness.diagonal(
        quadratic(jnp.array([[1.0, 2.0], [2.0, 5.0]])), jnp.ones(2), ONE, num_products=20
    )
    mean_sign = (float(found.values[0]) - 1) / 2  # samples are 1 + 2 s and 5 + 2 s, with signs s
    expected = 2 * np.sqrt((1 - mean_sign**2) / 19)
    np.testing.assert_allclose(found.values[1], 5 + 2 * mean_sign, rtol=1e-5)
    np.testing.assert_allclose(found.standard_errors, expected, rtol=1e-4)
    one = sharpness.diagonal(quadratic(jnp.eye(2)), jnp.ones(2), ONE, num_products=1)
    assert np.all(np.isnan(one.standard_errors))


def literal_xtrace(matrix, probes):
    """The estimator as the paper defines it: for each vector, a basis of the images of all others."""
    size, count = probes.shape
    found = []
    for number in range(count):
        others = np.linalg.qr(matrix @ np.delete(probes, number, axis=1))[0]
        rest = probes[:, number] - others @ (others.T @ probes[:, number])
        rest *= np.sqrt(size - count + 1) / np.linalg.norm(rest)
        found.append(np.trace(others.T @ matrix @ others) + rest @ matrix @ rest)
    return np.mean(found), np.std(found, ddof=1) / np.sqrt(count)


def test_xtrace_is_the_papers_estimator():
    matrix = np.random.default_rng(0).normal(size=[30, 30])
    matrix = matrix + matrix.T
    like = [jnp.ones(30)]
    of_probes = [jax.random.fold_in(keys.from_seed(3, "trace"), number) for number in range(6)]
    probes = np.array([random_trees.standard_normal(key, like)[0] for key in of_probes], float).T
    value, error = literal_xtrace(matrix, probes)
    found = sharpness.trace(
        quadratic(jnp.asarray(matrix, jnp.float32)),
        jnp.zeros(30),
        ONE,
        num_products=13,
        method="xtrace",
        seed=3,
    )
    assert found.products == 12
    assert found.value == pytest.approx(value, rel=1e-3, abs=1e-3)
    assert found.standard_error == pytest.approx(error, rel=1e-3)


@pytest.mark.parametrize(
    ("values", "count", "expected"),
    [
        (np.random.default_rng(0).normal(size=200), 6, 1.03),
        (np.random.default_rng(0).normal(size=200), 15, 1.13),
        (np.linspace(-3, 3, 35), 6, 1.15),
        (np.linspace(-3, 3, 35), 15, 1.29),
    ],
)
def test_xtrace_tells_too_small_an_error_on_flat_spectra(values, count, expected):
    rng, errors, told = np.random.default_rng(1), [], []
    for _ in range(1000):
        probes = rng.normal(size=(len(values), count))
        products = values[:, None] * probes
        basis = np.linalg.qr(products)[0]
        found = estimates(
            basis.T @ (values[:, None] * basis),
            basis.T @ products,
            basis.T @ probes,
            list(np.sum(probes * products, axis=0)),
            list(np.sum(probes**2, axis=0)),
            len(values),
        )
        errors.append(found.mean() - values.sum())
        told.append(found.std(ddof=1) / np.sqrt(count))
    errors, told = np.array(errors), np.array(told)
    assert abs(errors.mean()) < 4.5 * errors.std() / np.sqrt(1000)
    assert np.sqrt(np.mean(errors**2) / np.mean(told**2)) == pytest.approx(expected, abs=0.08)
    assert 1.2 < np.sqrt(np.mean((errors / told) ** 2)) < 1.55


def test_measurements_draw_by_the_default_generator():
    bowl = quadratic(jnp.diag(jnp.arange(1.0, 9.0)))
    with jax.default_prng_impl("rbg"):
        found = sharpness.trace(bowl, jnp.zeros(8), ONE, num_products=20)
        rise = sharpness.average_sharpness(bowl, jnp.zeros(8), ONE, 0.1, num_samples=4)
    assert found.value == pytest.approx(36, rel=1e-4) and rise.value > 0


def test_xtrace_reads_low_rank_and_small_matrices_exactly():
    low = np.random.default_rng(0).normal(size=[50, 3])
    low_rank = quadratic(jnp.asarray(low @ low.T, jnp.float32))
    found = sharpness.trace(low_rank, jnp.zeros(50), ONE, num_products=12, method="xtrace")
    assert found.value == pytest.approx((low**2).sum(), rel=1e-4) and found.standard_error < 1e-2
    assert found.products == 6 + 3
    whole = sharpness.trace(
        quadratic(jnp.diag(jnp.arange(1.0, 5.0))), jnp.zeros(4), ONE, num_products=20, method="xtrace"
    )
    assert whole.value == pytest.approx(10, rel=1e-5) and whole.standard_error == 0
    assert whole.products == 8
    one = sharpness.trace(low_rank, jnp.zeros(50), ONE, num_products=2, method="xtrace")
    assert np.isnan(one.standard_error)


def test_what_is_no_part_is_refused():
    params, loss_fn, batches = network()
    with pytest.raises(ValueError, match="mask chooses no float leaf of params"):
        sharpness.of_part(loss_fn, params, lambda path, leaf: leaf.dtype.kind == "i")
    with pytest.raises(TypeError, match=r"mask\['first'\]=1 is no bool"):
        sharpness.of_part(loss_fn, params, MASKS["a prefix"] | {"first": 1})
    with pytest.raises(ValueError, match="mask is no tree like params"):
        sharpness.of_part(loss_fn, params, {"first": True})
    with pytest.raises(TypeError, match="groups returned 3: return the name of the layer"):
        sharpness.by_layer(loss_fn, params, batches, groups=lambda path, leaf: 3)
