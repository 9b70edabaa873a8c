"""A small problem, trained with one compiled loop per method."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optax_sam
from tests.references.network import make_problem

FAST = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}  # to compile
PROBLEM = make_problem(11, batch=12, steps=24, num_examples=24, sizes=(5, 3))
STEPS, NUM_EXAMPLES = len(PROBLEM.batches), PROBLEM.num_examples
PARAMS = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), PROBLEM.params)
BATCHES = {
    "image": np.stack([batch["image"] for batch in PROBLEM.batches]).astype(np.float32),
    "label": np.stack([batch["label"] for batch in PROBLEM.batches]),
    "position": np.tile(np.arange(12, dtype=np.int32), (STEPS, 1)),
}
INDICES = np.stack(PROBLEM.indices)
BATCH = jax.tree.map(lambda x: jnp.asarray(x[0]), BATCHES)
BASE = optax.sgd(0.1, momentum=0.9)


class Run(NamedTuple):
    """One value per step of each: parameters, the method's state before and after, `info`, `aux`."""

    params: np.ndarray
    before: Any
    after: Any
    info: dict[str, np.ndarray]
    aux: Any


def losses(params, batch):
    layer = params["layer_0"]
    logits = batch["image"] @ layer["kernel"] + layer["bias"][None]
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])


@jax.jit
def mean_loss(params, batch, weights=None):
    found = losses(params, batch)
    weights = jnp.ones_like(found) if weights is None else weights
    return jnp.sum(weights * found) / jnp.sum(weights)


mean_gradient = jax.jit(jax.grad(mean_loss))


def train(method, *, steps=STEPS, base=BASE, options=FAST):
    """Trains for some epochs in one compiled loop."""
    tx = optax.chain(method, base)

    def loss_fn(params, batch):
        return losses(params, batch), batch["position"]

    def step(carry, number):
        params, opt_state = carry
        batch, indices = jax.tree.map(lambda x: jnp.asarray(x)[number % STEPS], (BATCHES, INDICES))
        (_, aux), grads, oracle = method.value_and_grad(loss_fn, has_aux=True)(
            params, batch, state=opt_state, indices=indices
        )
        updates, after = tx.update(grads, opt_state, params, oracle=oracle)
        params = optax.apply_updates(params, updates)
        return (params, after), Run(params, opt_state[0], after[0], optax_sam.info(after), aux)

    @partial(jax.jit, compiler_options=options)
    def run(params):
        return jax.lax.scan(step, (params, tx.init(params)), jnp.arange(steps, dtype=jnp.int32))[1]

    found = jax.tree.map(np.asarray, run(PARAMS))
    return found._replace(params=flatten(found.params, axes=1))


def train_base():
    """The base optimizer alone."""

    def step(carry, batch):
        params, opt_state = carry
        grads = jax.grad(lambda params: jnp.mean(losses(params, batch)))(params)
        updates, opt_state = BASE.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        return (params, opt_state), params

    run = jax.jit(lambda params: jax.lax.scan(step, (params, BASE.init(params)), BATCHES)[1])
    return flatten(run(PARAMS), axes=1)


def flatten(tree, axes=0):
    """All entries behind the first `axes` axes as one."""
    parts = [np.asarray(x).reshape(*np.shape(x)[:axes], -1) for x in jax.tree.leaves(tree)]
    return np.concatenate(parts, axis=-1)


def perturbed(params, grads, rho):
    return jax.tree.map(lambda p, g: p + rho * g / norm(grads), params, grads)


def norm(tree):
    return np.linalg.norm(flatten(tree).astype(np.float64))


def stepper(method, loss_fn=losses, batch=BATCH, *, perturb=None, **rows):
    """A compiled `(params, state) -> (descent, state, first gradient)`."""

    @partial(jax.jit, compiler_options=FAST)
    def step(params, state):
        _, grads, oracle = method.value_and_grad(loss_fn)(params, batch, state=state, **rows)
        return *method.update(grads, state, params, oracle=oracle, perturb=perturb), grads

    return step


def one_step(method, loss_fn=losses, params=PARAMS, batch=BATCH, **options):
    return stepper(method, loss_fn, batch, **options)(params, method.init(params))


def close(run, other, **tolerance):
    np.testing.assert_allclose(run, other, **({"rtol": 2e-4, "atol": 2e-6} | tolerance))
