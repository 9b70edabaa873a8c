"""What a loss writes into the model: keys that it advances, parameters that it normalizes."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import optax_sam
from optax_sam.flax import nnx_value_and_grad

X = np.random.default_rng(5).normal(size=[16, 4]).astype(np.float32)
BATCH = X, np.sin(X[:, :1])


class Noisy(nnx.Module):
    """Adds noise by a key of its own, and advances it."""

    def __init__(self):
        self.w = nnx.Param(jnp.ones([]))
        self.key = nnx.RngKey(jax.random.key(3), tag="noise")

    def __call__(self, x):
        self.key[...], now = jax.random.split(self.key[...])
        return self.w * x + jax.random.normal(now, x.shape)


class Clipped(nnx.Module):
    """Keeps its weights within a ball."""

    def __init__(self, inner, rngs):
        del rngs
        self.inner = inner

    def __call__(self, x):
        kernel = self.inner.kernel[...]
        self.inner.kernel[...] = kernel / jnp.maximum(1.0, jnp.linalg.norm(kernel))
        return self.inner(x)


class SetByTheFirstBatch(nnx.Module):
    """Standardizes by the statistics of the first batch that it sees, and counts its calls."""

    def __init__(self, inner, rngs):
        del rngs
        self.inner, self.offset = inner, nnx.Param(jnp.zeros([4]))
        self.is_set, self.calls = False, 0

    def __call__(self, x):
        if not self.is_set:
            self.offset[...] = -x.mean(axis=0)
            self.is_set = True
        self.calls += 1
        return self.inner(x + self.offset[...][None])


class Net(nnx.Module):
    """A layer that writes its parameters in every pass, and one that does not."""

    def __init__(self, norm):
        rngs = nnx.Rngs(0)
        self.last = nnx.Linear(4, 1, rngs=rngs)
        self.first = norm(nnx.Linear(4, 4, rngs=rngs), rngs=rngs)

    def __call__(self, x):
        return self.last(jnp.tanh(self.first(x)))


def squares(model, batch):
    return jnp.sum((model(batch[0]) - batch[1]) ** 2, axis=-1)


def steps_of(method, model, losses, batch, count, **options):
    """The losses of some steps before SGD."""
    optimizer = nnx.Optimizer(model, optax.chain(method, optax.sgd(0.05)), wrt=nnx.Param)
    value_and_grad, found = nnx_value_and_grad(method, losses, **options), []
    for _ in range(count):
        loss, grads, oracle = value_and_grad(model, batch, optimizer=optimizer)
        optimizer.update(model, grads, oracle=oracle)
        found.append(float(loss))
    return found


def steps_by_hand(model, losses, batch, count, rho):
    """The same in plain NNX: both passes begin with the model before them, the first one writes."""
    optimizer = nnx.Optimizer(model, optax.sgd(0.05), wrt=nnx.Param)
    gradient, found = nnx.value_and_grad(lambda m, b: losses(m, b).mean()), []
    for _ in range(count):
        graph, params, rest = jax.tree.map(jnp.copy, nnx.split(model, nnx.Param, ...))
        loss, grads = gradient(model, batch)
        scale = rho / optax.tree.norm(grads)
        there = jax.tree.map(lambda w, g, scale=scale: w + scale * g, params, grads)
        _, grads = gradient(nnx.merge(graph, there, rest, copy=True), batch)
        optimizer.update(model, grads)
        found.append(float(loss))
    return found


@pytest.mark.parametrize("rho", [0.0, 0.1])
def test_a_key_that_the_model_advances_moves_as_in_one_pass(rho):
    model, plain, x = Noisy(), Noisy(), jnp.ones([2])
    found = steps_of(optax_sam.sam(rho), model, lambda m, x: m(x) ** 2, x, 4)
    wanted = steps_by_hand(plain, lambda m, x: m(x) ** 2, x, 4, rho)
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    assert len(set(found)) == 4 and bool(model.key[...] == plain.key[...])


@pytest.mark.parametrize(
    "method", [optax_sam.sam(0.1), optax_sam.per_microbatch(optax_sam.sam(0.1), 2), optax_sam.rst(0.1)]
)
@pytest.mark.parametrize("fresh_keys", [False, True])
def test_no_two_steps_share_the_noise(method, fresh_keys):
    model = Noisy()
    found = steps_of(method, model, lambda m, x, *_: m(x) ** 2, jnp.zeros([4]), 4, fresh_keys=fresh_keys)
    assert len(set(found)) == 4 and bool(model.key[...] != Noisy().key[...])


@pytest.mark.parametrize("norm", [nnx.SpectralNorm, SetByTheFirstBatch, nnx.WeightNorm, Clipped])
@pytest.mark.parametrize("rho", [0.0, 0.1])
def test_parameters_that_the_loss_writes_are_those_of_the_step_by_hand(norm, rho):
    model, plain = Net(norm), Net(norm)
    found = steps_of(optax_sam.sam(rho), model, squares, BATCH, 4)
    np.testing.assert_allclose(found, steps_by_hand(plain, squares, BATCH, 4, rho), rtol=1e-5)
    for ours, theirs in zip(*(jax.tree.leaves(nnx.state(m, nnx.Param)) for m in (model, plain)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("transform", [lambda step: step, nnx.jit], ids=["eager", "jit"])
def test_flags_and_counts_of_the_model_advance_as_in_one_pass(transform):
    model, method = Net(SetByTheFirstBatch), optax_sam.sam(0.1)
    optimizer = nnx.Optimizer(model, optax.chain(method, optax.sgd(0.05)), wrt=nnx.Param)

    @transform
    def step(model, optimizer):
        _, grads, oracle = nnx_value_and_grad(method, squares)(model, BATCH, optimizer=optimizer)
        optimizer.update(model, grads, oracle=oracle)

    for calls in range(1, 3):
        step(model, optimizer)
        assert model.first.is_set is True and model.first.calls == calls


def test_an_array_in_place_of_a_number_is_refused_by_its_name():
    def losses(model, batch):
        model.first.calls = jnp.sum(batch[0])
        return squares(model, batch)

    with pytest.raises(ValueError, match=r"attributes first\.calls .*nnx\.Variable from the beginning"):
        steps_of(optax_sam.sam(0.1), Net(SetByTheFirstBatch), losses, BATCH, 1)


def test_slices_write_the_parameters_as_the_whole_batch_does():
    whole, sliced = Net(nnx.WeightNorm), Net(nnx.WeightNorm)
    found = steps_of(optax_sam.accumulated(optax_sam.sam(0.1), 2), sliced, squares, BATCH, 4)
    np.testing.assert_allclose(found, steps_of(optax_sam.sam(0.1), whole, squares, BATCH, 4), rtol=1e-5)


def test_parameters_written_where_the_first_pass_is_perturbed_are_refused():
    with pytest.raises(ValueError, match=r"parameters first\.layer_instance\.kernel .*such as sam"):
        steps_of(optax_sam.momentum_sam(0.1), Net(nnx.WeightNorm), squares, BATCH, 1)


@pytest.mark.parametrize("name", ["momentum_sam", "random_sam", "sam"])
def test_a_layer_that_is_recomputed_writes_no_parameters(name):
    """`nnx.remat` hands all variables back, as other objects."""

    class Model(nnx.Module):
        def __init__(self, recomputed):
            self.inner, self.outer = (nnx.Linear(3, n, rngs=nnx.Rngs(n)) for n in (3, 1))
            self.recomputed = recomputed

        def __call__(self, x):
            call = lambda layer, x: jnp.tanh(layer(x))
            return self.outer((nnx.remat(call) if self.recomputed else call)(self.inner, x))

    def trained(recomputed):
        method = getattr(optax_sam, name)(rho=0.1)
        model = Model(recomputed)
        optimizer = nnx.Optimizer(model, optax.chain(method, optax.sgd(0.1)), wrt=nnx.Param)
        loss = lambda model, x: jnp.sum(model(x) ** 2, axis=-1)

        @nnx.jit
        def step(model, optimizer, x):
            _, grads, oracle = optax_sam.flax.nnx_value_and_grad(method, loss)(model, x, optimizer=optimizer)
            optimizer.update(model, grads, oracle=oracle)

        for _ in range(3):
            step(model, optimizer, jnp.linspace(-1, 1, 12).reshape(4, 3))
        return nnx.as_pure(nnx.state(model, nnx.Param))

    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5), trained(True), trained(False))
