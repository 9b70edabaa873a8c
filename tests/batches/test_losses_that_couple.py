"""Losses in which examples meet: padding, slices, draws."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, PartitionSpec

import optax_sam
from tests.problem import assert_trees_close
from tests.registry import over

REAL = 4
RNG = np.random.default_rng(7)
INPUTS = RNG.normal(size=(REAL, 3)).astype(np.float32)
GROUPS = np.array([0, 0, 1, 1])
ADJACENCY = (RNG.uniform(size=(REAL, REAL)) > 0.4) | np.eye(REAL, dtype=bool)
PARAMS = jnp.asarray(RNG.normal(size=(3, 2)), jnp.float32)


def contrastive(params, batch):
    """Each example against all others that are not padding."""
    z = batch["x"] @ params
    scores = jnp.where(batch["mask"].astype(bool)[None, :], z @ z.T, -1e9)
    return jax.nn.logsumexp(scores, axis=1) - jnp.diag(scores)


def contrastive_without(params, batch):
    """The same, by a leaf that says what is padding."""
    return contrastive(params, {"x": batch["x"], "mask": ~batch["is_padding"]})


def both_ways(params, batch):
    """The same over the pairs of a matrix, rows and columns."""
    z = batch["x"] @ params
    scores = jnp.where(batch["pairs"], z @ z.T, -1e9)
    return jax.nn.logsumexp(scores, axis=1) + jax.nn.logsumexp(scores, axis=0) - 2 * jnp.diag(z @ z.T)


def ranking(params, batch):
    """Pairs of one group; padding has the group -1."""
    z = (batch["x"] @ params)[:, 0]
    same = (batch["group"][:, None] == batch["group"][None, :]).astype(z.dtype)
    return jnp.sum(same * jax.nn.softplus(z[:, None] - z[None, :]), axis=1) / jnp.sum(same, axis=1)


def graph(params, batch):
    """A layer of message passing by an adjacency matrix."""
    edges = batch["edges"].astype(params.dtype)
    h = edges @ (batch["x"] @ params) / jnp.maximum(edges.sum(axis=0), 1)[:, None]
    return jnp.square(h).sum(axis=1)


def normalized(params, batch):
    """Batch statistics over what the mask says."""
    h, mask = batch["x"] @ params, batch["mask"].astype(params.dtype)[:, None]
    mean = jnp.sum(mask * h, axis=0, keepdims=True) / mask.sum()
    variance = jnp.sum(mask * jnp.square(h - mean), axis=0, keepdims=True) / mask.sum()
    return jnp.square((h - mean) / jnp.sqrt(variance + 0.1) - 1).sum(axis=1)


def padded(rows, extra):
    return np.concatenate([rows, np.zeros([extra, *rows.shape[1:]], rows.dtype)])


def with_mask(dtype):
    return lambda extra: {"mask": padded(np.ones(REAL, dtype), extra)}


def square(matrix):
    def make(extra):
        whole = np.zeros((REAL + extra, REAL + extra), bool)
        whole[:REAL, :REAL] = matrix
        return whole

    return make


LOSSES = {
    "float mask": (contrastive, with_mask(np.float32)),
    "bool mask": (contrastive, with_mask(bool)),
    "int mask": (contrastive, with_mask(np.int32)),
    "mask of padding": (contrastive_without, lambda extra: {"is_padding": np.arange(REAL + extra) >= REAL}),
    "pairs": (both_ways, lambda extra: {"pairs": square(np.ones((REAL, REAL), bool))(extra)}),
    "groups": (ranking, lambda extra: {"group": np.concatenate([GROUPS, -np.ones(extra, int)])}),
    "graph": (graph, lambda extra: {"edges": square(ADJACENCY)(extra)}),
    "batch statistics": (normalized, with_mask(np.float32)),
}
CONTENTS = {"zero": 0.0, "large": 50.0, "nan": np.nan, "infinite": np.inf}


def batch_of(name, extra, content=0.0):
    x = np.concatenate([INPUTS, np.full((extra, 3), content, np.float32)])
    return jax.tree.map(jnp.asarray, {"x": x} | LOSSES[name][1](extra))


def weights_of(extra):
    return jnp.asarray(padded(np.ones(REAL, np.float32), extra))


@pytest.mark.parametrize("content", over(CONTENTS, ["nan"]))
@pytest.mark.parametrize("name", over(LOSSES, ["float mask", "pairs", "groups"]))
def test_the_mask_of_the_loss_keeps_its_meaning_in_padding(name, content):
    """The loss and its gradient are those of the real rows, whatever the number of padded ones."""
    losses = LOSSES[name][0]

    def mean(params):
        return jnp.mean(losses(params, batch_of(name, 0)))

    loss, grads = jax.value_and_grad(mean)(PARAMS)
    for extra in (2, 5):
        oracle = optax_sam.Oracle(losses, batch_of(name, extra, CONTENTS[content]), weights=weights_of(extra))
        assert_trees_close(oracle.value_and_grad(PARAMS), (loss, grads), rtol=1e-5, atol=1e-6)


@jax.custom_vjp
def scaled_by_the_mean(z, mask):
    return z


def scaled_backward(kept, cotangent):
    z, mask = kept
    return cotangent * (1 + jnp.sum(z * mask) / jnp.sum(mask)), None


scaled_by_the_mean.defvjp(lambda z, mask: (z, (z, mask)), scaled_backward)


@jax.custom_jvp
def scaled_forward(z, mask):
    return z


@scaled_forward.defjvp
def scaled_tangent(primals, tangents):
    z, mask = primals
    return z, tangents[0] * (1 + jnp.sum(z * mask) / jnp.sum(mask))


@pytest.mark.parametrize("scaled", [scaled_by_the_mean, scaled_forward], ids=["vjp", "jvp"])
def test_a_rule_in_which_examples_meet_is_seen_by_its_aux(scaled):
    def losses(params, batch):
        return scaled((batch["x"] @ params)[:, 0], batch["mask"]), jnp.sum(batch["mask"])

    def gradient(extra):
        batch = batch_of("float mask", extra, 3.0)
        oracle = optax_sam.Oracle(losses, batch, has_aux=True, weights=weights_of(extra))
        return oracle.value_and_grad(PARAMS)[1]

    assert_trees_close(gradient(5), gradient(0), rtol=1e-5, atol=1e-6)


MADE = {
    "sam": lambda: optax_sam.sam(0.1),
    "vsam": lambda: optax_sam.vsam(0.1, window=4, slices=2, tail=1, warmup_steps=1),
    "tsam": lambda: optax_sam.tsam(0.1, radius=0.1, num_samples=2),
    "eigen_sam": lambda: optax_sam.eigen_sam(0.1, refresh_steps=2, power_iterations=2),
}


@pytest.mark.parametrize("method", over(MADE, ["sam", "eigen_sam"]))
@pytest.mark.parametrize("name", ["float mask", pytest.param("graph", marks=pytest.mark.slow)])
def test_a_trajectory_with_padding_is_that_without(name, method):
    """Further gradients and Hessian products of a step see padding as the first gradient does."""
    tx = optax.chain(MADE[method](), optax.sgd(0.1))
    step = jax.jit(optax_sam.step(tx, LOSSES[name][0]))
    one, other = ((PARAMS, tx.init(PARAMS)) for _ in range(2))
    for _ in range(3):
        *one, loss = step(*one, batch_of(name, 0), weights=weights_of(0))
        *other, same = step(*other, batch_of(name, 3, np.nan), weights=weights_of(3))
        assert_trees_close((one[0], loss), (other[0], same), rtol=1e-4, atol=1e-5)


def test_the_mean_alone_needs_no_weights():
    """The documented way: the mask in the batch, the mean of the loss, no weights."""

    def mean(params, batch):
        return jnp.mean(contrastive(params, batch), where=batch["mask"].astype(bool))

    tx = optax.chain(optax_sam.sam(0.1), optax.sgd(0.1))
    step, found = jax.jit(optax_sam.step(tx, mean)), []
    for extra in (0, 2, 5):
        found.append(step(PARAMS, tx.init(PARAMS), batch_of("float mask", extra, 3.0))[::2])
    assert_trees_close(found[0], found[1], rtol=1e-5, atol=1e-6)
    assert_trees_close(found[0], found[2], rtol=1e-5, atol=1e-6)


def test_a_loss_of_each_example_alone_never_sees_padding():
    """Where examples do not meet, a real row stands in each row of padding: its gradient is finite."""

    def cosine(params, batch):
        z = batch["x"] @ params
        return -z[:, 0] / jnp.linalg.norm(z, axis=1) / batch["length"].astype(z.dtype)

    batch = {"x": jnp.asarray(padded(INPUTS, 2)), "length": jnp.asarray(padded(np.full(REAL, 3), 2))}
    oracle = optax_sam.Oracle(cosine, batch, weights=weights_of(2))
    real = jax.tree.map(lambda x: x[:REAL], batch)
    wanted = jax.value_and_grad(lambda params: jnp.mean(cosine(params, real)))(PARAMS)
    assert_trees_close(oracle.value_and_grad(PARAMS), wanted, rtol=1e-5, atol=1e-6)


INDEXED = {
    "library": lambda z, y: optax.softmax_cross_entropy_with_integer_labels(z, y),
    "by row": lambda z, y: -jax.nn.log_softmax(z)[jnp.arange(len(z)), y],
}


@pytest.mark.parametrize("content", over({**CONTENTS, "random": 0.7}, ["zero", "random"]))
@pytest.mark.parametrize("loss", INDEXED)
def test_a_device_of_padding_alone_borrows_a_real_row(loss, content):
    """Inside a `shard_map` the last batch may leave a device without any."""
    x = jnp.asarray(RNG.normal(size=(6, 3)), jnp.float32)
    pad = jnp.full((2, 3), {**CONTENTS, "random": 0.7}[content], jnp.float32)
    batch = {"x": jnp.concatenate([x, pad]), "y": jnp.arange(8) % 2}

    def normalized_losses(params, batch):
        z = batch["x"] @ params
        return INDEXED[loss](z / jnp.linalg.norm(z, axis=1, keepdims=True), batch["y"])

    tx = optax.chain(optax_sam.sam(0.1), optax.sgd(0.1))
    step, state = optax_sam.step(tx, normalized_losses), tx.init(PARAMS)
    wanted, _, _ = jax.jit(step)(PARAMS, state, jax.tree.map(lambda x: x[:6], batch))

    def on_device(params, state, batch, weights):
        return step(params, state, batch, weights=weights)[0]

    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])
    rows = PartitionSpec("data")
    with jax.set_mesh(mesh):
        specs = {"in_specs": (PartitionSpec(), PartitionSpec(), rows, rows), "out_specs": PartitionSpec()}
        weights = jnp.asarray(np.arange(8) < 6, jnp.float32)
        found = jax.jit(jax.shard_map(on_device, **specs))(PARAMS, state, batch, weights)
    assert_trees_close(jax.device_get(found), jax.device_get(wanted), rtol=1e-5, atol=1e-6)


def test_a_batch_of_padding_alone_moves_nothing():
    """No row is real: the rows stay as they are, and count nothing."""
    oracle = optax_sam.Oracle(graph_free, jnp.asarray(INPUTS), weights=jnp.zeros(REAL))
    loss, grads = oracle.value_and_grad(PARAMS)
    assert loss == 0 and not np.any(grads)


def graph_free(params, batch):
    z = batch @ params
    return z[:, 0] / jnp.linalg.norm(z, axis=1)


def test_aux_in_which_examples_meet_sees_the_mask_as_it_is():
    """Metrics and running statistics, of a loss whose examples never meet."""
    mask = jnp.arange(8) < 5
    rows = jnp.asarray(RNG.normal(size=(8, 3)), jnp.float32)
    batch = {"x": jnp.where(mask[:, None], rows, jnp.nan), "y": jnp.where(mask, 1, -1), "mask": mask}

    def losses(params, batch):
        logits = batch["x"] @ params
        right = (logits.argmax(axis=1) == batch["y"]) & batch["mask"]
        mean = jnp.mean(batch["x"], axis=0, where=batch["mask"][:, None])
        found = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.abs(batch["y"]))
        return found, (batch["mask"].sum(), right.sum(), mean)

    oracle = optax_sam.Oracle(losses, batch, weights=mask, has_aux=True)
    (loss, (number, right, mean)), grads = oracle.value_and_grad(PARAMS)
    real = jax.tree.map(lambda x: x[:5], batch)
    wanted, (_, wanted_right, _) = losses(PARAMS, real)
    assert number == 5 and right == wanted_right
    np.testing.assert_allclose(mean, real["x"].mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(loss, wanted.mean(), rtol=1e-5)
    assert np.isfinite(grads).all()


def test_slices_of_such_a_loss_are_losses_of_fewer_examples():
    """What the page says: the mean over slices of the loss of each slice alone."""
    batch = batch_of("float mask", 0)
    oracle = optax_sam.Oracle(contrastive, batch)
    method = optax_sam.per_microbatch(optax_sam.sam(0.0), 2)
    descent, _ = method.update(PARAMS, method.init(PARAMS), PARAMS, oracle=oracle)

    def of_slice(params, number):
        return jnp.mean(contrastive(params, jax.tree.map(lambda x: x[2 * number : 2 * number + 2], batch)))

    wanted = jax.grad(lambda params: (of_slice(params, 0) + of_slice(params, 1)) / 2)(PARAMS)
    assert_trees_close(descent, wanted, rtol=1e-5, atol=1e-6)
    assert np.abs(wanted - jax.grad(lambda p: jnp.mean(contrastive(p, batch)))(PARAMS)).max() > 0.05
