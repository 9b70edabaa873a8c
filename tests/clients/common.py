"""What the clients share: data, SAM written by hand, and the count of changed lines."""

import difflib
import inspect
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import optax

RHO = 0.2
STEPS = 8


def image_batches(num_batches=STEPS, size=16):
    """Random inputs, with the labels of a random linear teacher; two batches take turns."""
    rng = np.random.default_rng(0)
    teacher = rng.normal(size=(5, 3))
    two = []
    for _ in range(2):
        image = rng.normal(size=(size, 5))
        label = np.argmax(image @ teacher, axis=-1)
        two.append({"image": jnp.asarray(image, jnp.float32), "label": jnp.asarray(label, jnp.int32)})
    return [two[number % 2] for number in range(num_batches)]


def cross_entropy(logits, labels):
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))


def sam_by_hand(loss, params, base, arguments, rho=RHO):
    """Parameters after each step of SAM in plain JAX, and the losses: two gradients, the base optimizer.

    `loss(params, argument)` is a scalar.
    """

    @jax.jit
    def step(params, state, argument):
        value, grads = jax.value_and_grad(loss)(params, argument)
        norm = jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(grads)))
        moved = jax.tree.map(lambda p, g: p + rho * g / norm, params, grads)
        descent = jax.grad(loss)(moved, argument)
        updates, state = base.update(descent, state, params)
        return optax.apply_updates(params, updates), state, value

    state, trajectory, values = base.init(params), [], []
    for argument in arguments:
        params, state, value = step(params, state, argument)
        trajectory.append(params)
        values.append(value)
    return trajectory, values


def changed_lines(before, after):
    """Lines of `after` that are not in `before`, and the other way round, without the names of the two."""
    bodies = [textwrap.dedent(inspect.getsource(program)).splitlines()[1:] for program in (before, after)]
    marks = [line[0] for line in difflib.ndiff(*bodies)]
    return marks.count("+"), marks.count("-")
