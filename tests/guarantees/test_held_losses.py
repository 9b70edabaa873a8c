"""What a loss closes over is held for the step; what it needs beside its batch is an argument."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, PartitionSpec

import optax_sam
from tests.devices.test_devices import losses as losses_on_devices
from tests.devices.test_devices import placed_on, product_axes
from tests.problem import (
    assert_trees_close,
    assert_trees_equal,
    init_params,
    losses,
    make_batch,
    make_indices,
)
from tests.registry import CASES, EVERY, over
from tests.rows import own_loss

SHIFT = None  # a notebook's variable


class Model:
    """Keeps a shift in an attribute."""

    def __init__(self):
        self.shift = None

    def losses(self, params, batch):
        return losses(params, batch | {"image": batch["image"] + self.shift})


TABLE = {}
MODEL = Model()


def by_global(params, batch):
    return losses(params, batch | {"image": batch["image"] + SHIFT})


def by_entry(params, batch):
    return losses(params, batch | {"image": batch["image"] + TABLE["shift"]})


def set_shift(value):
    global SHIFT
    SHIFT = MODEL.shift = TABLE["shift"] = value


WAYS = {"global": by_global, "attribute": MODEL.losses, "entry of a dict": by_entry}
FORMS = {
    "sam": lambda: optax_sam.sam(),
    "a draw": lambda: optax_sam.tsam(num_samples=2, radius=0.1),
    "slices": lambda: optax_sam.per_microbatch(optax_sam.sam(), 4),
    "parts of a gradient": lambda: optax_sam.accumulated(optax_sam.rst(0.1, 1.0), 4),
    "other examples": lambda: optax_sam.esam(),
    "chosen examples": lambda: optax_sam.ksam(),
    "single examples": lambda: optax_sam.fisher_mask_sam(refresh_steps=1, num_samples=3),
    "norms of examples": lambda: optax_sam.ausam(48, score="gradient_norm"),
    "a Hessian product": lambda: optax_sam.eigen_sam(refresh_steps=1, power_iterations=1),
    "in slices other examples": lambda: optax_sam.per_microbatch(optax_sam.esam(), 2),
}


SOME = ("slices", "chosen examples", "a Hessian product")
"""The others are slow."""


@pytest.mark.parametrize("is_jitted", [True, False], ids=["jit", "eager"])
@pytest.mark.parametrize("form", over(FORMS, SOME))
def test_what_is_assigned_between_the_two_calls_does_not_reach_the_second(form, is_jitted):
    method, params, batch = FORMS[form](), init_params(), make_batch()
    state = method.init(params)

    def step(way, after):
        set_shift(0.25)
        _, grads, oracle = method.value_and_grad(WAYS[way])(
            params, batch, state=state, indices=make_indices(), loss_scale=2.0
        )
        set_shift(after)
        return method.update(grads, state, params, oracle=oracle)

    def run(way, after):
        return (jax.jit(step, static_argnums=(0, 1)) if is_jitted else step)(way, after)

    wanted = run("global", 0.25)
    for way, after in zip(WAYS, ("no number", None, -7.0), strict=True) if is_jitted else [("global", None)]:
        assert_trees_equal(run(way, after), wanted)


def with_arguments(params, batch, shift, table):
    assert table["name"] == "kept as it is"
    return losses(params, batch | {"image": batch["image"] + shift}) * table["scale"]


ARGUMENTS = jnp.asarray(0.25), {"scale": jnp.asarray(2.0), "name": "kept as it is"}


WITHOUT_SURROGATE = [name for name in EVERY if not own_loss(CASES[name], losses)]


@pytest.mark.parametrize("name", over(WITHOUT_SURROGATE))
def test_further_arguments_reach_every_pass(name):
    """Equal to a loss that closes over them; a surrogate takes the arguments too, which is asked below."""
    case = CASES[name]
    method, params = case.make(), init_params()
    state = method.init(params)

    def closed(params, batch):
        return with_arguments(params, batch, *ARGUMENTS)

    @jax.jit
    def both(params):
        found = []
        for loss, args in ((with_arguments, ARGUMENTS), (closed, ())):
            out, grads, oracle = method.value_and_grad(loss)(
                params, make_batch(), *args, state=state, indices=make_indices()
            )
            found.append((out, grads, method.update(grads, state, params, oracle=oracle)))
        return found

    assert_trees_equal(*both(params))


def test_a_surrogate_takes_the_further_arguments_too():
    seen = []

    def surrogate(params, batch, shift, table):
        seen.append(table["name"])
        return with_arguments(params, batch, shift, table)

    for method in (optax_sam.fgsam(surrogate), optax_sam.fgsam_plus(surrogate)):
        state, params = method.init(init_params()), init_params()
        _, grads, oracle = method.value_and_grad(with_arguments)(
            params, make_batch(), *ARGUMENTS, state=state
        )
        method.update(grads, state, params, oracle=oracle)
    assert len(seen) >= 2


def test_a_key_comes_behind_the_further_arguments():
    def noisy(params, batch, scale, key):
        return losses(params, batch) * (1 + scale * jax.random.uniform(key))

    sam, params = optax_sam.sam(), init_params()
    state = sam.init(params)
    loss, grads, oracle = sam.value_and_grad(noisy)(
        params, make_batch(), 0.5, state=state, key=jax.random.key(3)
    )
    factor = 1 + 0.5 * jax.random.uniform(jax.random.key(3))
    np.testing.assert_allclose(loss, jnp.mean(losses(params, make_batch())) * factor, rtol=1e-5)
    sam.update(grads, state, params, oracle=oracle)


def shifted_on_devices(params, batch, shift):
    return losses_on_devices(params, batch | {"image": batch["image"] + shift[None]})


@product_axes
@pytest.mark.parametrize("name", over(["sam", "vsam", "momentum_sam", "esam"], ["vsam", "esam"]))
def test_further_arguments_reach_every_device(name, kind):
    inner, params, batch = CASES[name].make(), init_params(), make_batch(0, 32)
    method, sliced = optax_sam.per_device(inner), optax_sam.per_microbatch(inner, 8)

    def one(form, params, batch, shift):
        state = form.init(params)
        _, grads, oracle = form.value_and_grad(shifted_on_devices)(params, batch, shift, state=state)
        return form.update(grads, state, params, oracle=oracle)[0]

    wanted = one(sliced, params, batch, jnp.linspace(0.0, 1.0, 5))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    place = placed_on(mesh)
    with jax.set_mesh(mesh):
        whole = place((params, jnp.linspace(0.0, 1.0, 5)), PartitionSpec())
        split = place(batch, PartitionSpec("data"))
        got = jax.jit(one, static_argnums=0)(method, whole[0], split, whole[1])
    assert_trees_close(jax.device_get(got), jax.device_get(wanted), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("is_jitted", [True, False], ids=["jit", "eager"])
def test_on_explicit_axes_a_loss_that_closes_over_arrays_is_told_where_they_go(is_jitted):
    method, params = optax_sam.per_device(optax_sam.sam()), init_params()
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
    place = placed_on(mesh)

    def one(params, batch, shift):
        closed = lambda params, batch: shifted_on_devices(params, batch, shift)
        return method.value_and_grad(closed)(params, batch, state=method.init(params))[1]

    with jax.set_mesh(mesh):
        whole = place((params, jnp.ones(5)), PartitionSpec())
        split = place(make_batch(0, 32), PartitionSpec("data"))
        step = jax.jit(one) if is_jitted else one
        with pytest.raises(ValueError, match=r"closes over 1 arrays \(float32\[5\]\).*\*args, state="):
            step(whole[0], split, whole[1])


def test_the_loss_is_called_once_for_each_shape():
    calls = []

    def counted(params, batch):
        calls.append(batch["label"].shape)
        return losses(params, batch)

    sam = optax_sam.sam()
    tx = optax.chain(sam, optax.sgd(0.1))
    step, run = jax.jit(optax_sam.step(tx, counted)), (init_params(), tx.init(init_params()))
    for number in range(3):
        *run, _ = step(*run, make_batch(number))
    assert calls == [(16,)]
    esam = optax.chain(optax_sam.esam(example_fraction=0.5), optax.sgd(0.1))
    optax_sam.step(esam, counted)(init_params(), esam.init(init_params()), make_batch())
    assert sorted(set(calls[1:])) == [(8,), (16,)]


def test_weights_may_be_bools_or_integers():
    sam, params = optax_sam.sam(), init_params()
    state, mask = sam.init(params), np.arange(16) % 3 > 0
    found = [
        sam.value_and_grad(losses)(params, make_batch(), state=state, weights=jnp.asarray(mask, dtype))[:2]
        for dtype in (float, bool, jnp.int32, jnp.uint8)
    ]
    for other in found[1:]:
        assert_trees_equal(other, found[0])


PARTS = {
    "slices": lambda: optax_sam.per_microbatch(optax_sam.sam(), 4),
    "parts of a gradient": lambda: optax_sam.accumulated(optax_sam.sam(), 4),
    "halves": lambda: optax_sam.random_perturbation(),
}


@pytest.mark.parametrize("form", PARTS)
def test_a_scalar_loss_that_reads_nothing_of_its_batch_is_refused_where_parts_are_asked_for(form):
    method, params, whole = PARTS[form](), init_params(), make_batch()
    state = method.init(params)

    def closes_over_its_batch(params, batch):
        return jax.jit(lambda p, b: jnp.mean(losses(p, whole)))(params, batch)

    def looks_at_shapes(params, batch):
        return jnp.mean(jnp.ones_like(batch["image"])) * optax.tree.norm(params)

    def reads(params, batch):
        return jnp.mean(losses(params, batch))

    with pytest.raises(ValueError, match="losses reads nothing of batch"):
        method.value_and_grad(closes_over_its_batch)(params, whole, state=state)
    for loss in (looks_at_shapes, reads):
        method.value_and_grad(loss)(params, whole, state=state)
    optax_sam.sam().value_and_grad(closes_over_its_batch)(params, whole, state=optax_sam.sam().init(params))
    optax_sam.sam().value_and_grad(lambda p, b: optax.tree.norm(p))(
        params, (), state=optax_sam.sam().init(params)
    )


def test_what_an_unpaid_step_asks_is_held_too():
    scale = {"now": 1.0}

    class Looks(optax_sam.pieces.bases.Reuse):
        def recall(self, state, step):
            seen = step.oracle.losses_at(step.params).sum()
            return jax.tree.map(lambda g: g * seen, step.grads), state

    method = optax_sam.sharpness_aware(
        optax_sam.ascents.to_radius(0.1), gate=optax_sam.gates.after(9), reuse=Looks()
    )
    state, params = method.init(init_params()), init_params()

    def descent(later):
        scale["now"] = 1.0
        _, grads, oracle = method.value_and_grad(lambda p, b: scale["now"] * losses(p, b))(
            params, make_batch(), state=state
        )
        scale["now"] = later
        return method.update(grads, state, params, oracle=oracle)[0]

    assert_trees_equal(descent(100.0), descent(1.0))


class Surrogate:
    """Equal to all of its kind, and without a hash."""

    def __init__(self, factor):
        self.factor = factor

    def __eq__(self, other):
        return isinstance(other, Surrogate)

    def __call__(self, params, batch):
        return self.factor * losses(params, batch)


def test_surrogates_are_told_apart_by_identity():
    def descent(factor):
        method = optax_sam.fgsam(Surrogate(factor), mix=0.0)
        state, params = method.init(init_params()), init_params()
        _, grads, oracle = method.value_and_grad(losses)(params, make_batch(), state=state)
        return method.update(grads, state, params, oracle=oracle)[0]

    assert_trees_close(descent(3.0), jax.tree.map(lambda x: 3 * x, descent(1.0)), rtol=1e-5)


@pytest.mark.parametrize("name", over(["sam", "rst", "grst", "vsam", "looksam", "aesam"], ["sam", "rst"]))
def test_eager_steps_compile_nothing_after_the_first_and_decide_as_compiled_ones(name):
    """Where nothing is traced, gradients are run equation by equation, and the gate's decision is read."""
    method = CASES[name].make()
    tx = optax.chain(method, optax.sgd(0.1, momentum=0.9))
    step, compiled_step = optax_sam.step(tx, losses), jax.jit(optax_sam.step(tx, losses))
    eager = compiled = init_params(), tx.init(init_params()), None
    compilations, spent = [], []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: compilations.append(event) if "backend_compile" in event else None
    )
    inputs = [(make_batch(number), make_indices(number)) for number in range(12)]
    for number, (batch, indices) in enumerate(inputs):
        if number == 8:  # by now there was a step of each kind
            compilations.clear()
        eager = step(*eager[:2], batch, indices=indices)
        spent.append(float(optax_sam.info(eager[1])["gradients"]))
    assert not compilations
    assert (len(set(np.diff(spent))) > 1) == (name not in ("sam", "aesam"))
    for batch, indices in inputs:
        compiled = compiled_step(*compiled[:2], batch, indices=indices)
    assert optax_sam.info(compiled[1])["gradients"] == spent[-1]
    assert_trees_close(eager[0], compiled[0], rtol=1e-4, atol=1e-5)


def test_weights_and_indices_may_be_lists():
    oracle = optax_sam.Oracle(losses, make_batch(), weights=[1.0] * 15 + [0.0], indices=list(range(16)))
    assert oracle.weights.shape == oracle.indices.shape == (16,)


@dataclasses.dataclass(frozen=True)
class AskedTwice(optax_sam.pieces.bases.Combination):
    """The gradient of cubes, after that of squares."""

    def combine(self, step):
        for function in (jnp.square, lambda z: z**3):
            found = step.oracle.through_outputs(
                lambda w, batch: batch @ w, lambda z, _, function=function: function(z)
            ).evaluate(step.point)
        return found.grads


def test_losses_through_outputs_are_told_apart_by_their_functions():
    w, batch = jnp.array([1.0, -2.0]), jnp.array([[1.0, 3.0], [2.0, -1.0]])
    method = optax_sam.sharpness_aware(optax_sam.ascents.to_radius(0.0), combination=AskedTwice())
    oracle = optax_sam.Oracle(lambda w, batch: jnp.square(batch @ w), batch)
    descent, _ = method.update(w, method.init(w), w, oracle=oracle)
    outputs = np.asarray(batch) @ np.asarray(w)
    wanted = (3 * outputs**2) @ np.asarray(batch) / 2
    np.testing.assert_allclose(descent, wanted, rtol=1e-6)
