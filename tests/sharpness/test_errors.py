"""What the measurements refuse: each error names the argument, its value and the repair."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optax_sam import sharpness

W, BATCH = jnp.ones(3), jnp.ones([4, 3])


def squares(w, batch):
    return (batch @ w) ** 2


def top(loss_fn=squares, params=W, batches=BATCH, k=1, **rest):
    return sharpness.top_eigenvalues(loss_fn, params, batches, k, **rest)


REFUSED = {
    "k above the parameters": (lambda: top(k=4), "k=4 .* more than the 3 eigenvalues: lower k"),
    "k of both ends": (lambda: top(k=2, which="both"), "k=2 with which='both' .* lower k"),
    "k no integer": (lambda: top(k=1.5), "k=1.5 is a float"),
    "another end": (lambda: top(which="top"), "which='top' is unknown: choose one of largest"),
    "no tolerance": (lambda: top(tolerance=0), "tolerance=0 is not above 0"),
    "few products": (lambda: top(k=2, max_products=1), "max_products=1 is outside"),
    "fewer products than two blocks": (
        lambda: top(k=3, max_products=3, block_size=2, params=jnp.ones(4), batches=jnp.ones([4, 4])),
        "max_products=3 is outside",
    ),
    "a key for a seed": (lambda: top(seed=jax.random.key(0)), "pass one integer, not a key"),
    "a loss that is none": (lambda: top(loss_fn=3.0), "loss_fn=3.0 is not a function"),
    "losses per token": (lambda: top(loss_fn=lambda w, x: x * w[None]), r"losses returned shape \[4, 3\]"),
    "three things": (lambda: top(loss_fn=lambda w, x: (squares(w, x), 1, 2)), "returned a tuple of 3"),
    "a product at a kink": (
        lambda: sharpness.hessian_vector_product(lambda w, x: jnp.sqrt(jnp.abs(x @ (w - 1))), W, BATCH, W),
        "a product with the curvature matrix is not finite",
    ),
    "an infinite loss": (lambda: top(loss_fn=lambda w, x: squares(w, x) / 0), "the loss at params is inf"),
    "a kink": (
        lambda: top(loss_fn=lambda w, x: jnp.sqrt(jnp.abs(x @ (w - 1)))),
        "a product with the curvature matrix is not finite",
    ),
    "a kink under a trace": (
        lambda: sharpness.trace(lambda w, x: jnp.sqrt(jnp.abs(x @ (w - 1))), W, BATCH),
        "a product with the curvature matrix is not finite",
    ),
    "an iterator": (lambda: top(batches=iter([BATCH])), "is an iterator, which ends after one pass"),
    "no batches": (lambda: top(batches=[]), "batches is empty: pass at least one"),
    "an empty batch": (lambda: top(batches=jnp.ones([0, 3])), "batch has 0 examples"),
    "leaves that differ": (
        lambda: top(lambda w, b: squares(w, b["x"]), batches={"x": BATCH, "y": jnp.ones(3)}),
        r"batch\['y'\] has shape \(3,\), but the batch has 4 examples",
    ),
    "no float parameters": (lambda: top(params=jnp.arange(3)), "params has no float leaves"),
    "a function among the parameters": (
        lambda: top(params={"w": W, "act": jnp.tanh}),
        r"params\['act'\] is no array of numbers",
    ),
    "names in a batch": (
        lambda: top(batches=[{"x": BATCH, "name": np.array(["a"] * 4)}]),
        r"batch 0\['name'\] is no array of numbers \(<U1\)",
    ),
    "complex parameters": (
        lambda: top(params={"a": W.astype(complex)}),
        r"params\['a'\] has dtype complex64",
    ),
    "traced parameters": (lambda: jax.jit(lambda w: top(params=w).products)(W), "outside of jax.jit"),
    "traced batches": (lambda: jax.jit(lambda x: top(batches=x).products)(BATCH), "batches are traced"),
    "another vector": (
        lambda: sharpness.hessian_vector_product(squares, W, BATCH, jnp.ones(2)),
        r"vector has the shapes \(2,\), unlike params",
    ),
    "no model": (
        lambda: sharpness.gauss_newton_vector_product(None, squares, W, BATCH, W),
        "outputs=None is not a function",
    ),
    "few products for Hutch++": (
        lambda: sharpness.trace(squares, W, BATCH, num_products=2, method="hutch++"),
        "num_products=2 is outside",
    ),
    "another estimate": (
        lambda: sharpness.trace(squares, W, BATCH, method="exact"),
        "method='exact' is unknown",
    ),
    "no steps": (
        lambda: sharpness.spectral_density(squares, W, BATCH, num_steps=0),
        "num_steps=0 is outside",
    ),
    "a negative radius": (lambda: sharpness.ascent_sharpness(squares, W, BATCH, -1.0), "rho=-1.0 is outside"),
    "a part that does not divide": (
        lambda: sharpness.ascent_sharpness(squares, W, BATCH, 0.1, microbatch_size=3),
        "microbatch_size=3 does not divide batch 0 of 4 examples",
    ),
    "a ball too large": (
        lambda: sharpness.ascent_sharpness(lambda w, x: jnp.exp(x @ w), W, BATCH, 1e3),
        "the loss within rho=1000.0 of params is inf: lower rho",
    ),
    "SAM's perturbation too large": (
        lambda: sharpness.surrogate_gap(lambda w, x: jnp.exp(x @ w), W, BATCH, 1e3),
        "the loss within rho=1000.0 of params is inf",
    ),
    "a gradient at a kink": (
        lambda: sharpness.gradient_noise(lambda w, x: jnp.sqrt(jnp.abs(x @ (w - 1))), W, BATCH),
        "a gradient is not finite",
    ),
    "another distribution": (
        lambda: sharpness.average_sharpness(squares, W, BATCH, 0.1, distribution="cauchy"),
        "distribution='cauchy' is unknown",
    ),
    "one example": (lambda: sharpness.gradient_noise(squares, W, BATCH[:1]), "batches hold one example"),
    "no direction": (lambda: sharpness.landscape(squares, W, BATCH, []), "directions is a list of 0"),
    "a bare direction": (
        lambda: sharpness.landscape(squares, W, BATCH, W),
        "pass a list of one or two trees",
    ),
    "another direction": (
        lambda: sharpness.landscape(squares, W, BATCH, [jnp.ones(2)]),
        r"directions\[0\] has the shapes \(2,\)",
    ),
    "one point": (
        lambda: sharpness.landscape(squares, W, BATCH, [W], num_points=1),
        "num_points=1 is outside",
    ),
    "a negative span": (lambda: sharpness.landscape(squares, W, BATCH, [W], span=-1.0), "span=-1.0"),
    "a span backwards": (lambda: sharpness.landscape(squares, W, BATCH, [W], span=(1.0, 0.0)), "span=0.0 is"),
    "updates of zero": (
        lambda: sharpness.directional_sharpness(squares, W, BATCH, 0 * W),
        "updates is zero everywhere: there is no direction",
    ),
    "updates without end": (
        lambda: sharpness.critical_sharpness(squares, W, BATCH, W / 0),
        "updates has the norm inf: pass a finite direction",
    ),
    "no gradient to descend on": (
        lambda: sharpness.critical_sharpness(squares, 0 * W, BATCH),
        "the gradient of loss_fn is zero at params: pass updates",
    ),
    "a gradient at a kink to descend on": (
        lambda: sharpness.critical_sharpness(lambda w, x: jnp.sqrt(jnp.abs(x @ (w - 1))), W, BATCH),
        "the gradient of loss_fn has the norm inf",
    ),
    "no step": (
        lambda: sharpness.critical_sharpness(squares, W, BATCH, learning_rate=0.0),
        "learning_rate=0.0 is not above 0",
    ),
    "an interval wider than its end": (
        lambda: sharpness.critical_sharpness(squares, W, BATCH, tolerance=2.0),
        "tolerance=2.0 is outside",
    ),
    "no second loss": (
        lambda: sharpness.relative_critical_sharpness(squares, W, BATCH, None, BATCH),
        "trained_loss_fn=None is not a function",
    ),
    "batches in parts that do not divide": (
        lambda: sharpness.batch_sharpness(squares, W, BATCH, microbatch_size=3),
        "microbatch_size=3 does not divide batch 0",
    ),
    "a batch's gradient at a kink": (
        lambda: sharpness.batch_sharpness(lambda w, x: jnp.sqrt(jnp.abs(x @ (w - 1))), W, BATCH),
        "the gradient of a batch is not finite",
    ),
    "a page for no step": (
        lambda: sharpness.report(squares, W, BATCH, learning_rate=0.0),
        "learning_rate=0.0 is not above 0",
    ),
    "another ball": (
        lambda: sharpness.worst_case_sharpness(squares, W, BATCH, 0.1, norm="l1"),
        "norm='l1' is unknown: choose one of linf, l2",
    ),
    "a worst case that is none": (
        lambda: sharpness.worst_case_sharpness(lambda w, x: jnp.exp(x @ w), W, BATCH, 1e3),
        "the loss within rho=1000.0 of params is inf: lower rho",
    ),
    "no product for a diagonal": (
        lambda: sharpness.diagonal(squares, W, BATCH, num_products=0),
        "num_products=0 is outside",
    ),
    "a diagonal at a kink": (
        lambda: sharpness.diagonal(lambda w, x: jnp.sqrt(jnp.abs(x @ (w - 1))), W, BATCH),
        "a product with the curvature matrix is not finite",
    ),
    "layers without products": (
        lambda: sharpness.by_layer(squares, W, BATCH, num_products=0),
        "num_products=0 is outside",
    ),
    "a span of three": (lambda: sharpness.landscape(squares, W, BATCH, [W], span=(0, 1, 2)), "has 3 ends"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_the_error_names_the_argument_and_the_repair(name):
    measure, message = REFUSED[name]
    with pytest.raises((ValueError, TypeError), match=message):
        measure()


def test_a_bar_needs_rich_and_changes_no_number(monkeypatch, capsys):
    shown = sharpness.trace(squares, W, [BATCH, BATCH], num_products=6, progress=True)
    assert shown == sharpness.trace(squares, W, [BATCH, BATCH], num_products=6)
    assert capsys.readouterr().out == ""
    monkeypatch.setitem(__import__("sys").modules, "rich.progress", None)
    with pytest.raises(ImportError, match="pip install rich"):
        sharpness.trace(squares, W, BATCH, num_products=3, progress=True)


def test_anything_that_can_be_read_again_is_many_batches():
    class Loader:
        def __len__(self):
            raise TypeError("The dataset length is unknown.")  # as TensorFlow's

        def __iter__(self):
            return iter([np.ones([3, 3], np.float32), np.ones([1, 3], np.float32)])

    assert top(batches=Loader()).values[0] == pytest.approx(top().values[0], rel=1e-6)


def test_a_batch_in_a_list_of_batches_may_be_a_list_itself():
    def losses(w, batch):
        x, y = batch
        return (x @ w - y) ** 2

    pairs = [[BATCH, jnp.zeros(4)], [BATCH[:2], jnp.ones(2)]]
    tuples = list(map(tuple, pairs))
    for measure in (sharpness.surrogate_gap, sharpness.psf_norm):
        assert str(measure(losses, W, pairs, 0.1)) == str(measure(losses, W, tuples, 0.1))


def test_seeds_may_be_negative_grids_lists_and_losses_may_bring_more():
    newton = sharpness.GaussNewton(lambda w, x: x @ w, lambda y, x: (y**2, "aux"))
    found = sharpness.spectral_density(newton, W, BATCH, num_vectors=1, seed=-1)
    grid, density = found.density(grid=[0.0, 6.0], width=1.0)
    assert grid.shape == density.shape == (2,) and np.all(density > 0)
    assert found.nodes.max() == pytest.approx(6, rel=1e-5)
