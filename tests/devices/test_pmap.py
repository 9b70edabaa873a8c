"""Training under `jax.pmap`: replicas of one model stay alike, or the step is refused."""

import functools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

import optax_sam
from tests.problem import assert_trees_close, assert_trees_equal, init_params, losses, make_batch
from tests.registry import METHODS, over

NUM_DEVICES = 4
DEVICES = jax.devices()[:NUM_DEVICES]
MADE = {
    "sam": lambda: optax_sam.sam(0.1),
    "vsam": lambda: optax_sam.vsam(0.1, window=4, slices=2, tail=2, warmup_steps=1),
    "looksam": lambda: optax_sam.looksam(0.1, every_k=2),
    "asam": lambda: optax_sam.asam(0.1),
    "rst": lambda: optax_sam.rst(0.1),
    "pugd": lambda: optax_sam.pugd(0.1),
    "gsam": lambda: optax_sam.gsam(0.1),
    "friendly_sam": lambda: optax_sam.friendly_sam(0.1),
}


def mean_loss(params, batch):
    return jnp.mean(losses(params, batch))


def split(batch):
    return jax.tree.map(lambda x: x.reshape(NUM_DEVICES, -1, *x.shape[1:]), batch)


def replicated(tree):
    return jax.tree.map(lambda x: jnp.stack([x] * NUM_DEVICES), tree)


@pytest.mark.parametrize("name", over(MADE, ["sam", "vsam", "looksam"]))
def test_with_the_mean_in_its_gradient_function_it_is_the_step_of_the_whole_batch(name):
    """The recipe of the guide: one function for both gradients."""
    tx = optax.chain(MADE[name](), optax.sgd(0.1, momentum=0.9))

    @functools.partial(jax.pmap, axis_name="batch", devices=DEVICES)
    def train_step(params, opt_state, batch):
        grads_of = lambda params: lax.pmean(jax.grad(mean_loss)(params, batch), "batch")
        updates, opt_state = tx.update(grads_of(params), opt_state, params, grad_fn=grads_of)
        return optax.apply_updates(params, updates), opt_state

    @jax.jit
    def on_one_device(params, opt_state, batch):
        grads_of = lambda params: jax.grad(mean_loss)(params, batch)
        updates, opt_state = tx.update(grads_of(params), opt_state, params, grad_fn=grads_of)
        return optax.apply_updates(params, updates), opt_state

    params = init_params()
    one = params, tx.init(params)
    all_devices = replicated(one)
    for number in range(6):
        batch = make_batch(number)
        one = on_one_device(*one, batch)
        all_devices = train_step(*all_devices, split(batch))
    found, *others = (
        jax.tree.map(lambda x, n=n: x[n], jax.device_get(all_devices)) for n in range(NUM_DEVICES)
    )
    for other in others:
        assert_trees_equal(found, other)
    assert_trees_close(found[0], one[0], rtol=1e-4, atol=1e-6)


def two_calls(method):
    def step(params, opt_state, batch):
        _, grads, oracle = method.value_and_grad(losses)(params, batch, state=opt_state)
        return method.update(lax.pmean(grads, "batch"), opt_state, params, oracle=oracle)

    return step


def by_hand(method):
    def step(params, opt_state, batch):
        return method.update(params, opt_state, params, oracle=optax_sam.Oracle(losses, batch))

    return step


def short(method):
    return optax_sam.step(optax.chain(method, optax.sgd(0.1)), losses)


def without_a_mean(method):
    def step(params, opt_state, batch):
        grads_of = lambda params: jax.grad(mean_loss)(params, batch)
        grads = lax.pmean(grads_of(params), "batch")
        return method.update(grads, opt_state, params, grad_fn=grads_of)

    return step


def mean_of_the_loss_alone(method):
    """Under `pmap` the gradient of a mean over devices is that of one device."""

    def step(params, opt_state, batch):
        grads_of = jax.grad(lambda params: lax.pmean(mean_loss(params, batch), "batch"))
        return method.update(lax.pmean(grads_of(params), "batch"), opt_state, params, grad_fn=grads_of)

    return step


def statistics_alone(method):
    """Means over devices inside the loss, as batch norm takes them, and none of the gradient."""

    def loss(params, batch):
        return mean_loss(
            params, {**batch, "image": batch["image"] - lax.pmean(batch["image"].mean(), "batch")}
        )

    def step(params, opt_state, batch):
        grads_of = lambda params: jax.grad(loss)(params, batch)
        return method.update(lax.pmean(grads_of(params), "batch"), opt_state, params, grad_fn=grads_of)

    return step


DRIFTING = {
    "mean of the loss": mean_of_the_loss_alone,
    "statistics": statistics_alone,
    "two calls": two_calls,
    "by hand": by_hand,
    "step": short,
    "no mean": without_a_mean,
}


def under_pmap(step, mesh):
    del mesh
    return jax.pmap(step, axis_name="batch", in_axes=(None, None, 0), devices=DEVICES)


def unchecked(step, mesh):
    def on_device(params, opt_state, batch):
        return step(params, opt_state, jax.tree.map(lambda x: x[0], batch))

    return jax.jit(
        jax.shard_map(on_device, mesh=mesh, in_specs=(P(), P(), P("batch")), out_specs=P(), check_vma=False)
    )


@pytest.mark.parametrize("mapped", [under_pmap, unchecked])
@pytest.mark.parametrize("door", DRIFTING)
def test_replicas_that_would_drift_apart_are_refused(door, mapped):
    """The mean of the first gradient, taken in the user's step, does not reach the second."""
    mesh = Mesh(np.array(DEVICES), ("batch",))
    method, params = optax_sam.sam(0.1), init_params()
    step = mapped(DRIFTING[door](method), mesh)
    with pytest.raises(ValueError, match=r"drift apart.*lax\.pmean\(grads_of\(params\), 'batch'\)"):
        state = method.init(params)
        state = (state, optax.sgd(0.1).init(params)) if door == "step" else state
        step(params, state, split(make_batch()))


@pytest.mark.parametrize("axis", ["my-batch", "data/1", "_batch"])
def test_axes_of_any_name_are_seen(axis):
    method, params = optax_sam.sam(0.1), init_params()

    def step(params, state, batch):
        _, grads, oracle = method.value_and_grad(losses)(params, batch, state=state)
        return method.update(lax.pmean(grads, axis), state, params, oracle=oracle)

    with pytest.raises(ValueError, match="drift apart"):
        jax.pmap(step, axis_name=axis, in_axes=(None, None, 0), devices=DEVICES)(
            params, method.init(params), split(make_batch())
        )


@pytest.mark.parametrize("over_both", [True, False])
def test_the_mean_is_asked_over_every_axis(over_both):
    """A mesh of two axes, the batch split over both."""
    mesh = Mesh(np.array(DEVICES).reshape(2, 2), ("data", "model"))
    method, params = optax_sam.sam(0.1), init_params()
    axes = ("data", "model") if over_both else ("data",)

    def step(params, state, batch):
        rows = jax.tree.map(lambda x: x[0], batch)
        grads_of = lambda params: lax.pmean(jax.grad(mean_loss)(params, rows), axes)
        return method.update(grads_of(params), state, params, grad_fn=grads_of)[0]

    specs = {"in_specs": (P(), P(), P(("data", "model"))), "out_specs": P()}
    mapped = jax.jit(jax.shard_map(step, mesh=mesh, check_vma=False, **specs))
    given = params, method.init(params), split(make_batch())
    if not over_both:
        with pytest.raises(ValueError, match="over 'model'"):
            mapped(*given)
        return
    whole = lambda params: jax.grad(mean_loss)(params, make_batch())
    wanted, _ = method.update(whole(params), given[1], params, grad_fn=whole)
    assert_trees_close(jax.device_get(mapped(*given)), jax.device_get(wanted), rtol=1e-4, atol=1e-6)


def test_parts_of_one_model_inside_a_shard_map_are_refused():
    """Norms would be those of a part; under plain `jit` they are the model's."""
    mesh = Mesh(np.array(DEVICES), ("model",))
    params = {"first": jnp.ones([5, 8]) / 5, "second": jnp.ones([8, 3]) / 8}
    method = optax_sam.sam(0.1)

    def loss(params, batch):
        hidden = jnp.tanh(batch["image"] @ params["first"]) @ params["second"]
        logits = lax.psum(hidden, "model")
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])

    def by_oracle(params, batch):
        return method.update(params, method.init(params), params, oracle=optax_sam.Oracle(loss, batch))[0]

    def by_gradient(params, batch):
        grads_of = jax.grad(lambda params: loss(params, batch).mean())
        return method.update(grads_of(params), method.init(params), params, grad_fn=grads_of)[0]

    split_params = {"first": P(None, "model"), "second": P("model")}
    for step in (by_oracle, by_gradient):
        mapped = jax.shard_map(step, mesh=mesh, in_specs=(split_params, P()), out_specs=split_params)
        with pytest.raises(ValueError, match="parts of one model.*under plain jax.jit"):
            jax.jit(mapped)(params, make_batch())


MASK = np.array([1.0, 0.0, 1.0], np.float32)


def scaled(grads):
    return jax.tree.map(lambda g: g * MASK if g.shape[-1:] == (3,) else 2 * g, grads)


def in_a_while(grads_of, params):
    def body(carry):
        number, total = carry
        mean = lax.pmean(grads_of(params), "batch")
        return number + 1, jax.tree.map(jnp.add, total, mean)

    zeros = jax.tree.map(jnp.zeros_like, params)
    return lax.while_loop(lambda carry: carry[0] < 2, body, (0, zeros))[1]


def drifting_in_a_while(grads_of, params):
    def body(carry):
        return carry[0] + 1, jax.tree.map(lambda g: g * (1.0 + lax.axis_index("batch")), carry[1])

    return lax.while_loop(lambda carry: carry[0] < 1, body, (0, lax.pmean(grads_of(params), "batch")))[1]


ALIKE = {
    "scaled by constants": lambda grads_of, params: scaled(lax.pmean(grads_of(params), "batch")),
    "in a jit": lambda grads_of, params: jax.jit(scaled)(lax.pmean(grads_of(params), "batch")),
    "with a decay": lambda grads_of, params: jax.tree.map(
        lambda g, p: g + 0.1 * p, lax.pmean(grads_of(params), "batch"), params
    ),
    "in a while": in_a_while,
    "in a scan": lambda grads_of, params: lax.scan(
        lambda total, _: (jax.tree.map(jnp.add, total, lax.pmean(grads_of(params), "batch")), None),
        jax.tree.map(jnp.zeros_like, params),
        length=2,
    )[0],
    "sum by number": lambda grads_of, params: jax.tree.map(
        lambda g: g / NUM_DEVICES, lax.psum(grads_of(params), "batch")
    ),
    "gathered": lambda grads_of, params: jax.tree.map(
        lambda g: lax.all_gather(g, "batch").mean(axis=0), grads_of(params)
    ),
}


@pytest.mark.parametrize(
    "name", over([*ALIKE, "drifting"], ["scaled by constants", "in a while", "drifting"])
)
def test_whatever_keeps_the_replicas_alike_is_accepted(name, as_optax_promotes):
    method, params = optax_sam.sam(0.1), init_params()
    make = drifting_in_a_while if name == "drifting" else ALIKE[name]

    @functools.partial(jax.pmap, axis_name="batch", in_axes=(None, None, 0), devices=DEVICES)
    def step(params, state, batch):
        grad_fn = lambda params: make(lambda params: jax.grad(mean_loss)(params, batch), params)
        return method.update(grad_fn(params), state, params, grad_fn=grad_fn)[0]

    given = params, method.init(params), split(make_batch())
    if name == "drifting":
        with pytest.raises(ValueError, match="drift apart"):
            step(*given)
        return
    found = jax.device_get(step(*given))
    for leaf in jax.tree.leaves(found):
        np.testing.assert_array_equal(leaf, np.broadcast_to(leaf[:1], leaf.shape))


def test_what_models_of_their_own_log_together_is_no_part_of_their_loss():
    mesh = Mesh(np.array(DEVICES), ("model",))
    several = replicated(init_params())
    method = optax_sam.sam(0.1)

    def logged(params, batch):
        found = losses(params, batch)
        return found, lax.pmean(found.mean(), "model")

    def on_device(params, batch):
        own = jax.tree.map(lambda x: x[0], params)
        (loss, common), grads, oracle = method.value_and_grad(logged, has_aux=True)(
            own, batch, state=method.init(own)
        )
        return jax.tree.map(lambda x: x[None], method.update(grads, method.init(own), own, oracle=oracle)[0])

    found = jax.jit(jax.shard_map(on_device, mesh=mesh, in_specs=(P("model"), P()), out_specs=P("model")))(
        several, make_batch()
    )
    assert_trees_close(jax.tree.map(lambda x: x[0], found), jax.tree.map(lambda x: x[1], found), rtol=1e-6)


def test_every_method_is_refused_alike():
    """By one sentence, at trace time."""
    for name in METHODS:
        method, params = METHODS[name].make(), init_params()
        state, batch = method.init(params), split(make_batch())
        with pytest.raises(ValueError, match="drift apart"):
            under_pmap(two_calls(method), None)(params, state, batch)


def test_the_page_on_linen_is_refused_under_pmap(as_optax_promotes):
    """Its step as printed, with the mean of the loss added as Flax's examples have it."""
    page = (Path(__file__).parents[2] / "docs" / "linen.md").read_text()
    names = {}
    for block in re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL):
        exec(compile(block, "linen.md", "exec"), names)
    step = jax.pmap(names["train_step"], axis_name="batch", in_axes=(None, 0, None), devices=DEVICES)
    with pytest.raises(ValueError, match="drift apart"):
        step(names["state"], split(names["batch"]), jax.random.key(0))


def test_without_a_name_every_device_trains_a_model_of_its_own():
    """Nothing can be summed over such an axis: seeds side by side."""
    tx = optax.chain(optax_sam.sam(0.1), optax.sgd(0.1))
    step = optax_sam.step(tx, losses)
    parts, params = split(make_batch()), init_params()
    several = jax.tree.map(
        lambda *xs: jnp.stack(xs),
        *({**params, "layer_1": jax.tree.map(lambda x, n=n: x * n, params["layer_1"])} for n in range(1, 5)),
    )
    states = jax.vmap(tx.init)(several)
    found = jax.device_get(jax.pmap(step, devices=DEVICES)(several, states, parts)[0])
    for number in range(NUM_DEVICES):
        own = jax.device_get(jax.tree.map(lambda x, n=number: x[n], (several, states, parts)))
        wanted = jax.jit(step)(*own)[0]
        assert_trees_close(jax.tree.map(lambda x, n=number: x[n], found), wanted, rtol=1e-5)


@pytest.mark.slow
def test_a_named_axis_of_vmap_is_no_axis_of_devices():
    tx = optax.chain(optax_sam.sam(0.1), optax.sgd(0.1))
    step = optax_sam.step(tx, losses)
    parts, params = split(make_batch()), init_params()
    found = jax.vmap(step, axis_name="batch", in_axes=(None, None, 0))(params, tx.init(params), parts)[0]
    first = jax.tree.map(lambda x: x[0], (found, parts))
    assert_trees_close(first[0], step(params, tx.init(params), first[1])[0], rtol=1e-5)
