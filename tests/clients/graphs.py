"""Like jraph's examples: padded graphs, a compiled gradient, and an optimizer that is called outside."""

import functools

import jax
import jax.numpy as jnp
import jraph
import numpy as np
import optax

import optax_sam
from tests.clients.common import STEPS, cross_entropy, sam_by_hand

# Graphs are no batch of examples, and this step has a gradient function.
METHODS = {
    "sam": optax_sam.sam,
    "rst": functools.partial(optax_sam.rst, probability=0.5),
    "looksam": functools.partial(optax_sam.looksam, every_k=2),
    "asam": optax_sam.asam,
    "gsam": optax_sam.gsam,
}
FAST, CHANGED = "looksam", (3, 2)


def rings():
    """Two batches of rings of several sizes, as `(nodes of each ring, labels)`; they take turns."""
    rng = np.random.default_rng(0)
    two = []
    for sizes in ((3, 5, 4), (6, 3, 4)):
        labels = rng.integers(0, 2, len(sizes))
        nodes = [rng.normal(size=(size, 4)) + 2.0 * label for size, label in zip(sizes, labels, strict=True)]
        two.append(([jnp.asarray(x, jnp.float32) for x in nodes], jnp.asarray(labels, jnp.int32)))
    return [two[number % 2] for number in range(STEPS)]


def padded(nodes, labels):
    """The rings as one graph of graphs; what is added by padding is NaN, so that a leak shows."""
    graphs = []
    for x in nodes:
        n = len(x)
        senders, receivers = np.arange(n), (np.arange(n) + 1) % n
        count = np.array([n])
        graphs.append(jraph.GraphsTuple(x, None, receivers, senders, None, count, count))
    graphs = jraph.pad_with_graphs(jraph.batch(graphs), n_node=16, n_edge=16, n_graph=4)
    return graphs, jnp.concatenate([labels, jnp.zeros(1, jnp.int32)])


def init_params():
    keys = jax.random.split(jax.random.key(0))
    return {"w": jax.random.normal(keys[0], (4, 8)) / 2, "v": jax.random.normal(keys[1], (8, 2)) / 2}


def loss_fn(params, graphs, labels):
    nodes = jnp.tanh(jraph.GraphConvolution(lambda nodes: nodes @ params["w"])(graphs).nodes)
    numbers = jnp.arange(graphs.n_node.size)
    graph_of_node = jnp.repeat(numbers, graphs.n_node, total_repeat_length=len(nodes))
    logits = jraph.segment_mean(nodes, graph_of_node, numbers.size) @ params["v"]
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return losses.mean(where=jraph.get_graph_padding_mask(graphs))


def train(batches):
    params = init_params()
    tx = optax.adam(0.02)
    opt_state = tx.init(params)
    compute_loss = jax.jit(jax.value_and_grad(loss_fn))

    def train_step(params, opt_state, graphs, labels):
        loss, grads = compute_loss(params, graphs, labels)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    trajectory, losses = [], []
    for nodes, labels in batches:
        params, opt_state, loss = train_step(params, opt_state, *padded(nodes, labels))
        trajectory.append(params)
        losses.append(loss)
    return trajectory, losses


def train_with_sam(sam, batches):
    params = init_params()
    tx = optax.chain(sam, optax.adam(0.02))
    opt_state = tx.init(params)
    compute_loss = jax.jit(jax.value_and_grad(loss_fn))

    def train_step(params, opt_state, graphs, labels):
        loss, grads = compute_loss(params, graphs, labels)
        grad_fn = lambda params: compute_loss(params, graphs, labels)[1]
        updates, opt_state = tx.update(grads, opt_state, params, grad_fn=grad_fn)
        return optax.apply_updates(params, updates), opt_state, loss

    trajectory, losses = [], []
    for nodes, labels in batches:
        params, opt_state, loss = train_step(params, opt_state, *padded(nodes, labels))
        trajectory.append(params)
        losses.append(loss)
    return trajectory, losses


def params_of(trajectory):
    return trajectory


def by_hand():
    """Without jraph and without padding: on a ring, each node hears of the one before."""

    def loss(params, batch):
        nodes, labels = batch
        of_rings = [jnp.tanh(jnp.roll(x @ params["w"], 1, 0)).mean(axis=0) for x in nodes]
        return cross_entropy(jnp.stack(of_rings) @ params["v"], labels)

    return sam_by_hand(loss, init_params(), optax.adam(0.02), rings())
