"""Objects of Flax NNX behind the batch: random streams, metrics, another model."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import optax_sam
import optax_sam.flax
from tests.problem import make_batch

RHO = 0.3


@pytest.fixture(autouse=True)
def promotion_as_flax_needs_it():
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


class Net(nnx.Module):
    """As in Flax's own examples: a call is handed the random streams."""

    def __init__(self, rngs):
        self.linear = nnx.Linear(5, 3, rngs=rngs)
        self.norm = nnx.BatchNorm(3, momentum=0.9, rngs=rngs)
        self.drop = nnx.Dropout(0.3)

    def __call__(self, x, rngs):
        return self.drop(self.norm(self.linear(x)), rngs=rngs)


def losses(model, batch, rngs):
    return optax.softmax_cross_entropy_with_integer_labels(model(batch["image"], rngs), batch["label"])


def count(rngs):
    return int(rngs.dropout.count[...])


def test_a_step_with_random_streams_is_the_one_written_by_hand():
    """Four steps in plain JAX, of arrays alone: both passes begin with the same counts."""
    sam = optax_sam.sam(RHO)
    model, rngs = Net(nnx.Rngs(0)), nnx.Rngs(dropout=1)
    optimizer = nnx.Optimizer(model, optax.chain(sam, optax.sgd(0.1)), wrt=nnx.Param)
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    params, rest = nnx.as_pure((params, rest))
    keys = [jax.random.fold_in(jax.random.key(1), n) for n in range(4)]

    @nnx.jit
    def step(model, optimizer, rngs, batch):
        value_and_grad = optax_sam.flax.nnx_value_and_grad(sam, losses)
        loss, grads, oracle = value_and_grad(model, batch, rngs, optimizer=optimizer)
        optimizer.update(model, grads, oracle=oracle)
        return loss

    @jax.jit
    def step_by_hand(params, rest, key, batch):
        def loss(params):
            copy = nnx.merge(graph, params, rest, copy=True)
            logits = copy.norm(copy.linear(batch["image"]))
            kept = jax.random.bernoulli(key, 0.7, logits.shape)
            found = optax.softmax_cross_entropy_with_integer_labels(
                jnp.where(kept, logits / 0.7, 0.0), batch["label"]
            )
            return jnp.mean(found), nnx.as_pure(nnx.state(copy, nnx.Not(nnx.Param)))

        (value, rest_after), grads = jax.value_and_grad(loss, has_aux=True)(params)
        norm = jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(grads)))
        descent = jax.grad(loss, has_aux=True)(jax.tree.map(lambda p, g: p + RHO * g / norm, params, grads))[
            0
        ]
        return jax.tree.map(lambda p, d: p - 0.1 * d, params, descent), rest_after, value

    for number, key in enumerate(keys):
        loss = step(model, optimizer, rngs, make_batch(number))
        params, rest, wanted = step_by_hand(params, rest, key, make_batch(number))
        got = nnx.as_pure(nnx.split(model, nnx.Param, ...)[1:])
        for x, y in zip(jax.tree.leaves((got, loss)), jax.tree.leaves((params, rest, wanted)), strict=True):
            np.testing.assert_allclose(x, y, rtol=2e-5, atol=2e-6)
        assert count(rngs) == number + 1


class Masked(nnx.Module):
    """Linear behind dropout, so that a gradient shows the mask."""

    def __init__(self):
        self.scale = nnx.Param(jnp.ones(64))
        self.drop = nnx.Dropout(0.5)

    def __call__(self, x, rngs):
        return jnp.sum(self.drop(self.scale[...] * x, rngs=rngs), axis=-1)


def masks_of_a_step(method, model, optimizer, rngs, fresh_keys=False):
    """What both passes have kept."""
    loss_fn = lambda model, batch, streams: model(batch, streams["of dropout"])
    value_and_grad = optax_sam.flax.nnx_value_and_grad(method, loss_fn, fresh_keys=fresh_keys)

    @nnx.jit
    def step(model, optimizer, rngs):
        batch = jnp.ones([4, 64])
        _, grads, oracle = value_and_grad(model, batch, {"of dropout": rngs}, optimizer=optimizer)
        return grads, optimizer.update(model, grads, oracle=oracle)

    grads, updates = nnx.as_pure(step(model, optimizer, rngs))
    return np.asarray(grads["scale"]), np.asarray(updates["scale"] / -0.1)


@pytest.mark.parametrize("fresh_keys", [False, True])
def test_masks_of_the_passes_are_the_same_unless_keys_are_fresh_and_those_of_the_steps_differ(fresh_keys):
    sam, model, rngs = optax_sam.sam(RHO), Masked(), nnx.Rngs(0)
    optimizer = nnx.Optimizer(model, optax.chain(sam, optax.sgd(0.1)), wrt=nnx.Param)
    rngs = nnx.Rngs(dropout=3)
    key = jax.random.key_data(rngs.dropout.key[...])
    (first, second), (third, fourth) = (
        masks_of_a_step(sam, model, optimizer, rngs, fresh_keys) for _ in range(2)
    )
    for x, y in ((first, second), (third, fourth)):
        assert np.allclose(x, y, atol=1e-5) == (not fresh_keys)
    assert not np.allclose(first, third, atol=1e-5)
    assert count(rngs) == 2
    np.testing.assert_array_equal(jax.random.key_data(rngs.dropout.key[...]), key)


def test_slices_count_as_one_call():
    sam, model, rngs = optax_sam.per_microbatch(optax_sam.sam(RHO), 2), Masked(), nnx.Rngs(dropout=0)
    optimizer = nnx.Optimizer(model, optax.chain(sam, optax.sgd(0.1)), wrt=nnx.Param)
    masks_of_a_step(sam, model, optimizer, rngs)
    assert count(rngs) == 1


class OfItsOwn(Net):
    def __init__(self, streams):
        super().__init__(nnx.Rngs(0))
        self.streams = streams

    def __call__(self, x, rngs):
        return super().__call__(x, self.streams) + super().__call__(x, rngs)


def test_streams_that_model_and_argument_share_stay_shared():
    sam, rngs = optax_sam.sam(RHO), nnx.Rngs(dropout=1)
    model = OfItsOwn(rngs)
    optimizer = nnx.Optimizer(model, optax.chain(sam, optax.sgd(0.1)), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, rngs):
        value_and_grad = optax_sam.flax.nnx_value_and_grad(sam, losses)
        _, grads, oracle = value_and_grad(model, make_batch(), rngs, optimizer=optimizer)
        optimizer.update(model, grads, oracle=oracle)

    step(model, optimizer, rngs)
    assert model.streams is rngs and count(rngs) == 2


def test_metrics_see_the_first_pass_and_another_model_is_not_trained():
    sam, model, teacher = (
        optax_sam.sam(RHO),
        nnx.Linear(5, 3, rngs=nnx.Rngs(0)),
        nnx.Linear(5, 3, rngs=nnx.Rngs(1)),
    )
    optimizer = nnx.Optimizer(model, optax.chain(sam, optax.sgd(0.1)), wrt=nnx.Param)
    metric, before = nnx.metrics.Average(), jax.tree.map(jnp.copy, nnx.state(teacher))

    def losses(model, batch, scale, teacher, metric):
        found = jnp.sum((model(batch["image"]) - teacher(batch["image"])) ** 2, axis=-1)
        metric.update(values=found)
        return scale * found

    loss, grads, oracle = optax_sam.flax.nnx_value_and_grad(sam, losses)(
        model, make_batch(), 2.0, teacher, metric, optimizer=optimizer
    )
    optimizer.update(model, grads, oracle=oracle)
    np.testing.assert_allclose(2 * metric.compute(), loss, rtol=1e-6)
    assert metric.count[...] == make_batch()["label"].size
    jax.tree.map(np.testing.assert_array_equal, nnx.as_pure(nnx.state(teacher)), nnx.as_pure(before))


@pytest.mark.parametrize("wrap", [optax_sam.accumulated, optax_sam.per_microbatch])
def test_metrics_that_slices_would_write_are_refused(wrap):
    """All slices begin with the same sums; metrics that the loss leaves alone do not matter."""
    sam, model = wrap(optax_sam.sam(RHO), 4), nnx.Linear(5, 3, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.chain(sam, optax.sgd(0.1)), wrt=nnx.Param)

    def losses(model, batch, metrics, writes):
        found = jnp.sum(model(batch["image"]) ** 2, axis=-1)
        if writes:
            metrics.update(loss=found)
        return found, found

    metrics = nnx.MultiMetric(loss=nnx.metrics.Average("loss"), spread=nnx.metrics.Welford("loss"))
    take = optax_sam.flax.nnx_value_and_grad(sam, losses, has_aux=True)
    with pytest.raises(ValueError, match=r"writes the metrics 0\.loss\.count, .*, but .* slices.*as aux"):
        take(model, make_batch(), metrics, True, optimizer=optimizer)
    (_, aux), *_ = take(model, make_batch(), metrics, False, optimizer=optimizer)
    metrics.update(loss=aux.reshape(-1))
    assert metrics.loss.count[...] == 16


def test_streams_in_the_place_of_the_batch_are_refused():
    sam, model = optax_sam.sam(RHO), Net(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.chain(sam, optax.sgd(0.1)), wrt=nnx.Param)
    with pytest.raises(TypeError, match=r"batch has an NNX object in it \(Rngs\): pass the batch first"):
        optax_sam.flax.nnx_value_and_grad(sam, losses)(model, nnx.Rngs(0), make_batch(), optimizer=optimizer)


def test_a_key_comes_last_behind_random_streams():
    sam, model, rngs = optax_sam.sam(RHO), Masked(), nnx.Rngs(dropout=0)
    optimizer = nnx.Optimizer(model, optax.chain(sam, optax.sgd(0.1)), wrt=nnx.Param)
    loss_fn = lambda model, batch, rngs, key: model(batch, rngs) + jax.random.uniform(key)
    value_and_grad = optax_sam.flax.nnx_value_and_grad(sam, loss_fn)
    ones = jnp.ones([4, 64])
    losses = [
        value_and_grad(model, ones, nnx.clone(rngs), optimizer=optimizer, key=jax.random.key(n))[0]
        for n in (0, 1)
    ]
    wanted = [jax.random.uniform(jax.random.key(n)) for n in (0, 1)]
    np.testing.assert_allclose(losses[0] - losses[1], wanted[0] - wanted[1], atol=1e-5)


def spread_of_a_gradient(method, **arguments):
    """Over 400 parameters, of a mean over 64 examples with a mask each: 1/8 where no two share one."""
    model = DroppedSum(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.chain(method, optax.sgd(1.0)), wrt=nnx.Param)
    take = optax_sam.flax.nnx_value_and_grad(method, lambda model, x: model(x), **arguments)
    before = model.kernel[...]
    _, grads, oracle = take(model, jnp.ones([64, 400]), optimizer=optimizer)
    optimizer.update(model, grads, oracle=oracle)
    return np.std(grads["kernel"][...]), np.std(before - model.kernel[...])


class DroppedSum(nnx.Module):
    def __init__(self, rngs):
        self.dropout, self.kernel = nnx.Dropout(0.5, rngs=rngs), nnx.Param(jnp.ones(400))

    def __call__(self, x):
        return self.dropout(x) @ self.kernel[...]


@pytest.mark.parametrize("fresh_keys", [False, True])
@pytest.mark.parametrize(
    "method",
    [
        optax_sam.sam(RHO),
        optax_sam.accumulated(optax_sam.sam(RHO), 8),
        optax_sam.per_microbatch(optax_sam.sam(RHO), 8),
        optax_sam.per_microbatch(optax_sam.accumulated(optax_sam.sam(RHO), 4), 2),
    ],
    ids=["whole", "accumulated", "per_microbatch", "both"],
)
def test_slices_have_masks_of_their_own(method, fresh_keys):
    np.testing.assert_allclose(spread_of_a_gradient(method, fresh_keys=fresh_keys), 1 / 8, rtol=0.15)


def test_the_first_pass_of_a_whole_batch_has_the_masks_of_the_model():
    """Though the method could cut it: those of a step without this library."""
    model = DroppedSum(nnx.Rngs(0))
    wanted = nnx.grad(lambda model, x: model(x).mean())(nnx.clone(model), jnp.ones([64, 400]))
    for fresh_keys in (False, True):
        sam = optax_sam.sam(RHO)
        optimizer = nnx.Optimizer(model, optax.chain(sam, optax.sgd(1.0)), wrt=nnx.Param)
        take = optax_sam.flax.nnx_value_and_grad(sam, lambda model, x: model(x), fresh_keys=fresh_keys)
        _, grads, _ = take(nnx.clone(model), jnp.ones([64, 400]), optimizer=optimizer)
        np.testing.assert_allclose(grads["kernel"][...], wanted["kernel"][...], rtol=1e-6)


@pytest.mark.parametrize("fresh_keys", [False, True])
def test_single_examples_have_masks_of_their_own(fresh_keys):
    """Else all 64 would be 0 in the same inputs, and half of the mean squares with them."""
    method, model = optax_sam.fisher_mask_sam(num_samples=64, sparsity=0.9), DroppedSum(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.chain(method, optax.sgd(1.0)), wrt=nnx.Param)
    seen = []

    def loss_fn(model, x):
        dropped = model.dropout(x)
        jax.debug.callback(lambda rows: seen.append(np.asarray(rows)), dropped)
        return dropped @ model.kernel[...]

    take = optax_sam.flax.nnx_value_and_grad(method, loss_fn, fresh_keys=fresh_keys)
    _, grads, oracle = take(model, jnp.ones([64, 400]), optimizer=optimizer)
    optimizer.update(model, grads, oracle=oracle)
    jax.effects_barrier()
    alone = np.concatenate([rows for rows in seen if len(rows) == 1])
    assert len(alone) == 64 and len(np.unique(alone, axis=0)) == 64
