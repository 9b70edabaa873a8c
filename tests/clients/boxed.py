"""Like nanodo and MaxText: a language model whose parameters are split (FSDP) and stand in boxes of Flax."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.training.train_state import TrainState
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import optax_sam
import optax_sam.flax
from tests.clients.common import STEPS, cross_entropy, sam_by_hand

METHODS = {
    "sam": optax_sam.sam,
    "vsam": functools.partial(optax_sam.vsam, window=4, slices=2, tail=2, warmup_steps=1),
    "looksam": functools.partial(optax_sam.looksam, every_k=2),
    "asam": optax_sam.asam,
    "momentum_sam": optax_sam.momentum_sam,
}
FAST, CHANGED = "vsam", (3, 3)
MESH = Mesh(np.array(jax.devices()[:4]), ("data",))
SPLIT = NamedSharding(MESH, PartitionSpec("data"))
VOCABULARY = 12


class Net(nn.Module):
    @nn.compact
    def __call__(self, tokens):
        split = lambda init, *names: nn.with_partitioning(init, names)
        normal = nn.initializers.normal(0.3)
        x = nn.Embed(VOCABULARY, 8, embedding_init=split(normal, "data", None))(tokens)
        x = x + nn.tanh(nn.Dense(16, kernel_init=split(normal, None, "data"))(x)) @ self.param(
            "out", split(normal, "data", None), (16, 8)
        )
        return nn.Dense(VOCABULARY, use_bias=False, kernel_init=split(normal, "data", None))(x)


def token_batches():
    """Sequences in which each token follows from the one before."""
    rng = np.random.default_rng(0)
    starts = [rng.integers(0, VOCABULARY, (8, 1)) for _ in range(2)]
    two = [jnp.asarray((start + 5 * np.arange(6)) % VOCABULARY, jnp.int32) for start in starts]
    return [two[number % 2] for number in range(STEPS)]


def train(batches):
    model = Net()
    tx = optax.adamw(0.02)

    def init(key):
        params = model.init(key, batches[0])["params"]
        return TrainState.create(apply_fn=model.apply, params=params, tx=tx)

    def loss_fn(params, tokens):
        return cross_entropy(model.apply({"params": params}, tokens[:, :-1]), tokens[:, 1:])

    def train_step(state, tokens):
        loss, grads = jax.value_and_grad(loss_fn)(state.params, tokens)
        state = state.apply_gradients(grads=grads)
        return state, loss

    shardings = nn.get_sharding(jax.eval_shape(init, jax.random.key(0)), MESH)
    whole = NamedSharding(MESH, PartitionSpec())
    step = jax.jit(train_step, in_shardings=(shardings, SPLIT), out_shardings=(shardings, whole))
    with jax.set_mesh(MESH):
        state = jax.jit(init, out_shardings=shardings)(jax.random.key(0))
        states, losses = [], []
        for tokens in batches:
            state, loss = step(state, jax.device_put(tokens, SPLIT))
            states.append(state)
            losses.append(loss)
    return states, losses


def train_with_sam(sam, batches):
    model = Net()
    tx = optax.chain(sam, optax.adamw(0.02))

    def init(key):
        params = model.init(key, batches[0])["params"]
        return TrainState.create(apply_fn=model.apply, params=params, tx=tx)

    def loss_fn(params, tokens):
        return cross_entropy(model.apply({"params": params}, tokens[:, :-1]), tokens[:, 1:])

    def train_step(state, tokens):
        loss, grads, oracle = sam.value_and_grad(loss_fn)(state.params, tokens, state=state)
        state = optax_sam.flax.apply_gradients(state, grads=grads, oracle=oracle)
        return state, loss

    shardings = nn.get_sharding(jax.eval_shape(init, jax.random.key(0)), MESH)
    whole = NamedSharding(MESH, PartitionSpec())
    step = jax.jit(train_step, in_shardings=(shardings, SPLIT), out_shardings=(shardings, whole))
    with jax.set_mesh(MESH):
        state = jax.jit(init, out_shardings=shardings)(jax.random.key(0))
        states, losses = [], []
        for tokens in batches:
            state, loss = step(state, jax.device_put(tokens, SPLIT))
            states.append(state)
            losses.append(loss)
    return states, losses


def params_of(states):
    """Out of their boxes, in which they have stayed; every buffer of the size of a kernel stays split."""
    boxes = lambda tree: jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, nn.Partitioned))
    for state in states:
        of_params, of_optimizer = boxes(state.params), boxes(state.opt_state)
        assert sum(isinstance(x, nn.Partitioned) for x in of_params) == 4
        for x in (*of_params, *of_optimizer):
            if isinstance(x, nn.Partitioned):
                assert x.value.sharding.spec == x.get_partition_spec() and not x.value.is_fully_replicated
            else:
                assert x.ndim < 2
                shards = [jax.device_get(shard.data) for shard in x.addressable_shards]
                assert x.is_fully_replicated and all(np.array_equal(s, shards[0]) for s in shards)
    return [jax.device_get(nn.unbox(state.params)) for state in states]


def by_hand():
    """On one device and without boxes or Flax."""

    def loss(params, tokens):
        x = params["Embed_0"]["embedding"][tokens[:, :-1]]
        hidden = jnp.tanh(x @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"])
        x = x + hidden @ params["out"]
        return cross_entropy(x @ params["Dense_1"]["kernel"], tokens[:, 1:])

    start = nn.unbox(Net().init(jax.random.key(0), token_batches()[0])["params"])
    return sam_by_hand(loss, start, optax.adamw(0.02), token_batches())
