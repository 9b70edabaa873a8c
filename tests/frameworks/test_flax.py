"""Flax NNX, with batch norm and dropout, against steps written out by hand."""

import functools

import flax.errors
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import optax_sam
import optax_sam.flax
from tests.problem import make_batch, make_indices
from tests.registry import VARIANTS

RHO = 0.3
SLICES = {"m_rst": 4, "accumulated": 4}


class Net(nnx.Module):
    def __init__(self, rngs):
        self.linear = nnx.Linear(5, 3, rngs=rngs)
        self.norm = nnx.BatchNorm(3, momentum=0.9, rngs=rngs)
        self.drop = nnx.Dropout(0.3, rngs=rngs)

    def __call__(self, x):
        return self.drop(self.norm(self.linear(x)))


@pytest.fixture(autouse=True)
def promotion_as_flax_needs_it():
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


def losses(model, batch):
    return optax.softmax_cross_entropy_with_integer_labels(model(batch["image"]), batch["label"])


@functools.cache
def start():
    """Graph, parameters and the rest of a new model."""
    graph, params, rest = nnx.split(Net(nnx.Rngs(0)), nnx.Param, ...)
    return graph, *nnx.as_pure((params, rest))


@jax.jit
def forward(params, rest, batch):
    """`(losses, new rest)` of a plain forward pass."""
    model = nnx.merge(start()[0], params, rest)
    return losses(model, batch), nnx.as_pure(nnx.state(model, nnx.Not(nnx.Param)))


def make(method, base=None, model=None, wrt=nnx.Param):
    model = Net(nnx.Rngs(0)) if model is None else model
    base = optax.sgd(0.1) if base is None else base
    return model, nnx.Optimizer(model, optax.chain(method, base), wrt=wrt)


def one_step(method, model, optimizer, batch, loss_fn=losses, fresh_keys=False, **arguments):
    """`(loss, first gradient, descent)`, jitted; the model and its optimizer are stepped."""

    @nnx.jit
    def step(model, optimizer, batch, arguments):
        value_and_grad = optax_sam.flax.nnx_value_and_grad(method, loss_fn, fresh_keys=fresh_keys)
        loss, grads, oracle = value_and_grad(model, batch, optimizer=optimizer, **arguments)
        updates = optimizer.update(model, grads, oracle=oracle)
        return loss, nnx.as_pure(grads), jax.tree.map(lambda u: -u / 0.1, nnx.as_pure(updates))

    return step(model, optimizer, batch, arguments)


def assert_leaves_close(got, wanted):
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        assert x.dtype == y.dtype
        np.testing.assert_allclose(x, y, rtol=2e-5, atol=2e-6)


def test_state_of_an_nnx_optimizer_is_found_and_read():
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    sam = optax_sam.rst(0.1, probability=0.5)
    optimizer = nnx.Optimizer(model, optax.chain(sam, optax.sgd(0.1)), wrt=nnx.Param)
    images = jnp.linspace(-1.0, 1.0, 12).reshape(4, 3)

    @nnx.jit
    def step(model, optimizer, images):
        graph, params = nnx.split(model, nnx.Param)

        def losses(params, batch):
            return jnp.sum(nnx.merge(graph, params)(batch) ** 2, axis=-1)

        loss, grads, oracle = sam.value_and_grad(losses)(params, images, state=optimizer.opt_state)
        optimizer.update(model, grads, oracle=oracle)
        return loss

    with jax.numpy_rank_promotion("allow"):
        seen, spent = [], 0
        for _ in range(6):
            spent += 1 + int(optax_sam.due(optimizer.opt_state))
            seen.append(step(model, optimizer, images))
    assert np.all(np.diff(seen) < 0)
    assert optax_sam.info(optimizer.opt_state)["gradients"] == spent > 6


def test_nnx_step_is_the_one_written_by_hand():
    """Four steps with donated buffers, in one trace."""
    sam = optax_sam.sam(RHO)
    model, optimizer = make(sam, optax.sgd(0.1, momentum=0.9))
    _, params, rest = start()
    by_hand = params, rest, jax.tree.map(jnp.zeros_like, params)
    traces = []

    @jax.jit
    def step_by_hand(params, rest, momentum, batch):
        def loss(params):
            found, new_rest = forward(params, rest, batch)
            return jnp.mean(found), new_rest

        (value, new_rest), grads = jax.value_and_grad(loss, has_aux=True)(params)
        norm = jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(grads)))
        moved = jax.tree.map(lambda p, g: p + RHO * g / norm, params, grads)
        (_, _), descent = jax.value_and_grad(loss, has_aux=True)(moved)
        momentum = jax.tree.map(lambda m, d: 0.9 * m + d, momentum, descent)
        return jax.tree.map(lambda p, m: p - 0.1 * m, params, momentum), new_rest, momentum, value

    @nnx.jit(donate_argnums=(0, 1))
    def step(model, optimizer, batch):
        traces.append(1)
        value_and_grad = optax_sam.flax.nnx_value_and_grad(sam, losses)
        loss, grads, oracle = value_and_grad(model, batch, optimizer=optimizer)
        optimizer.update(model, grads, oracle=oracle)
        return loss

    for number in range(4):
        loss = step(model, optimizer, make_batch(number))
        *by_hand, wanted_loss = step_by_hand(*by_hand, make_batch(number))
        _, params, rest = nnx.split(model, nnx.Param, ...)
        momentum = nnx.as_pure(optimizer.opt_state)[1][0].trace
        got = nnx.as_pure((params, rest, momentum)), loss
        assert_leaves_close(got, (by_hand, wanted_loss))
    assert model.drop.rngs.count[...] == optimizer.step[...] == 4 and len(traces) == 1


@pytest.mark.parametrize("name", ["rst", "vsam", "tsam", *SLICES])
def test_statistics_and_counts_of_the_live_model_are_those_of_one_forward_pass(name):
    """Over two steps; of slices the mean. Parameters and examples are those that the first pass saw."""
    method, slices = VARIANTS[name].make(), SLICES.get(name, 0)
    model, optimizer = make(method)
    rest = start()[2]

    def with_what_it_sees(model, batch):
        return losses(model, batch), (nnx.as_pure(nnx.state(model, nnx.Param)), batch)

    @nnx.jit
    def step(model, optimizer):
        value_and_grad = optax_sam.flax.nnx_value_and_grad(method, with_what_it_sees, has_aux=True)
        (_, aux), grads, oracle = value_and_grad(
            model, make_batch(), optimizer=optimizer, indices=make_indices()
        )
        optimizer.update(model, grads, oracle=oracle)
        return aux

    for number in range(2):
        seen = step(model, optimizer)
        parts = [jax.tree.map(lambda x, n=n: x[n], seen) for n in range(slices)] or [seen]
        passes = [forward(params, rest, batch)[1] for params, batch in parts]
        rest = passes[0] | {
            "norm": jax.tree.map(lambda *xs: np.mean(xs, axis=0), *(p["norm"] for p in passes))
        }
        assert_leaves_close(nnx.as_pure(nnx.state(model, nnx.Not(nnx.Param))), rest)
        assert model.drop.rngs.count[...] == number + 1


def test_a_model_merged_carelessly_leaks_and_is_seen_to():
    """The same look at the live model, with gradients that are not those of copies."""
    graph, params, rest = start()
    _, once = forward(params, rest, make_batch())

    @nnx.jit
    def careless(model, batch):
        graph, params, rest = nnx.split(model, nnx.Param, ...)
        for _ in range(2):
            nnx.grad(lambda model: jnp.mean(losses(model, batch)))(nnx.merge(graph, params, rest))

    model = Net(nnx.Rngs(0))
    careless(model, make_batch())
    with pytest.raises(AssertionError):
        assert_leaves_close(nnx.as_pure(nnx.state(model, nnx.Not(nnx.Param))), once)
    assert model.drop.rngs.count[...] == 2
    live = nnx.split(model, nnx.Param, ...)[2]
    sam = optax_sam.sam()
    with pytest.raises(flax.errors.TraceContextError):  # inside the losses Flax refuses it
        sam.value_and_grad(lambda params, batch: losses(nnx.merge(graph, params, live), batch))(
            params, make_batch(), state=sam.init(params)
        )


class Masked(nnx.Module):
    """Linear behind dropout, so that a gradient shows the mask."""

    def __init__(self, keys=None):
        self.scale = nnx.Param(jnp.ones(64))
        self.drop = nnx.Dropout(0.5, rngs=nnx.Rngs(0))
        self.other = nnx.Rngs(1).dropout.split(3) if keys else None

    def __call__(self, x):
        return jnp.sum(self.drop(self.scale[...] * x), axis=-1)


@pytest.mark.parametrize("fresh_keys", [False, True])
def test_masks_of_the_passes_are_the_same_unless_keys_are_fresh(fresh_keys):
    sam = optax_sam.sam(RHO)
    model, optimizer = make(sam, model=Masked(keys=3))
    keys = model.other.key[...]
    masks = []
    for _ in range(2):
        _, grads, descent = one_step(
            sam, model, optimizer, jnp.ones([1, 64]), lambda m, x: m(x), fresh_keys=fresh_keys
        )
        masks += [np.asarray(grads["scale"]) > 0, np.asarray(descent["scale"]) > 0.5]
    assert all(8 < mask.sum() < 56 for mask in masks)
    assert np.array_equal(masks[0], masks[1]) == np.array_equal(masks[2], masks[3]) == (not fresh_keys)
    assert not np.array_equal(masks[0], masks[2])  # steps differ, by the count
    assert model.drop.rngs.count[...] == 2
    np.testing.assert_array_equal(jax.random.key_data(model.other.key[...]), jax.random.key_data(keys))


class WithAdapter(nnx.Module):
    def __init__(self, rngs):
        self.body = nnx.LoRALinear(5, 6, lora_rank=2, rngs=rngs)
        self.norm = nnx.BatchNorm(6, rngs=rngs)
        self.head = nnx.Linear(6, 3, rngs=rngs)
        self.constant = nnx.Variable(jnp.full(6, -jnp.inf))

    def __call__(self, x):
        self.seen = nnx.Intermediate(x)  # a pass may add to its copy of the model
        return self.head(jnp.maximum(self.norm(self.body(x)), self.constant[...]))


@pytest.mark.parametrize(
    "wrt", [nnx.LoRAParam, nnx.All(nnx.Param, nnx.PathContains("head"))], ids=["LoRAParam", "filter"]
)
def test_a_part_of_the_parameters_is_trained_and_the_rest_stays_bit_for_bit(wrt):
    """Three slices, whose mean of a constant is not always the constant."""
    sam = optax_sam.accumulated(optax_sam.sam(RHO), 3)
    model, optimizer = make(sam, model=WithAdapter(nnx.Rngs(0)), wrt=wrt)
    model.body.lora.lora_b[...] = jnp.ones_like(model.body.lora.lora_b[...])
    graph, params, rest = nnx.split(nnx.clone(model), wrt, ...)
    params, rest = nnx.as_pure((params, rest))
    batch = make_batch(size=12)

    def mean_of_slices(params):
        parts = [jax.tree.map(lambda x, n=n: x[4 * n : 4 * n + 4], batch) for n in range(3)]
        return sum(jnp.mean(losses(nnx.merge(graph, params, rest), part)) for part in parts) / 3

    def step_by_hand(params):
        grads = jax.grad(mean_of_slices)(params)
        norm = jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(grads)))
        return jax.grad(mean_of_slices)(jax.tree.map(lambda p, g: p + RHO * g / norm, params, grads))

    _, _, descent = one_step(sam, model, optimizer, batch)
    assert_leaves_close(descent, jax.jit(step_by_hand)(params))
    _, _, after = nnx.split(model, wrt, ...)
    for path, x in nnx.to_flat_state(nnx.as_pure(after)):
        same = np.array_equal(x, dict(nnx.to_flat_state(rest))[path])
        assert same == (path[-1] not in ("mean", "var")), path
    assert not hasattr(model, "seen")


class Tied(nnx.Module):
    def __init__(self, rngs):
        self.encoder = nnx.Linear(5, 5, use_bias=False, rngs=rngs)
        self.decoder = self.encoder

    def __call__(self, x):
        return self.decoder(jnp.tanh(self.encoder(x)))


def test_a_shared_parameter_is_perturbed_once():
    sam = optax_sam.sam(RHO)
    model, optimizer = make(sam, model=Tied(nnx.Rngs(0)))
    images = make_batch()["image"]

    def loss(w):
        return jnp.mean(jnp.sum((jnp.tanh(images @ w) @ w) ** 2, axis=-1))

    w = model.encoder.kernel[...]
    g = jax.grad(loss)(w)
    wanted = jax.grad(loss)(w + RHO * g / jnp.sqrt(jnp.sum(g**2)))
    loss_fn = lambda model, x: jnp.sum(model(x) ** 2, axis=-1)
    _, grads, descent = one_step(sam, model, optimizer, images, loss_fn)
    assert_leaves_close((grads, descent), (g, wanted))
    assert model.encoder is model.decoder


class Normalized(nnx.Module):
    def __init__(self):
        self.norm = nnx.BatchNorm(5, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return self.norm(x)


def test_slices_of_padding_alone_leave_no_statistics():
    """Slices inside slices, of which only the first four examples are real."""
    method = optax_sam.per_microbatch(optax_sam.accumulated(optax_sam.sam(RHO), 2), 2)
    model, optimizer = make(method, model=Normalized())
    images, weights = make_batch()["image"], jnp.asarray([1.0] * 4 + [0.0] * 12)
    loss_fn = lambda model, x: jnp.sum(model(x) ** 2, axis=-1)
    one_step(method, model, optimizer, images, loss_fn, weights=weights)
    np.testing.assert_allclose(model.norm.mean[...], 0.01 * np.mean(images[:4], axis=0), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(model.norm.var[...], 0.99 + 0.01 * np.var(images[:4], axis=0), rtol=1e-5)


def test_weights_may_be_a_list():
    """As everywhere else; the statistics of the slices are weighted by them."""
    found, images = [], make_batch()["image"]
    for weights in ([1, 2] * 8, jnp.asarray([1.0, 2.0] * 8)):
        method = optax_sam.accumulated(optax_sam.sam(RHO), 2)
        model, optimizer = make(method, model=Normalized())
        loss_fn = lambda model, x: jnp.sum(model(x) ** 2, axis=-1)
        one_step(method, model, optimizer, images, loss_fn, weights=weights)
        found.append(nnx.as_pure(nnx.state(model)))
    assert_leaves_close(*found)


def test_aux_that_was_promised_or_not_is_asked_for():
    model, optimizer = make(optax_sam.sam(), model=Normalized())
    losses_alone = lambda model, x: jnp.sum(model(x), axis=-1)
    for loss_fn, has_aux, repair in (
        (losses_alone, True, "loss_fn returned .*: return \\(losses, aux\\)"),
        (lambda model, x: (losses_alone(model, x), x), False, "returned a tuple.*: pass has_aux=True"),
    ):
        value_and_grad = optax_sam.flax.nnx_value_and_grad(optax_sam.sam(), loss_fn, has_aux)
        with pytest.raises(ValueError, match=repair):
            value_and_grad(model, jnp.ones([2, 5]), optimizer=optimizer)
    assert model.norm.mean[...].max() == 0


@pytest.mark.parametrize("name", ["tsam", "m_sam"])
def test_parameters_split_by_hand_suit_every_method(name):
    """As in the first test of this file, whose method takes its first gradient at the parameters."""
    method = VARIANTS[name].make()
    model, optimizer = make(method, model=nnx.Linear(5, 3, rngs=nnx.Rngs(0)))
    other, wanted = make(method, model=nnx.Linear(5, 3, rngs=nnx.Rngs(0)))

    @nnx.jit
    def step(model, optimizer, batch):
        graph, params = nnx.split(model, nnx.Param)
        loss_fn = lambda params, batch: losses_of_images(nnx.merge(graph, params), batch)
        _, grads, oracle = method.value_and_grad(loss_fn)(params, batch, state=optimizer.opt_state)
        optimizer.update(model, grads, oracle=oracle)

    losses_of_images = lambda model, batch: jnp.sum(model(batch) ** 2, axis=-1)
    step(model, optimizer, make_batch()["image"])
    one_step(method, other, wanted, make_batch()["image"], losses_of_images)
    assert_leaves_close(nnx.as_pure(nnx.state(model)), nnx.as_pure(nnx.state(other)))
