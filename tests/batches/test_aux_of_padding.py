"""Auxiliary values of examples of weight 0: metrics that are summed outside of the loss."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import optax_sam
from tests.problem import init_params, losses, make_batch, make_indices
from tests.registry import CASES, over

REAL = jnp.arange(16) < 6


def padded():
    """Six examples, and ten rows of zeros, with the mask in the batch."""

    def on_leaf(x):
        return jnp.where(REAL.reshape(-1, *(1,) * (x.ndim - 1)), x, jnp.zeros_like(x))

    return jax.tree.map(on_leaf, make_batch() | {"mask": REAL})


def with_metrics(params, batch):
    """Losses, and what a user sums up: of each example, by columns, and of the batch."""
    found = losses(params, batch)
    mask = batch["mask"].astype(jnp.float32)
    metrics = {
        "right": jnp.where(found < 1.0, mask, 0.0),
        "count": batch["mask"],
        "columns": jnp.stack([mask, 2.0 * mask]),
        "squares": jnp.stack([found, jnp.square(found)], axis=1) * mask[:, None],
    }
    return found, metrics


@pytest.mark.parametrize("name", over(CASES))
def test_masked_metrics_are_those_of_the_real_examples(name):
    """Sums over rows, and over slices where there are some: those that the method saw, no copy of one."""
    case, params = CASES[name], init_params()
    surrogate = {k: with_metrics for k in case.required if "surrogate" in k}
    method = case.make(**surrogate)

    @jax.jit
    def first_pass(params, batch):
        (_, aux), _, _ = method.value_and_grad(with_metrics, has_aux=True)(
            params,
            batch,
            state=method.init(params),
            indices=make_indices(),
            weights=REAL,
            whole_batch=True,
        )
        return aux

    aux = first_pass(params, padded())
    seen = np.asarray(aux["count"]).sum()
    assert seen == 6 or (seen == 3 and "random_perturbation" in name)
    assert np.asarray(aux["columns"]).sum() == 3 * seen and np.asarray(aux["right"]).sum() <= seen
    if seen == 6 and case.starts_at_params:
        wanted = with_metrics(params, jax.tree.map(lambda x: x[:6], padded()))[1]
        for metric in ("right", "squares"):
            np.testing.assert_allclose(np.sum(aux[metric]), np.sum(wanted[metric]), rtol=1e-5)


@pytest.mark.parametrize("meet", [False, True], ids=["apart", "they meet"])
def test_rows_of_padding_are_zero_wherever_the_examples_stand(meet):
    """In any axis and dtype. What belongs to no example, and keys, stay. So does all, where examples meet."""

    def told(params, batch):
        values = batch["x"] @ params
        keys = jax.vmap(jax.random.key)(batch["id"])
        aux = {
            "values": values,
            "turned": values.T,
            "ids": batch["id"],
            "flags": batch["id"] >= 0,
            "half": jnp.sqrt(batch["x"] - 1).astype(jnp.bfloat16),
            "params": params,
            "keys": keys,
        }
        return values.sum(axis=1), aux | ({"mean": values.mean()} if meet else {})

    batch = {"x": jnp.arange(12.0).reshape(4, 3) + 1, "id": jnp.array([5, 6, 7, 8], jnp.int32)}
    params, weights = jnp.ones((3, 4)), jnp.array([1.0, 0.0, -1.0, 0.0])
    oracle = optax_sam.Oracle(told, batch, weights=weights, has_aux=True)
    (_, aux), _ = oracle.value_and_grad(params)
    wanted = told(params, batch)[1]
    real = np.asarray(weights) != 0
    for name in ("values", "ids", "flags", "half"):
        assert aux[name].dtype == wanted[name].dtype
        np.testing.assert_array_equal(aux[name][real], wanted[name][real])
        padding = wanted[name] if meet else np.zeros_like(wanted[name])
        np.testing.assert_array_equal(aux[name][~real], padding[~real])
    assert np.any(np.asarray(aux["turned"][:, ~real])) == meet and np.all(np.asarray(aux["turned"][:, real]))
    np.testing.assert_array_equal(aux["params"], params)
    assert aux["keys"].shape == (4,) and jax.dtypes.issubdtype(aux["keys"].dtype, jax.dtypes.prng_key)


def test_what_reads_no_example_but_has_an_entry_for_each_is_cleared():
    """Ones of the losses' shape are a count. An array of as many entries that stays as long is none."""

    def told(params, batch, classes, kept=None):
        values = batch["x"] @ params
        size = len(values)
        aux = {
            "count": jnp.ones_like(values),
            "length": jnp.full((size,), 3, jnp.int32),
            "turned": jnp.ones((2, size)),
            "params": params,
            "classes": classes,
        }
        return values if kept is None else values + kept, aux

    batch, params, classes = {"x": jnp.ones((4, 4))}, jnp.ones(4), jnp.arange(4.0)
    weights = jnp.array([1.0, 0.0, 2.0, 0.0])
    for of_one_size, slices in ((False, 1), (False, 2), (True, 1)):
        args = (classes, jnp.zeros(4)) if of_one_size else (classes,)
        method = (
            optax_sam.sam(rho=0.1) if slices == 1 else optax_sam.accumulated(optax_sam.sam(rho=0.1), slices)
        )
        ask = method.value_and_grad(told, has_aux=True)
        (_, aux), _, _ = ask(params, batch, *args, state=method.init(params), weights=weights)
        real = np.ones(4) if of_one_size else np.asarray(weights != 0)
        np.testing.assert_array_equal(np.ravel(aux["count"]), real)
        np.testing.assert_array_equal(np.ravel(aux["length"]), 3 * real)
        assert np.sum(np.asarray(aux["turned"])) == 2 * real.sum()
        np.testing.assert_array_equal(np.reshape(aux["params"], (-1, 4)), np.ones((slices, 4)))
        np.testing.assert_array_equal(np.reshape(aux["classes"], (-1, 4)), np.tile(classes, (slices, 1)))


def test_without_weights_nothing_is_cleared():
    oracle = optax_sam.Oracle(with_metrics, padded(), has_aux=True)
    (_, aux), _ = oracle.value_and_grad(init_params())
    np.testing.assert_array_equal(aux["count"], REAL)
    assert optax.tree.norm(aux["squares"]) > 0


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
def test_aux_stays_split_over_devices(kind):
    mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(kind, kind))
    params = jax.device_put(jnp.ones((3, 4)), NamedSharding(mesh, PartitionSpec(None, "model")))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    batch = jax.device_put(jnp.arange(12.0).reshape(4, 3), rows)
    weights = jnp.array([1.0, 0.0, 1.0, 0.0])

    def told(params, batch):
        logits = batch @ params
        return jnp.sum(logits, axis=1), (logits, logits.T)

    @jax.jit
    def asked(params, batch, weights):
        return optax_sam.Oracle(told, batch, weights=weights, has_aux=True).value_and_grad(params)[0][1]

    with jax.set_mesh(mesh):
        for split in (weights, jax.device_put(weights, rows)):
            aux, turned = asked(params, batch, split)
            np.testing.assert_array_equal(aux, np.asarray(batch @ params) * np.asarray(weights)[:, None])
            np.testing.assert_array_equal(turned, np.asarray(aux).T)
            assert aux.sharding.spec == PartitionSpec("data", "model")
