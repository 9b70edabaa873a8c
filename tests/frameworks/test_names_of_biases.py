"""ASAM measures biases as they are, SAM-ON finds normalization, whatever a framework calls and boxes."""

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from flax.traverse_util import flatten_dict

import optax_sam
from optax_sam import geometries

ETA, X = 0.01, jnp.ones((1, 3))


def linen():
    return nn.Dense(2).init(jax.random.key(0), X)


def boxed(box):
    kernel, bias = (box(init, names) for init, names in ((normal, ("in", "out")), (normal, ("out",))))
    return nn.Dense(2, kernel_init=kernel, bias_init=bias).init(jax.random.key(0), X)


def normal(key, shape, dtype):
    return jax.random.normal(key, shape, dtype)


def haiku():
    return hk.transform(lambda x: hk.Linear(2)(x)).init(jax.random.key(0), X)


PARAMS = {
    "linen": linen,
    "linen, paths as keys": lambda: flatten_dict(linen()["params"]),
    "linen, paths joined": lambda: flatten_dict({"bias_net": linen()["params"]}, sep="/"),
    "linen, paths joined by dots": lambda: flatten_dict({"bias_net": linen()["params"]}, sep="."),
    "linen in boxes": lambda: boxed(nn.with_partitioning),
    "linen in logical boxes": lambda: boxed(nn.with_logical_partitioning),
    "nnx": lambda: nnx.state(nnx.Linear(3, 2, rngs=nnx.Rngs(0))),
    "nnx without variables": lambda: nnx.as_pure(nnx.state(nnx.Linear(3, 2, rngs=nnx.Rngs(0)))),
    "equinox": lambda: eqx.nn.Linear(3, 2, key=jax.random.key(0)),
    "haiku": haiku,
    "lists": lambda: {"weights": [jnp.full((3, 2), 0.5)], "biases": [jnp.full(2, 0.5)]},
}


@pytest.mark.parametrize("name", PARAMS)
def test_the_name_of_the_parameter_counts_not_that_of_its_box(name):
    params = jax.tree.map(lambda w: jnp.full_like(w, 0.5), PARAMS[name]())
    direction = jax.tree.map(jnp.ones_like, params)
    dual = jax.tree.leaves(geometries.elementwise(ETA).steepest(direction, params).dual)
    assert {x.ndim for x in dual} == {1, 2}
    for x in dual:
        np.testing.assert_allclose(x, 1.0 if x.ndim == 1 else (0.5 + ETA) ** 2, rtol=1e-6)


@pytest.mark.parametrize("names", [("bias_scale", "weights_b"), ("value", "b_proj")])
def test_other_names_are_weights_or_hold_the_word(names):
    params = dict.fromkeys(names, jnp.full(2, 0.5))
    dual = geometries.elementwise(ETA).steepest(jax.tree.map(jnp.ones_like, params), params).dual
    wanted = [1.0 if "bias" in name else (0.5 + ETA) ** 2 for name in names]
    np.testing.assert_allclose([dual[name][0] for name in names], wanted, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        *((name, True) for name in ("BatchNorm_0", "bn1", "bn_Conv1", "Conv_1_bn", "expand_BN", "stemBn")),
        *((name, False) for name in ("Conv_1", "subnet", "Dense_0", "ebn", "rubn_2")),
    ],
)
def test_normalization_is_found_by_a_word_of_the_name(name, found):
    params = {name: {"scale": 1.0}}
    nested, flat = params, flatten_dict(params)
    for tree in (nested, flat):
        assert jax.tree.leaves(jax.tree.map_with_path(optax_sam.is_normalization, tree)) == [found]


class PreNormBlock(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x + nn.Dense(3)(nn.LayerNorm(name="ln_1")(nn.BatchNorm(use_running_average=True)(x)))


@pytest.mark.parametrize("flat", [lambda tree: tree, flatten_dict, lambda tree: flatten_dict(tree, sep=".")])
def test_a_module_further_out_says_nothing_of_normalization(flat):
    params = {"NormalizedNet_0": PreNormBlock().init(jax.random.key(0), X)["params"]}
    found = jax.tree.leaves_with_path(jax.tree.map_with_path(optax_sam.is_normalization, flat(params)))
    names = {jax.tree_util.keystr(path): chosen for path, chosen in found}
    assert {name for name, chosen in names.items() if not chosen} == {n for n in names if "Dense" in n}
    assert len(names) == 6


def test_a_step_on_boxes_is_the_step_without_them():
    """As a training step takes it, boxes and all."""
    plain = {"kernel": jnp.array([0.5, -0.3]), "bias": jnp.array(0.1)}
    boxes = {name: nn.Partitioned(x, names=(None,) * x.ndim) for name, x in plain.items()}
    batch = jnp.array([[1.0, 2.0], [0.5, -1.0]]), jnp.array([1.0, 0.0])

    def losses(params, batch):
        params = nn.meta.unbox(params)
        return (batch[0] @ params["kernel"] + params["bias"] - batch[1]) ** 2

    tx = optax.chain(optax_sam.asam(0.5), optax.sgd(0.1))
    found = [optax_sam.step(tx, losses)(params, tx.init(params), batch)[0] for params in (plain, boxes)]
    for x, y in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-6)
