"""What Optax asks of an optimizer in its common tests and its sharding tests, over every public method.

Long runs stand in `test_long_runs.py`, numbers and schedules in `test_hyperparameters.py`.
"""

import contextlib
import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import optax_sam
from tests.composition.chains import remember
from tests.problem import (
    assert_trees_close,
    assert_trees_equal,
    init_params,
    losses,
    make_batch,
    make_indices,
)
from tests.registry import VARIANTS, WRAPPED, one_step, over

every_kind = pytest.mark.parametrize("name", over(WRAPPED))

UNEXPECTED = {"unexpected_extra_args_your_optimizer_doesnt_expect": 1}
DTYPES = ("float16", "bfloat16", "float32", "float64")


def types(tree):
    """Shape, dtype and weak type of every leaf."""
    return jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), tree)


@every_kind
def test_unexpected_arguments_are_ignored(name):
    """The very same program: nothing of them is read, kept or computed with."""
    method, params = VARIANTS[name].make(), init_params()

    def program(**unexpected):
        def update(params, state, batch, indices):
            oracle = optax_sam.Oracle(losses, batch, indices=indices)
            return method.update(params, state, params, oracle=oracle, **unexpected)

        return str(jax.make_jaxpr(update)(params, method.init(params), make_batch(), make_indices()))

    assert program(**UNEXPECTED, value=2.0, value_fn=losses, step=jnp.array(7)) == program()


@contextlib.contextmanager
def messages_of_jax():
    messages, handler, logger = [], logging.Handler(), logging.getLogger("jax")
    handler.emit = lambda record: messages.append(record.getMessage())
    logger.addHandler(handler)
    try:
        yield messages
    finally:
        logger.removeHandler(handler)


@functools.cache
def four_micro_batches(name):
    """Updates, descents and messages of compilation of `chain(method, MultiSteps(base, 4))`."""
    method, params = VARIANTS[name].make(), init_params()
    tx = optax.chain(method, remember(), optax.MultiSteps(optax.sgd(0.1), 4))
    rows = [(make_batch(number), make_indices(number)) for number in range(4)]

    @jax.jit
    def step(params, state, batch, indices):
        _, grads, oracle = method.value_and_grad(losses)(params, batch, state=state, indices=indices)
        return tx.update(grads, state, params, oracle=oracle, **UNEXPECTED)

    state, updates, descents, compiled = tx.init(params), [], [], []
    with messages_of_jax() as messages, jax.log_compiles(), jax.numpy_dtype_promotion("standard"):
        for batch, indices in rows:
            messages.clear()
            update, state = step(params, state, batch, indices)
            compiled.append([message for message in messages if "Finished XLA compilation" in message])
            updates.append(update)
            descents.append(state[1])
    return updates, descents, compiled


@every_kind
def test_unexpected_arguments_cause_no_second_compilation(name):
    _, _, compiled = four_micro_batches(name)
    assert len(compiled[0]) == 1  # the messages are seen
    assert compiled[1:] == [[], [], []]


@every_kind
def test_multi_steps_behind_it_descend_on_the_mean_of_the_micro_batches(name):
    updates, descents, _ = four_micro_batches(name)
    for update in updates[:3]:
        assert all(np.all(np.asarray(x) == 0) for x in jax.tree.leaves(update))
    wanted = jax.tree.map(lambda *d: -0.1 * np.mean(d, axis=0), *descents)
    assert_trees_close(updates[3], wanted, rtol=1e-5, atol=1e-7)
    assert not np.allclose(descents[0]["layer_0"]["kernel"], descents[1]["layer_0"]["kernel"])


def test_multi_steps_behind_sam_are_m_sharpness():
    """By hand, and by `per_microbatch` on the four batches as one."""
    params, batches = init_params(), [make_batch(number) for number in range(4)]
    gradient = jax.jit(jax.grad(lambda p, batch: jnp.mean(losses(p, batch))))
    total = optax.tree.zeros_like(params)
    for batch in batches:
        grads = gradient(params, batch)
        size = np.sqrt(sum(np.sum(np.square(g)) for g in jax.tree.leaves(grads)))
        point = jax.tree.map(lambda w, g, size=size: w + 0.05 * g / size, params, grads)
        total = jax.tree.map(lambda t, g: t + g / 4, total, gradient(point, batch))
    updates, _, _ = four_micro_batches("sam")
    assert_trees_close(updates[3], jax.tree.map(lambda t: -0.1 * t, total), rtol=1e-4, atol=1e-7)
    whole = jax.tree.map(lambda *x: jnp.concatenate(x), *batches)
    sliced, _, _ = one_step(VARIANTS["m_sam"].make(), params, whole, indices=jnp.arange(64) % 48)
    assert_trees_close(sliced, total, rtol=1e-4, atol=1e-6)


@every_kind
def test_map_params_maps_what_is_like_the_parameters(name):
    """And nothing else: the arrays whose shapes follow those of the parameters."""
    method, params = VARIANTS[name].make(), init_params()
    tx = optax.chain(method, optax.sgd(0.1, momentum=0.9))
    state = tx.init(params)
    longer = jax.eval_shape(tx.init, jax.tree.map(lambda x: x[None], params))
    follows = jax.tree.map(lambda x, y: x.shape != y.shape, state, longer)
    assert any(jax.tree.leaves(follows[0])) == (name == "vsam") and any(jax.tree.leaves(follows[1]))
    wanted = jax.tree.map(lambda x, f: x + 1 if f else x, state, follows)
    assert_trees_equal(optax.tree.map_params(tx, lambda x: x + 1, state), wanted)
    specs = optax.tree.map_params(tx, lambda x, w: w, state, params, transform_non_params=lambda x: None)
    assert len(jax.tree.leaves(specs)) == sum(jax.tree.leaves(follows))


def params_of(kind):
    """Parameters of one dtype, or of all four."""
    if kind != "mixed":
        return init_params(kind)
    dtypes = iter(DTYPES)
    return jax.tree.map(lambda x: x.astype(next(dtypes)), init_params())


def losses_in_own_dtype(params, batch):
    """The tests' losses, in the widest dtype of the parameters."""
    widest = max((x.dtype for x in jax.tree.leaves(params)), key=lambda dtype: dtype.itemsize)
    return losses(
        jax.tree.map(lambda x: x.astype(widest), params), batch | {"image": batch["image"].astype(widest)}
    )


@pytest.mark.parametrize("kind", over([*DTYPES, "mixed"], ["float16", "mixed"]))
@every_kind
def test_types_of_state_and_updates_are_stable(name, kind):
    """Structure, shapes, dtypes and weak types; as a branch of a conditional, and from abstract `init`.

    `value` is an argument of another dtype, for transformations behind.
    """
    with jax.enable_x64(kind in ("float64", "mixed")):
        method, params, seen = VARIANTS[name].make(), params_of(kind), []
        tx = optax.chain(method, optax.sgd(0.1, momentum=0.9))
        state, batch = tx.init(params), make_batch()
        value = jnp.zeros([], jnp.bfloat16 if kind == "float16" else jnp.float16)

        def update(params, state):
            _, grads, oracle = method.value_and_grad(losses_in_own_dtype)(
                params, batch, state=state, indices=make_indices()
            )
            seen.append(tx.update(grads, state, params, oracle=oracle, value=value))
            return seen[-1]

        jax.eval_shape(
            lambda p, s, true: jax.lax.cond(true, update, lambda p, s: (p, s), p, s), params, state, True
        )
        updates, after = seen[0]
        assert types(updates) == types(params)
        assert jax.tree.structure(after) == jax.tree.structure(state)
        assert types(after) == types(state)
        assert not any(x.weak_type for x in jax.tree.leaves(after))
        abstract = jax.eval_shape(lambda: params)
        assert types(jax.eval_shape(tx.init, abstract)) == types(state)
        assert jax.tree.structure(tx.init(abstract)) == jax.tree.structure(state)


@every_kind
def test_descent_has_the_dtype_of_the_gradient_that_was_handed_in(name):
    """A gradient in bfloat16 of parameters in float32, and the other way round."""
    method = VARIANTS[name].make()
    for own, other in ((jnp.float32, jnp.bfloat16), (jnp.bfloat16, jnp.float32)):

        def update(params, other=other):
            state = method.init(params)
            _, grads, oracle = method.value_and_grad(losses_in_own_dtype)(
                params, make_batch(), state=state, indices=make_indices()
            )
            return method.update(optax.tree.cast(grads, other), state, params, oracle=oracle)

        descent, after = jax.eval_shape(update, init_params(own))
        assert all(x.dtype == other for x in jax.tree.leaves(descent))
        assert types(after) == types(method.init(init_params(own)))


@pytest.mark.parametrize("name", over([*WRAPPED, "ausam_strata", "m_sam_vmap"]))
def test_explicit_sharding_types_of_the_state_are_stable(name):
    """Batch and parameters split over eight devices: those of `init`, of it jitted, and of an update."""

    def wave(params, x):
        heights = jnp.sum(jnp.sin(params["kernel"].astype(jnp.float32)))
        return x * heights + jnp.square(x) * jnp.sum(params["bias"].astype(jnp.float32))

    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
    typeof = functools.partial(jax.tree.map, jax.typeof)
    with jax.set_mesh(mesh):
        place = lambda x, *spec: jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spec)))
        params = {
            "kernel": place(jnp.zeros([2, 8, 4], jnp.float16), None, "data"),
            "bias": place(jnp.zeros([3], jnp.float16)),
        }
        batch, indices = place(jnp.arange(32.0), "data"), place(jnp.arange(32), "data")
        method = VARIANTS[name].make()
        tx = optax.chain(method, optax.sgd(0.1, momentum=0.9))
        state = tx.init(params)
        assert typeof(jax.jit(tx.init)(params)) == typeof(state)

        @jax.jit
        def update(params, state):
            _, grads, oracle = method.value_and_grad(wave)(params, batch, state=state, indices=indices)
            return tx.update(grads, state, params, oracle=oracle)

        updates, after = update(params, state)
        assert typeof(after) == typeof(state)
        assert typeof(updates) == typeof(params)
