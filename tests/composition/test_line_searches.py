"""Searches along a line behind a method, which hand every keyword to the function; and lookahead, none."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_sam
from tests.composition.chains import remember
from tests.problem import assert_trees_close, init_params, losses, make_batch, make_indices
from tests.registry import METHODS, over

pytestmark = pytest.mark.usefixtures("as_optax_promotes")
two_kinds = pytest.mark.parametrize("name", ["sam", "vsam"])  # always perturbed; gated, with memory


def steep(params, batch):
    """Losses on which a step of length one is too long."""
    return 30 * losses(params, batch)


def loss_of_oracle(params, *, oracle=None):
    """A function to search along: the loss on the examples of the step."""
    return oracle.value_and_grad(params)[0]


def vector(tree):
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)]).astype(np.float64)


def searching(method, search, lengths=()):
    """A jitted step of `chain(method, remember(), search)`, and its first state.

    `value` and `grad` are those of the function at the parameters, for they say what a step is compared
    with: not the sharpness-aware gradient, and not what `value_and_grad` returned where the method
    begins elsewhere. Where it begins at the parameters they are the same, and no further gradient.
    """
    tx = optax.chain(method, remember(), search)

    @jax.jit
    def step(params, state, batch, indices):
        _, grads, oracle = method.value_and_grad(steep)(params, batch, state=state, indices=indices)
        value, grad = oracle.value_and_grad(params)
        updates, state = tx.update(
            grads, state, params, oracle=oracle, value=value, grad=grad, value_fn=loss_of_oracle
        )
        loss_at = lambda t: oracle.value_and_grad(optax.tree.add_scale(params, -t, state[1]))[0]
        tried = jax.lax.map(loss_at, lengths) if len(lengths) else ()
        there = oracle.value_and_grad(optax.apply_updates(params, updates))
        return updates, state, (value, grad), there, tried

    return step, tx.init(init_params())


@pytest.mark.parametrize("name", over(METHODS))
def test_backtracking_behind_it_goes_down_on_the_clean_loss(name):
    """Along the descent `S`, the first of the lengths `t` with `f(w - t S) <= f(w) - 1e-4 t <S, g>`."""
    rate = 20.0 if name == "pugd" else 1.0  # its descent has norm one
    lengths = rate * 0.8 ** np.arange(21, dtype=np.float32)
    search = optax.chain(optax.sgd(rate), optax.scale_by_backtracking_linesearch(20))
    step, state = searching(METHODS[name].make(), search, lengths)
    found = step(init_params(), state, make_batch(), make_indices())
    updates, state, (value, grad), (loss, _), tried = found
    descent = vector(state[1])
    slope = descent @ vector(grad)
    number = int(np.argmax(tried <= value - 1e-4 * lengths * slope))
    assert slope > 0 and number > 0
    np.testing.assert_allclose(vector(updates), -lengths[number] * descent, rtol=1e-4, atol=1e-7)
    assert loss < value


def two_loops(gradient, pairs):
    """The direction of L-BFGS from the gradient and the pairs of differences, the oldest first."""
    q, steps = gradient.copy(), []
    for s, y in reversed(pairs):
        a = (s @ q) / (s @ y)
        q -= a * y
        steps.append((a, s, y))
    s, y = pairs[-1] if pairs else (None, None)
    r = q * ((s @ y) / (y @ y) if pairs else min(1, 1 / np.linalg.norm(gradient)))
    for a, s, y in reversed(steps):
        r += s * (a - (y @ r) / (s @ y))
    return -r


@two_kinds
def test_lbfgs_behind_it_takes_its_curvature_from_the_descents(name):
    """The direction is that of the sharpness-aware gradients and their differences; its length satisfies
    the conditions of Wolfe on the clean loss.
    """
    step, state = searching(METHODS[name].make(), optax.lbfgs())
    params, pairs, last = init_params(), [], None
    for _ in range(3):
        found = step(params, state, make_batch(), make_indices())
        updates, state, (value, grad), (loss, grad_there), _ = found
        descent, point = vector(state[1]), vector(params)
        if last is not None:
            pairs.append((point - last[0], descent - last[1]))
        length = float(optax.tree.get(state, "learning_rate"))
        direction = two_loops(descent, pairs)
        np.testing.assert_allclose(vector(updates), length * direction, rtol=1e-3, atol=1e-6)
        slope, slope_there = vector(grad) @ direction, vector(grad_there) @ direction
        assert loss <= value + 1e-4 * length * slope
        assert abs(slope_there) <= 0.9 * abs(slope) * (1 + 1e-4)
        last, params = (point, descent), optax.apply_updates(params, updates)


@pytest.mark.skipif(not hasattr(optax, "microbatching"), reason="Optax refuses since 0.2.7")
@pytest.mark.parametrize(
    "search", [optax.lbfgs(), optax.scale_by_backtracking_linesearch(5)], ids=["lbfgs", "backtracking"]
)
def test_function_to_search_along_must_take_the_oracle(search):
    """Optax's own error: it looks for every keyword among those of the function."""
    sam, params, batch = optax_sam.sam(), init_params(), make_batch()
    tx = optax.chain(sam, search)
    state = tx.init(params)
    mean = lambda params: jnp.mean(losses(params, batch))

    def step(params, value_fn):
        loss, grads, oracle = sam.value_and_grad(losses)(params, batch, state=state)
        return tx.update(grads, state, params, oracle=oracle, value=loss, grad=grads, value_fn=value_fn)[0]

    with pytest.raises(TypeError, match=r"not consumed by `value_fn`: \['oracle'\]"):
        jax.eval_shape(lambda p: step(p, mean), params)
    updates = jax.eval_shape(lambda p: step(p, lambda p, *, oracle=None: mean(p)), params)
    assert jax.tree.structure(updates) == jax.tree.structure(params)


def test_value_and_grad_of_the_search_serve_the_next_step():
    """Full batches: `value_and_grad_from_state` finds them in the state, and `grad_fn` is the keyword."""
    sam, batch = optax_sam.sam(), make_batch()
    tx = optax.chain(sam, optax.lbfgs())
    value_fn = lambda params, *, grad_fn=None: jnp.mean(steep(params, batch))
    gradient = jax.grad(value_fn)

    @jax.jit
    def step(params, state):
        value, grad = optax.value_and_grad_from_state(value_fn)(params, state=state)
        updates, after = tx.update(
            grad, state, params, grad_fn=gradient, value=value, grad=grad, value_fn=value_fn
        )
        return optax.apply_updates(params, updates), after, value, grad, jax.value_and_grad(value_fn)(params)

    params, values = init_params(), []
    state = tx.init(params)
    for _ in range(8):
        params, state, value, grad, wanted = step(params, state)
        assert_trees_close((value, grad), wanted, rtol=1e-4, atol=1e-5)
        values.append(float(value))
    assert sorted(values, reverse=True) == values and values[-1] < 0.7 * values[0]


@two_kinds
def test_lookahead_works_by_hand_and_says_so_else(name):
    """It takes no keywords and its own pair of parameters. The method is applied first, at `params.fast`."""
    method, batch, indices = METHODS[name].make(), make_batch(), make_indices()
    params = optax.LookaheadParams.init_synced(init_params())
    base = optax.lookahead(optax.sgd(0.1), sync_period=2, slow_step_size=0.5)

    def inside(params):
        tx = optax.lookahead(optax.chain(method, optax.sgd(0.1)), sync_period=2, slow_step_size=0.5)
        state = tx.init(params)
        _, grads, oracle = method.value_and_grad(losses)(params.fast, batch, state=state, indices=indices)
        return optax.chain(tx).update(grads, (state,), params, oracle=oracle)  # which drops the keyword

    def before(params):
        tx = optax.chain(method, base)
        state = (method.init(params.fast), base.init(params))
        _, grads, oracle = method.value_and_grad(losses)(params.fast, batch, state=state, indices=indices)
        return tx.update(grads, state, params, oracle=oracle)

    with pytest.raises(ValueError, match=r"^none of oracle and grad_fn is given"):
        jax.eval_shape(inside, params)
    with pytest.raises(ValueError, match=r"^grads has the tree structure.*LookaheadParams"):
        jax.eval_shape(before, params)

    @jax.jit
    def step(params, state, fast_state):
        _, grads, oracle = method.value_and_grad(losses)(params.fast, batch, state=state, indices=indices)
        descent, state = method.update(grads, state, params.fast, oracle=oracle)
        updates, fast_state = base.update(descent, fast_state, params)
        return descent, state, updates, fast_state

    state, fast_state = method.init(params.fast), base.init(params)
    fast = slow = init_params()
    for number in range(4):
        descent, state, updates, fast_state = step(params, state, fast_state)
        params = optax.apply_updates(params, updates)
        fast = optax.tree.add_scale(fast, -0.1, descent)
        if number % 2:
            fast = slow = jax.tree.map(lambda s, f: s + 0.5 * (f - s), slow, fast)
        assert_trees_close(params.fast, fast, rtol=1e-5, atol=1e-6)
        assert_trees_close(params.slow, slow, rtol=1e-5, atol=1e-6)
