"""Whether examples meet in a loss, read from its jaxpr, against what its derivatives say."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optax_sam.arithmetic import rowwise
from tests.registry import over

SIZE = 6
RNG = np.random.default_rng(0)
BATCH = {
    "x": jnp.asarray(RNG.normal(size=(SIZE, 4)), jnp.float32),
    "image": jnp.asarray(RNG.normal(size=(SIZE, 8, 8, 3)), jnp.float32),
    "sequence": jnp.asarray(RNG.normal(size=(SIZE, 5, 3)), jnp.float32),
    "tokens": jnp.asarray(RNG.integers(0, 11, size=(SIZE, 5))),
    "valid": jnp.asarray(RNG.uniform(size=(SIZE, 5)) > 0.3).at[:, 0].set(True),
    "label": jnp.asarray(RNG.integers(0, 3, size=SIZE)),
    "scalar": jnp.asarray(RNG.uniform(1, 2, size=SIZE), jnp.float32),
}
WEIGHTS = jnp.asarray(RNG.normal(size=(4, 3)), jnp.float32)
cross_entropy = optax.softmax_cross_entropy_with_integer_labels


class Convolutional(nn.Module):
    batch_norm: bool = False

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.GroupNorm(2)(nn.Conv(4, (3, 3))(x)))
        if self.batch_norm:
            x = nn.BatchNorm(use_running_average=False)(x)
        x = nn.avg_pool(nn.max_pool(x, (2, 2), (2, 2)), (2, 2), (2, 2))
        return nn.Dense(3)(x.reshape(x.shape[0], -1))


class Attentive(nn.Module):
    @nn.compact
    def __call__(self, tokens, valid):
        x = nn.Embed(11, 8)(tokens)
        mask = nn.make_attention_mask(valid, valid)
        x = x + nn.MultiHeadDotProductAttention(2)(nn.LayerNorm()(x), mask=mask)
        return nn.Dense(11)(nn.LayerNorm()(x))


class Recurrent(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.RNN(nn.LSTMCell(4))(x)[:, -1])


def of_model(model, *names):
    def loss(batch):
        variables = model.init(jax.random.key(0), *(BATCH[name] for name in names))
        logits, _ = model.apply(variables, *(batch[name] for name in names), mutable=["batch_stats"])
        if logits.ndim == 3:
            per_token = cross_entropy(logits, batch["tokens"])
            return jnp.mean(per_token, axis=1, where=batch["valid"])
        return cross_entropy(logits, batch["label"])

    return loss


def of_one(x, label):
    return -jax.nn.log_softmax(x @ WEIGHTS)[label]


def in_a_loop(batch):
    def body(carry, x):
        return jnp.tanh(carry + x), None

    start = jnp.zeros([SIZE, 3])
    return jnp.sum(jax.lax.scan(body, start, jnp.swapaxes(batch["sequence"], 0, 1))[0], axis=1)


def carried_over_examples(batch):
    return jax.lax.scan(lambda carry, x: (carry + x, carry * x), jnp.zeros([]), batch["scalar"])[1]


def outer(x):
    """A positive definite matrix for each row."""
    return jnp.einsum("ni,nj->nij", x, x) + 3 * jnp.eye(x.shape[1])[None]


APART = {
    "dense": lambda b: cross_entropy(jnp.tanh(b["x"] @ WEIGHTS), b["label"]),
    "transposed": lambda b: jnp.square(WEIGHTS.T @ b["x"].T).sum(axis=0),
    "vmapped": lambda b: jax.vmap(of_one)(b["x"], b["label"]),
    "mapped": lambda b: jax.lax.map(lambda one: of_one(*one), (b["x"], b["label"])),
    "convolutional": of_model(Convolutional(), "image"),
    "attentive": of_model(Attentive(), "tokens", "valid"),
    "recurrent": of_model(Recurrent(), "sequence"),
    "in a loop": in_a_loop,
    "remat": lambda b: jax.checkpoint(lambda x: jnp.sum(jnp.sin(x @ WEIGHTS), axis=1))(b["x"]),
    "sorted": lambda b: jnp.sort(b["x"], axis=1)[:, 0] + jax.lax.top_k(b["x"], 2)[0][:, 1],
    "conditional": lambda b: jax.lax.cond(WEIGHTS[0, 0] > 0, jnp.sin, jnp.cos, b["scalar"]),
    "outer": lambda b: jnp.einsum("ni,nj->nij", b["x"], b["x"]).sum(axis=(1, 2)),
    "pieces": lambda b: jnp.concatenate([b["x"][:, :2], jnp.pad(b["x"], ((0, 0), (1, 1)))], axis=1).sum(
        axis=1
    ),
    "stacked": lambda b: jnp.stack([b["x"].T, 2.0 * b["x"].T], axis=1).sum(axis=(0, 1)),
    "unstacked": lambda b: jnp.unstack(b["x"], axis=1)[2] * jnp.stack([b["scalar"], b["scalar"]])[1],
    "tiled": lambda b: jnp.tile(b["x"], (1, 2)).sum(axis=1),
    "a column set": lambda b: b["x"].at[:, 1].set(b["scalar"]).sum(axis=1),
    "columns added to": lambda b: (b["x"].at[:, 1:3].add(b["x"][:, :2]) ** 2).sum(axis=1),
    "columns by number": lambda b: jnp.take_along_axis(b["x"], jnp.full((SIZE, 1), 2), axis=1)[:, 0],
    "reshaped": lambda b: b["sequence"].reshape(SIZE, 15).sum(axis=1) + b["scalar"][:, None].squeeze(axis=1),
    "own row": lambda b: -jax.nn.log_softmax(b["x"] @ WEIGHTS)[jnp.arange(SIZE), b["label"]],
    "own row, two axes": lambda b: b["sequence"][jnp.arange(SIZE), 1, b["label"]],
    "written to": lambda b: jax.vmap(lambda x, n: x.at[n].set(0.0).sum())(b["x"], b["label"]),
    "added to": lambda b: jax.vmap(lambda x, n: x.at[n].add(x[0]).sum())(b["x"], b["label"]),
    "spectrum": lambda b: jnp.abs(jnp.fft.fft(b["x"], axis=1)).sum(axis=1),
    "determinant": lambda b: jnp.linalg.slogdet(outer(b["x"]))[1],
    "root": lambda b: jnp.linalg.cholesky(outer(b["x"])).sum(axis=(1, 2)),
    "solved": lambda b: jax.scipy.linalg.solve_triangular(outer(b["x"]), b["x"][:, :, None]).sum(axis=(1, 2)),
    "dropout": lambda b: jnp.where(jax.random.uniform(jax.random.key(0), (SIZE,)) < 0.5, b["scalar"], 0.0),
}
MEETING = {
    "contrastive": lambda b: jax.nn.logsumexp(b["x"] @ b["x"].T, axis=1),
    "pairs": lambda b: (b["scalar"][:, None] * b["scalar"][None, :]).sum(axis=1),
    "centred": lambda b: b["scalar"] - b["scalar"].mean(),
    "ranked": lambda b: jnp.argsort(jnp.argsort(b["scalar"])) * b["scalar"],
    "batch norm": of_model(Convolutional(batch_norm=True), "image"),
    "carried": carried_over_examples,
    "shifted": lambda b: b["scalar"] * jnp.roll(b["scalar"], 1),
    "reversed": lambda b: b["scalar"] * b["scalar"][::-1],
    "groups": lambda b: jax.ops.segment_sum(b["scalar"], b["label"], 3)[b["label"]],
    "another's row": lambda b: b["x"][jnp.arange(SIZE)[::-1], b["label"]],
    "a row by number": lambda b: b["x"][(jnp.arange(SIZE) + 1) % SIZE, b["label"]],
    "written across": lambda b: b["scalar"].at[b["label"]].add(1.0),
    "spectrum of all": lambda b: jnp.abs(jnp.fft.fft(b["x"], axis=0)).sum(axis=1),
    "gathered": lambda b: b["scalar"][b["label"]],
    "stacked rows": lambda b: jnp.stack(jnp.unstack(b["scalar"])[::-1]),
    "tiled rows": lambda b: b["scalar"] * jnp.tile(b["scalar"][::2], 2),
    "a row set": lambda b: b["scalar"].at[0].set(b["scalar"][1]),
    "rows set": lambda b: b["x"].at[1:].set(b["x"][:-1]).sum(axis=1),
    "folded": lambda b: b["x"].reshape(4, SIZE).sum(axis=0),
    "a loop as long as its largest": lambda b: jax.lax.while_loop(
        lambda x: jnp.max(x) < 3, lambda x: 2 * x, b["scalar"]
    ),
    "in another order": lambda b: jax.lax.reshape(b["x"], (SIZE, 4), (1, 0)).sum(axis=1),
    "cumulative": lambda b: jnp.cumsum(b["scalar"]),
}


def found(loss):
    jaxpr = jax.make_jaxpr(loss)(BATCH).jaxpr
    return rowwise.axes_of_outputs(jaxpr, [0] * len(jaxpr.invars))[0]


def others_matter(loss):
    """Whether another example's inputs change an example's loss, by trying."""
    before = loss(BATCH)
    for row in range(SIZE):
        changed = jax.tree.map(lambda x, row=row: x.at[row].set(x[row - 2]), BATCH)
        differs = np.asarray(loss(changed) != before)
        if np.delete(differs, row).any():
            return True
    return False


@pytest.fixture(autouse=True)
def _as_others_promote(as_optax_promotes):
    """These are programs of others."""


@pytest.mark.parametrize("name", over(APART, {*APART} - {"recurrent", "root", "solved"}))
def test_examples_that_never_meet_are_seen_to_be_apart(name):
    assert not others_matter(APART[name])
    assert found(APART[name]) == 0


@pytest.mark.parametrize("name", MEETING)
def test_examples_that_meet_are_never_taken_to_be_apart(name):
    assert name == "a loop as long as its largest" or others_matter(MEETING[name])
    assert found(MEETING[name]) == rowwise.MEET
    assert found(jax.jit(MEETING[name])) == rowwise.MEET


def test_row_numbers_that_wrap_around_in_a_narrow_type_are_no_row_numbers():
    def axis_of(size):
        jaxpr = jax.make_jaxpr(lambda x: x[jnp.arange(size).astype(jnp.uint8), jnp.zeros(size, int)])
        return rowwise.axes_of_outputs(jaxpr(jnp.ones((size, 2))).jaxpr, [0])[0]

    assert axis_of(300) == rowwise.MEET
    assert axis_of(200) == 0
