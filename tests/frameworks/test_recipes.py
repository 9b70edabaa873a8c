"""The recipes of docs/recipes.md and docs/recipes_models.md, as printed, against steps written by hand."""

import functools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

DOCS = Path(__file__).parents[2] / "docs"
STEPS = 5
LIBRARIES, MODELS = "recipes.md", "recipes_models.md"


@pytest.fixture(autouse=True)
def promotion_as_the_libraries_need_it():
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


def sections(page):
    """What stands above the first heading, and what stands below each."""
    above, *below = re.split(r"^## ", (DOCS / page).read_text(), flags=re.MULTILINE)
    return above, {text.split("\n")[0]: text for text in below}


def recipe(page, heading):
    """The names of a section after all but its last block, and the run of this one, which trains."""
    above, below = sections(page)
    blocks = re.findall(r"```python\n(.*?)```", above + below[heading], flags=re.DOTALL)
    names: dict = {}

    def run(block):
        exec(compile(block, f"{page}, {heading}", "exec"), names)

    for block in blocks[:-1]:
        run(block)
    return names, functools.partial(run, blocks[-1])


def trajectory(loss, params, rho, base, arguments):
    """Parameters, losses and aux of SAM in plain JAX: two gradients and the base optimizer.

    `loss(params, argument, aux)` returns a scalar and the next aux.
    """

    @jax.jit
    def step(params, state, argument, aux):
        (value, aux_after), grads = jax.value_and_grad(loss, has_aux=True)(params, argument, aux)
        norm = jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(grads)))
        moved = jax.tree.map(lambda p, g: p + rho * g / norm, params, grads)
        descent, _ = jax.grad(loss, has_aux=True)(moved, argument, aux)
        updates, state = base.update(descent, state, params)
        return optax.apply_updates(params, updates), state, aux_after, value

    (*arguments, aux), state, values = arguments, base.init(params), []
    for argument in arguments:
        params, state, aux, value = step(params, state, argument, aux)
        values.append(value)
    return params, aux, values


def assert_close(got, wanted):
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(x, y, rtol=5e-5, atol=5e-6)


def test_every_recipe_has_a_test():
    tested = set(re.findall(r"recipe\((\w+), \"(.*?)\"\)", Path(__file__).read_text()))
    pages = {"LIBRARIES": LIBRARIES, "MODELS": MODELS}
    assert {(pages[name], heading) for name, heading in tested if name in pages} == {
        (page, heading) for page in pages.values() for heading in sections(page)[1]
    }


@pytest.mark.slow
def test_numpyro():
    names, train = recipe(LIBRARIES, "NumPyro")
    train()
    svi, x, y, found = (names[name] for name in ("svi", "x", "y", "found"))
    state = svi.init(jax.random.key(2), x, y)
    keys, key = [], state.rng_key
    for _ in range(STEPS):
        key, key_of_step = jax.random.split(key)
        keys.append(key_of_step)

    def loss(params, key, _):
        return svi.loss.loss(key, svi.constrain_fn(params), svi.model, svi.guide, x, y), None

    params, _, values = trajectory(
        loss, svi.optim.get_params(state.optim_state), 0.5, optax.adam(0.05), [*keys, None]
    )
    assert_close((found.params, found.losses), (svi.constrain_fn(params), np.array(values)))
    with pytest.raises(ValueError, match="none of oracle and grad_fn is given"):
        svi.stable_update(found.state, x, y)


def test_jraph():
    """By hand without jraph and without padding: on a ring, each node hears of the one before."""
    names, train = recipe(LIBRARIES, "jraph")
    start, nodes, labels = names["params"], names["graphs"].nodes, names["labels"]

    def loss(params, _, aux):
        rings = [jnp.tanh(jnp.roll(x @ params["w"], 1, 0)) for x in jnp.split(nodes[:12], [3, 8])]
        logits = jnp.stack([ring.mean(axis=0) for ring in rings]) @ params["v"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels[:3]).mean(), aux

    train()
    params, _, values = trajectory(loss, start, 0.1, optax.sgd(0.1, 0.9), [None] * (STEPS + 1))
    assert_close((names["params"], names["loss"]), (params, values[-1]))


def test_a_gradient_function_closes_over_graphs_and_parts_of_them_are_refused():
    names, train = recipe(LIBRARIES, "jraph")
    train()
    sam, graphs, labels, params = (
        names["optax_sam"].sam(0.1),
        names["graphs"],
        names["labels"],
        names["params"],
    )
    grad_fn = lambda params: jax.grad(names["loss_fn"])(params, (), graphs, labels)
    state, tx = sam.init(params), optax.chain(names["optax_sam"].per_microbatch(sam, 2), optax.sgd(0.1))
    oracle = names["optax_sam"].Oracle(names["loss_fn"], (), args=(graphs, labels))
    descents = [
        jax.jit(lambda params, given=given: sam.update(grad_fn(params), state, params, **given)[0])(params)
        for given in ({"grad_fn": grad_fn}, {"oracle": oracle})
    ]
    assert_close(*descents)
    with pytest.raises(ValueError, match="num_microbatches=2 does not divide"):
        jax.jit(names["optax_sam"].step(tx, names["loss_fn"]))(params, tx.init(params), (), graphs, labels)


def test_haiku():
    names, train = recipe(LIBRARIES, "Haiku")
    start, state, batch, net = (names[name] for name in ("params", "state", "batch", "net"))

    def loss(params, key, state):
        logits, state = net.apply(params, state, key, batch["image"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean(), state

    train()
    keys = [jax.random.key(number) for number in range(STEPS)]
    params, state, values = trajectory(loss, start, 0.05, optax.sgd(0.1, 0.9), [*keys, state])
    assert_close((names["params"], names["state"], names["loss"]), (params, state, values[-1]))


@pytest.mark.slow
def test_diffrax():
    names, train = recipe(LIBRARIES, "Diffrax")
    start, paths = names["params"], names["paths"]
    train()
    loss = lambda params, _, aux: (names["losses"](params, paths).mean(), aux)
    params, _, values = trajectory(loss, start, 0.05, optax.adam(0.01), [None] * (STEPS + 1))
    assert_close((names["params"], names["loss"]), (params, values[-1]))


def test_lora():
    """By hand without Flax. The base weights are those of the start, bit for bit."""
    names, train = recipe(MODELS, "Flax NNX: LoRA")
    batch, model = names["batch"], names["model"]
    before = nnx.as_pure(nnx.state(model, nnx.Not(nnx.LoRAParam)))
    base, last = before["first"]["base_module"], before["last"]
    start = nnx.as_pure(nnx.state(model, nnx.LoRAParam))["first"]

    def loss(params, _, aux):
        x = batch["image"]
        hidden = jax.nn.relu(x @ base["kernel"] + base["bias"] + x @ params["lora_a"] @ params["lora_b"])
        logits = hidden @ last["kernel"] + last["bias"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean(), aux

    start = {name: start[name] for name in ("lora_a", "lora_b")}
    train()
    params, _, values = trajectory(loss, start, 0.05, optax.adam(0.01), [None] * (STEPS + 1))
    got = nnx.as_pure(nnx.state(model, nnx.LoRAParam))["first"]
    assert_close(({name: got[name] for name in start}, names["loss"]), (params, values[-1]))
    assert not np.array_equal(got["lora_a"], start["lora_a"])
    after = nnx.as_pure(nnx.state(model, nnx.Not(nnx.LoRAParam)))
    jax.tree.map(np.testing.assert_array_equal, after, before)


def test_random_streams_of_nnx():
    """By hand without Flax: the key of a step is that of the streams with the number of the step."""
    names, train = recipe(MODELS, "Flax NNX: random streams as an argument")
    batch, model = names["batch"], names["model"]
    start = dict(nnx.as_pure(nnx.state(model)))

    def loss(params, key, aux):
        first, last = params["first"], params["last"]
        hidden = jax.nn.relu(batch["image"] @ first["kernel"] + first["bias"])
        hidden = jnp.where(jax.random.bernoulli(key, 0.8, hidden.shape), hidden / 0.8, 0.0)
        logits = hidden @ last["kernel"] + last["bias"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean(), aux

    train()
    keys = [jax.random.fold_in(jax.random.key(1), number) for number in range(STEPS)]
    params, _, values = trajectory(loss, start, 0.05, optax.adam(0.01), [*keys, None])
    assert_close((dict(nnx.as_pure(nnx.state(model))), names["loss"]), (params, values[-1]))
    assert names["rngs"].dropout.count[...] == STEPS


def test_a_loss_that_closes_over_random_streams_is_an_error_of_flax():
    names, train = recipe(MODELS, "Flax NNX: random streams as an argument")
    train()
    closed = lambda model, batch: names["losses"](model, batch, names["rngs"])
    value_and_grad = names["optax_sam"].flax.nnx_value_and_grad(names["sam"], closed)
    with pytest.raises(Exception, match="trace level"):
        value_and_grad(names["model"], names["batch"], optimizer=names["optimizer"])


def test_equinox():
    """By hand without Equinox."""
    names, train = recipe(MODELS, "An Equinox model, passed whole")
    weights = lambda model: [(layer.weight, layer.bias) for layer in model.layers]
    start, batch = weights(names["model"]), names["batch"]

    def loss(params, _, aux):
        (w, b), (v, c) = params
        logits = jax.nn.relu(batch["image"] @ w.T + b) @ v.T + c
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean(), aux

    train()
    params, _, values = trajectory(loss, start, 0.05, optax.adamw(0.01), [None] * (STEPS + 1))
    assert_close((weights(names["model"]), names["loss"]), (params, values[-1]))
