"""Recorded trajectories in float64, and how they are compared with the references."""

from functools import partial
from operator import itemgetter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optax_sam
from optax_sam.engine.state import find
from tests.references.network import make_problem
from tests.references.trees import flatten, leaves

PROBLEM = make_problem(0)
STEPS = len(PROBLEM.batches)
BASE = {"lr": 0.05, "momentum": 0.9, "weight_decay": 1e-3}
MEASURED = ("loss", "perturbed_loss", "grad_norm", "perturbed_grad_norm", "perturbation_norm")
FAST = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
KINDS = ("start", "direction", "gate", "selection", "combination", "reuse", "ascent")  # that may draw


def rising(first, slope):
    """A schedule in float64 on both sides; those of Optax are float32 under `jit`."""
    return lambda step: first + slope * jnp.asarray(step, jnp.float64)


RISING = rising(0.02, 0.004)


def in_float64():
    """The body of a fixture: double precision for every thread.

    `jax.enable_x64` would hand float32 to the callbacks, which run in threads of their own.
    """
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


class Run(NamedTuple):
    """What a run of the library gave; every entry has one value per step.

    `before` and `after` are the method's own state, `loss` what `value_and_grad` returned, `seen` the
    positions in the batch that the first gradient saw (-1 for padding), `points` every point that was
    evaluated.
    """

    params: np.ndarray
    before: Any
    after: Any
    info: dict[str, np.ndarray]
    loss: np.ndarray
    seen: list[np.ndarray]
    points: list[np.ndarray]


def losses(params, batch):
    """The network of the references; the auxiliary value tells which rows were seen."""
    first, second = params["layer_0"], params["layer_1"]
    hidden = jnp.tanh(batch["image"] @ first["kernel"] + first["bias"][None])
    logits = hidden @ second["kernel"] + second["bias"][None]
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]), batch["position"]


def train(
    method, problem=PROBLEM, *, weights=None, indices=None, whole_steps=0, record_points=False, tx=None
):
    """Trains on all batches: the first `whole_steps` with `whole_batch=True`, as in a first epoch.

    `tx` is the whole optimizer, the method and `BASE` where none is given.
    """
    base = optax.sgd(BASE["lr"], momentum=BASE["momentum"])
    decay = optax.add_decayed_weights(BASE["weight_decay"])
    tx = optax.chain(method, decay, base) if tx is None else tx
    points = []

    def loss_fn(params, batch):
        if record_points:
            point = jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(params)])
            jax.debug.callback(lambda x: points.append(np.array(x)), point, ordered=True)
        return losses(params, batch)

    def epoch(carry, rows, whole_batch):
        def step(carry, rows):
            params, opt_state = carry
            (loss, seen), grads, oracle = method.value_and_grad(loss_fn, has_aux=True)(
                params, rows["batch"], state=opt_state, indices=rows["indices"],
                weights=rows["weights"], whole_batch=whole_batch,
            )  # fmt: skip
            updates, after = tx.update(grads, opt_state, params, oracle=oracle)
            params = optax.apply_updates(params, updates)
            own = (params, find(opt_state), find(after), optax_sam.info(after), loss, seen)
            return (params, after), own

        return jax.lax.scan(step, carry, rows)

    @partial(jax.jit, compiler_options=FAST)
    def run(params, rows):
        carry, found = (params, tx.init(params)), []
        for part, whole_batch in ((slice(whole_steps), True), (slice(whole_steps, None), False)):
            if len(problem.batches[part]):
                carry, values = epoch(carry, jax.tree.map(itemgetter(part), rows), whole_batch)
                found.append(values)
        return found

    rows = {
        "batch": stack(
            [batch | {"position": 1 + np.arange(len(batch["label"]))} for batch in problem.batches]
        ),
        "indices": stack(problem.indices if indices is None else indices),
        "weights": None if weights is None else stack(weights),
    }
    found = jax.tree.map(np.asarray, run(jax.tree.map(jnp.asarray, problem.params), rows))
    jax.effects_barrier()
    params, before, after, info, loss = jax.tree.map(
        lambda *x: np.concatenate(x), *(part[:-1] for part in found)
    )
    seen = [positions - 1 for part in found for positions in part[-1]]  # aux is 0 for padding
    return Run(flatten_steps(params), before, after, info, loss, seen, points)


def stack(values):
    return jax.tree.map(lambda *x: jnp.asarray(np.stack(x)), *values)


def flatten_steps(tree):
    """One row per step, the leaves in the order of the references."""
    return np.concatenate([leaf.reshape(len(leaf), -1) for leaf in jax.tree.leaves(tree)], axis=1)


def unflatten(vector, like):
    """The nested dict of the references from one row."""
    sizes = np.cumsum([leaf.size for leaf in leaves(like)])[:-1]
    parts = [
        part.reshape(leaf.shape) for part, leaf in zip(np.split(vector, sizes), leaves(like), strict=True)
    ]
    return jax.tree.unflatten(jax.tree.structure(like), parts)


def draws(run, kind, draw):
    """`draw(key)` in every step: the key is made of the state's, the step, and the kind of piece."""

    def of_step(key_data, step):
        key = jax.random.fold_in(jax.random.wrap_key_data(key_data, impl="threefry2x32"), step)
        return draw(jax.random.fold_in(key, KINDS.index(kind)))

    steps = jnp.arange(len(run.params), dtype=jnp.int32)
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(of_step))(run.before.key, steps))


def uniforms(run):
    """What the gate draws in every step."""
    return draws(run, "gate", lambda key: jax.random.uniform(key, dtype=jnp.float32))


def tree_draws(run, kind, draw, like=PROBLEM.params):
    """`draw(key, leaf)` with a key for each leaf: one tree a step."""
    found, treedef = jax.tree.flatten(like)

    def of_tree(key):
        keys = jax.random.split(key, len(found))
        return [draw(k, jnp.asarray(x)) for k, x in zip(keys, found, strict=True)]

    drawn = draws(run, kind, of_tree)
    return [jax.tree.unflatten(treedef, [x[t] for x in drawn]) for t in range(len(run.params))]


def assert_same_trajectory(run, record):
    """The parameters and what `info` tells after every step."""
    expected = np.stack([flatten(params) for params in record["params"]])
    assert len(expected) >= 20
    np.testing.assert_allclose(run.params, expected, rtol=1e-9, atol=1e-12)
    for name in MEASURED:
        np.testing.assert_allclose(run.info[name], record[name], rtol=1e-5, atol=1e-7, err_msg=name)
    np.testing.assert_array_equal(run.info["perturbed"], np.float32(record["perturbed"]))
    sharpness = np.subtract(record["perturbed_loss"], record["loss"])
    np.testing.assert_allclose(run.info["sharpness"], sharpness, atol=1e-6)
    np.testing.assert_allclose(run.loss, record["loss"], rtol=1e-9)
    np.testing.assert_array_equal(run.after.step, np.arange(1, len(expected) + 1))


def assert_gradients(run, per_step):
    """The count after every step, or after as many as are given."""
    found = run.info["gradients"][: len(per_step)]
    np.testing.assert_allclose(found, np.cumsum(per_step), rtol=1e-6)


def random_weights(seed=0, problem=PROBLEM):
    """Uneven weights, and two rows of padding in every batch."""
    weights = np.random.default_rng(seed).uniform(0.2, 2.0, (len(problem.batches), 12))
    weights[:, [3, 7]] = 0.0
    return list(weights)


def with_nan_where_padding(problem, weights):
    """The problem with NaN in every row of weight 0: nothing may depend on it."""
    batches = [
        batch | {"image": np.where(w[:, None] == 0, np.nan, batch["image"])}
        for batch, w in zip(problem.batches, weights, strict=True)
    ]
    return problem._replace(batches=batches)


def normal(key, x):
    return jax.random.normal(key, x.shape, x.dtype)


def surrogate_losses(params, batch):
    first, second = params["layer_0"], params["layer_1"]
    hidden = batch["image"] @ first["kernel"] + first["bias"][None]
    logits = hidden @ second["kernel"] + second["bias"][None]
    found = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
    return found, batch["position"]


def is_bias(path, leaf):
    del leaf
    return "bias" in str(path[-1])
