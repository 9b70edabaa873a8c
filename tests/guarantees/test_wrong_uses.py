"""Uses that go wrong in silence elsewhere: each is an error that names the repair."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental import sparse

import optax_sam
from tests.problem import assert_trees_close, init_params, losses, make_batch
from tests.registry import METHODS, over

PARAMS = {"w": jnp.ones(3)}
ROWS = jnp.eye(3)


def begin(method, loss, *args):
    return method.value_and_grad(loss)(PARAMS, *args, state=method.init(PARAMS))


def of_two_arrays(params, x, y):
    return jnp.square(x @ params["w"] - y)


@pytest.mark.parametrize(
    "loss", [of_two_arrays, lambda params: params["w"].sum(), lambda params, batch, key: batch @ params["w"]]
)
def test_a_loss_of_another_number_of_arguments_is_told_how_it_is_called(loss):
    with pytest.raises(
        TypeError, match=r"losses\(params, batch\).*losses\(params, \*batch\).*the batch \(\)"
    ):
        begin(optax_sam.sam(), loss, ROWS)


def test_what_stands_behind_the_batch_is_an_argument_of_the_loss():
    loss, *_ = begin(optax_sam.sam(), of_two_arrays, ROWS, jnp.zeros(3))
    assert loss == 1.0


def test_aux_of_something_else_than_arrays_is_refused_by_its_place():
    def loss(params, batch):
        return batch @ params["w"], {"name": "a", "count": 3}

    method = optax_sam.sam()
    with pytest.raises(TypeError, match=r"aux\['name'\] is no array of numbers \(str\)"):
        method.value_and_grad(loss, has_aux=True)(PARAMS, ROWS, state=method.init(PARAMS))


def test_an_error_inside_a_loss_of_parts_says_that_they_are_parts():
    """What comes whole does not fit them."""
    method = optax_sam.per_microbatch(optax_sam.sam(), 3)
    with pytest.raises(TypeError) as raised:
        begin(method, lambda params, x, y: jnp.dot(x.T @ params["w"][:1], y[:2]), ROWS, ROWS)
    assert any("parts of the batch, here 1 examples" in note for note in raised.value.__notes__)
    with pytest.raises(ZeroDivisionError) as raised:
        begin(optax_sam.sam(), lambda params, x: 1 / 0, ROWS)
    assert not any("parts of the batch" in note for note in getattr(raised.value, "__notes__", []))


@pytest.mark.parametrize("batch", [(), None], ids=["tuple", "none"])
@pytest.mark.parametrize("name", over([n for n in METHODS if n != "ausam"], ["sam"]))
def test_a_batch_without_arrays_is_a_batch(name, batch):
    """For losses that take no examples: variational inference, a graph that they close over."""
    tx = optax.chain(METHODS[name].make(), optax.sgd(0.1))

    def scalar(params, batch):
        del batch
        return jnp.mean(losses(params, make_batch()))

    found = optax_sam.step(tx, scalar)(init_params(), tx.init(init_params()), batch)
    wanted = optax_sam.step(tx, lambda p, b: jnp.mean(losses(p, b)))(
        init_params(), tx.init(init_params()), make_batch()
    )
    assert_trees_close(found[0], wanted[0], rtol=1e-5)


@pytest.mark.parametrize(
    "method",
    [
        optax_sam.per_microbatch(optax_sam.sam(), 2),
        optax_sam.accumulated(optax_sam.sam(), 2),
        optax_sam.random_perturbation(),
    ],
)
def test_what_takes_parts_says_that_a_batch_without_arrays_has_none(method):
    with pytest.raises(ValueError, match=r"batch without arrays, such as batch=\(\): pass the examples"):
        begin(method, lambda params, batch: params["w"].sum(), ())


def test_a_number_of_slices_is_told_of_which_examples_it_is_no_divisor():
    """Those that are drawn: the user has passed 24."""
    method, batch = optax_sam.accumulated(optax_sam.ausam(48, fraction=0.25), 4), make_batch(size=24)
    state, params = method.init(init_params()), init_params()
    with pytest.raises(ValueError, match="divide the 6 examples that the step draws of 24"):
        method.value_and_grad(losses)(params, batch, state=state, indices=jnp.arange(24))


BEHIND = {
    "sgd": lambda sam: optax.chain(optax.sgd(0.1), sam),
    "momentum": lambda sam: optax.chain(optax.sgd(0.1, momentum=0.9), sam),
    "adam": lambda sam: optax.chain(optax.adam(0.1), sam),
    "parts of adam": lambda sam: optax.chain(optax.scale_by_adam(), optax.scale(-0.1), sam),
    "schedule": lambda sam: optax.chain(optax.scale_by_learning_rate(optax.constant_schedule(0.1)), sam),
    "named": lambda sam: optax.named_chain(("z", optax.adam(0.1)), ("a", sam)),
    "injected": lambda sam: optax.chain(optax.inject_hyperparams(optax.sgd)(learning_rate=0.1), sam),
    "wrapped": lambda sam: optax.apply_if_finite(optax.chain(optax.adam(0.1), sam), 3),
    "partition": lambda sam: optax.partition({"a": optax.chain(optax.adam(0.1), sam)}, {"w": "a"}),
    "lion": lambda sam: optax.chain(optax.lion(0.1), sam),
}
FIRST = {
    "chain": lambda sam: optax.chain(sam, optax.adam(0.1)),
    "alone": lambda sam: sam,
    "clipped before": lambda sam: optax.chain(optax.clip(1.0), sam, optax.sgd(0.1)),
    "clipped and alone": lambda sam: optax.chain(optax.clip(1.0), sam),
    "a chain before": lambda sam: optax.chain(optax.chain(optax.clip(1.0)), sam, optax.sgd(0.1)),
    "a mean before": lambda sam: optax.chain(optax.trace(0.9), sam, optax.sgd(0.1)),
    "named": lambda sam: optax.named_chain(("z", sam), ("a", optax.adam(0.1))),
    "partition": lambda sam: optax.partition(
        {"a": optax.sgd(0.1), "b": optax.chain(sam, optax.adam(0.1))}, {"w": "b"}
    ),
    "free of schedules": lambda sam: optax.contrib.schedule_free(optax.chain(sam, optax.sgd(0.1)), 0.1),
    "two": lambda sam: optax_sam.followed_by(sam, optax.adam(0.1)),
}


@pytest.mark.parametrize("name", BEHIND)
def test_a_method_behind_the_base_optimizer_is_refused(name):
    method = optax_sam.sam()
    tx = BEHIND[name](method)
    state = tx.init(PARAMS)
    if type(state) is dict:
        pytest.skip("In an older Optax the state of a named chain looks like that of things side by side.")
    with pytest.raises(ValueError, match="stands last in its chain, .* put the method first"):
        method.value_and_grad(lambda p, b: b @ p["w"])(PARAMS, ROWS, state=state)
    with pytest.raises(ValueError, match="put the method first"):
        optax_sam.step(tx, lambda p, b: b @ p["w"])(PARAMS, state, ROWS)


NOTHING_BEHIND = {
    "alone": lambda method: method,
    "in a chain": optax.chain,
    "behind a clip": lambda method: optax.chain(optax.clip(1.0), method),
    "injected": lambda method: optax.inject_hyperparams(lambda rho: optax_sam.sam(rho))(rho=0.1),
    "in slices": lambda method: optax_sam.per_microbatch(method, 2),
}


@pytest.mark.parametrize("name", NOTHING_BEHIND)
def test_a_step_without_a_base_optimizer_is_refused(name):
    tx = NOTHING_BEHIND[name](optax_sam.sam())
    with pytest.raises(ValueError, match="no base optimizer behind the method, .* put one there"):
        optax_sam.step(tx, lambda p, b: b @ p["w"])(PARAMS, tx.init(PARAMS), ROWS)


@pytest.mark.parametrize("tx", [optax_sam.bsam(8, num_microbatches=3), optax_sam.adasam(0.1)])
def test_whole_optimizers_need_nothing_behind_them(tx):
    optax_sam.step(tx, lambda p, b: b @ p["w"])(PARAMS, tx.init(PARAMS), ROWS)


@pytest.mark.parametrize("name", FIRST)
def test_what_stands_in_front_of_it_for_another_reason_is_accepted(name):
    method = optax_sam.sam()
    loss, *_ = method.value_and_grad(lambda p, b: b @ p["w"])(
        PARAMS, ROWS, state=FIRST[name](method).init(PARAMS)
    )
    assert loss == 1.0


def leaves_a_jit(params, oracle):
    def step(params):
        return begin(optax_sam.sam(), lambda p, b: b @ p["w"], ROWS)[2]

    return jax.jit(step)(params)


def enters_a_jit(params, oracle):
    return jax.jit(lambda oracle: oracle.value_and_grad(params))(oracle)


def leaves_a_conditional(params, oracle):
    return jax.lax.cond(params["w"][0] > 0, lambda: oracle, lambda: oracle)


@pytest.mark.parametrize("cross", [leaves_a_jit, enters_a_jit, leaves_a_conditional])
def test_an_oracle_that_crosses_a_jit_says_where_it_lives(cross):
    """JAX prints the class of what it refuses; the class says the repair."""
    oracle = optax_sam.Oracle(lambda p, b: b @ p["w"], ROWS)
    with pytest.raises(TypeError, match="lives within one trace.*in the same function and jit that"):
        cross(PARAMS, oracle)


@pytest.mark.parametrize("door", ["step", "by hand", "whole"])
def test_the_state_of_another_method_is_refused_by_the_part_that_differs(door):
    """Or of other arguments; where the parts are alike nothing tells, and `due` is the old method's."""
    params, rows = jnp.ones(3), jnp.linspace(-1.0, 2.0, 24).reshape(8, 3)
    of_rows, indices, base = lambda w, rows: jnp.square(rows @ w), jnp.arange(8), optax.sgd(0.1)

    def stepped(method, state):
        if door == "step":
            return optax_sam.step(optax.chain(method, base), of_rows)(params, state, rows, indices=indices)[1]
        whole = optax_sam.followed_by(method, base) if door == "whole" else optax.chain(method, base)
        return whole.update(
            params, state, params, oracle=optax_sam.Oracle(of_rows, rows, indices=indices, params=params)
        )[1]

    def state_of(method):
        return optax.chain(method, base).init(params)

    sam = optax_sam.sam(0.1)
    for method, old, part in (
        (optax_sam.vsam(0.1), sam, "gate"),
        (optax_sam.looksam(0.1), sam, "reuse"),
        (optax_sam.single_step_sam(0.1), sam, "direction"),
        (optax_sam.vasso(0.1), optax_sam.single_step_sam(0.1), "direction"),
        (optax_sam.sparse_sam(0.1), sam, "ascent"),
        (optax_sam.ausam(8, 0.1), sam, "start"),
        (optax_sam.ausam(16, 0.1), optax_sam.ausam(8, 0.1), "start"),
        (sam, optax_sam.vsam(0.1), "gate"),
    ):
        with pytest.raises(ValueError, match=rf"^state.{part} holds .* another method.* tx.init\(params\)"):
            stepped(method, state_of(old))
    after = stepped(optax_sam.late_sam(1000, 0.1), stepped(sam, state_of(sam)))
    assert optax_sam.info(after)["perturbed"] == 1 and not optax_sam.due(after)
    loaded = jax.tree.map(np.asarray, stepped(optax_sam.vasso(0.1), state_of(optax_sam.vasso(0.1))))
    stepped(optax_sam.vasso(0.1), loaded)


class Labelled:
    """A node with a list beside its array, whose structure has no hash."""

    def __init__(self, array, labels):
        self.array, self.labels = array, labels


jax.tree_util.register_pytree_node(Labelled, lambda x: ((x.array,), x.labels), lambda y, x: Labelled(*x, y))


def test_parameters_whose_structure_has_no_hash_are_stepped_on():
    params, rows, tx = jnp.ones(2), jnp.eye(2), optax.chain(optax_sam.sam(0.1), optax.sgd(0.1))
    of_rows = lambda w, rows: jnp.square(rows @ w)
    node = Labelled(params, ["a", "b"])
    got = optax_sam.step(tx, lambda node, rows: of_rows(node.array, rows))(node, tx.init(node), rows)
    wanted = optax_sam.step(tx, of_rows)(params, tx.init(params), rows)
    np.testing.assert_allclose(got[0].array, wanted[0], rtol=1e-6)


@pytest.mark.parametrize("ask", ["step", "oracle", "measure"])
def test_a_sparse_batch_is_refused_and_may_stand_behind_the_batch(ask):
    """Slices would be of its entries."""
    dense = jnp.asarray([[1.0, 0.0], [0.0, 2.0]])
    matrix, w = sparse.BCOO.fromdense(dense), jnp.ones(2)
    losses = lambda w, x: jnp.mean((x @ w - 1) ** 2)
    sam = optax_sam.accumulated(optax_sam.sam(), 2)
    tx = optax.chain(sam, optax.sgd(0.1))
    calls = {
        "step": lambda: optax_sam.step(tx, losses)(w, tx.init(w), matrix),
        "oracle": lambda: optax_sam.Oracle(losses, {"x": matrix}),
        "measure": lambda: optax_sam.sharpness.trace(losses, w, matrix),
    }
    with pytest.raises(TypeError, match="is a sparse array, a BCOO.*todense.*behind the batch"):
        calls[ask]()
    found, _, _ = optax_sam.step(tx, lambda w, b, x: losses(w, x + 0 * b.sum()))(
        w, tx.init(w), jnp.zeros(2), dense
    )
    wanted, _, _ = optax_sam.step(tx, lambda w, b, x: losses(w, x.todense() + 0 * b.sum()))(
        w, tx.init(w), jnp.zeros(2), matrix
    )
    np.testing.assert_allclose(found, wanted)


def test_sparse_parameters_are_trained():
    """Their entries are leaves like others; no rows of theirs are cut."""
    dense = jnp.asarray([[1.0, 0.0], [0.0, 2.0]])
    losses = lambda p, x: jnp.square(x @ p.todense()).sum(1)
    params = sparse.BCOO.fromdense(dense)
    sam = optax_sam.sam(0.1)
    _, grads, oracle = sam.value_and_grad(losses)(params, jnp.eye(2), state=sam.init(params))
    np.testing.assert_allclose(grads.data, params.data)
    descent, _ = sam.update(grads, sam.init(params), params, oracle=oracle)
    np.testing.assert_allclose(descent.data, params.data * (1 + 0.1 / 5**0.5), rtol=1e-5)


def test_a_key_that_lands_in_another_argument_is_refused():
    def losses(params, batch, class_weights=None, key=None):
        weights = jnp.ones(2) if class_weights is None else class_weights
        return jnp.sum(weights * params) * batch

    tx, w = optax.chain(optax_sam.sam(), optax.sgd(0.1)), jnp.ones(2)
    step = optax_sam.step(tx, losses)
    key = jax.random.PRNGKey(1234)
    with pytest.raises(
        ValueError, match="key= comes behind.*would be class_weights.*class_weights, ..., key"
    ):
        step(w, tx.init(w), jnp.ones(3), key=key)
    step(w, tx.init(w), jnp.ones(3), jnp.ones(2), key=key)


def test_a_key_in_the_place_of_a_number_is_refused():
    def losses(params, batch, temperature=np.ones(2), dropout=None):  # noqa: B008
        return jnp.sum(params / temperature) * batch

    tx, w = optax.chain(optax_sam.sam(), optax.sgd(0.1)), jnp.ones(2)
    step, key = optax_sam.step(tx, losses), jax.random.PRNGKey(7)
    with pytest.raises(ValueError, match=r"would be temperature.*before the key too.*temperature, ..., key"):
        step(w, tx.init(w), jnp.ones(3), key=key)
    step(w, tx.init(w), jnp.ones(3), 1.0, key=key)
