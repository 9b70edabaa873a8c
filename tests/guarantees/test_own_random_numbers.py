"""Random numbers of methods and measurements are not those of a program that begins with the same seed."""

import ast
import inspect
import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_sam
from optax_sam import sharpness
from optax_sam.arithmetic import keys
from optax_sam.engine.state import key_of
from tests.problem import init_params, losses, make_batch
from tests.registry import METHODS, ROWS, over

SEED = 42
DRAWING = [name for name, case in ROWS.items() if "seed" in inspect.signature(case.method).parameters]
PACKAGE = Path(optax_sam.__file__).parent


def data_of(keys):
    return {tuple(x) for x in np.asarray(jax.random.key_data(keys)).reshape(-1, 2).tolist()}


def below(keys, count):
    """The keys that counting from 0 makes of each of some keys."""
    return jax.vmap(lambda key: jax.vmap(lambda n: jax.random.fold_in(key, n))(jnp.arange(count)))(keys)


def of_program(key, count=40, depth=3):
    """What a program may make of a key by `split` and `fold_in`, level by level."""
    found, level = data_of(key), key.reshape(1)
    for size in itertools.repeat(count, depth):
        level = below(level, size).reshape(-1)
        found |= data_of(level)
    return found


@pytest.fixture(scope="module")
def of_users():
    return of_program(jax.random.key(SEED))


@pytest.mark.parametrize("name", over(DRAWING, METHODS))
def test_the_key_of_a_method_is_none_of_a_program(name, of_users):
    """Nor then is what is folded out of it: the keys of steps, pieces and leaves."""
    assert of_users.isdisjoint(data_of(key_of(ROWS[name].make(seed=SEED).init(init_params()))))


def test_the_purposes_of_one_seed_have_keys_of_their_own():
    found = [data_of(keys.from_seed(SEED, purpose)) for purpose in ("method", "mask", "landscape", "signs")]
    assert len(set.union(*found)) == 4


def test_directions_and_masks_know_nothing_of_the_initial_weights():
    """Weights are drawn leaf by leaf, from the parts of a key that a program splits."""
    parts = jax.random.split(jax.random.key(SEED), 3)
    weights = {name: jax.random.normal(key, (50, 40)) for name, key in zip("abc", parts, strict=True)}

    found = sharpness.random_direction(weights, seed=SEED, filter_normalized=False)
    cosine = optax.tree.vdot(found, weights) / optax.tree.norm(found) / optax.tree.norm(weights)
    assert abs(cosine) < 0.06  # 4.6 standard deviations

    state = optax_sam.sparse_sam(sparsity=0.5, mask="dynamic", total_steps=9, seed=SEED).init(weights)
    kept = [x for x in jax.tree.leaves(state.ascent) if x.dtype == bool and x.size == 2000]
    positive = [np.mean(np.asarray(weights[n])[np.asarray(k)] > 0) for n, k in zip("abc", kept, strict=True)]
    np.testing.assert_allclose(positive, 0.5, atol=0.07)


def test_coins_of_a_gate_are_not_the_coins_of_the_program():
    """The program folds its key by the step, and splits it for crops, flips and mixtures."""
    method = optax_sam.rst(probability=0.5, seed=SEED)
    tx = optax.chain(method, optax.sgd(0.1))
    step, params, agree = jax.jit(optax_sam.step(tx, losses)), init_params(), np.zeros(4)
    state = tx.init(params)
    for number in range(64):
        parts = jax.random.split(jax.random.fold_in(jax.random.key(SEED), number), 4)
        coins = jax.vmap(lambda key: jax.random.bernoulli(key, 0.5))(parts)
        params, state, _ = step(params, state, make_batch(number))
        agree += np.asarray(coins) == bool(optax_sam.info(state)["perturbed"])
    assert np.all((agree > 12) & (agree < 52))  # five standard deviations


def test_a_key_of_another_pass_is_none_that_the_loss_splits_from_the_first():
    """`key, own = split(key)` and `own, key = split(key)`, layer after layer: no mask comes twice."""
    seen = []

    def with_dropout(params, batch, key):
        for place in (0, 1):
            rest = key
            for _ in range(4):
                both = jax.random.split(rest)
                own, rest = both[place], both[1 - place]
                jax.debug.callback(lambda data, place=place: seen.append((place, *data.tolist())), own)
        return losses(params, batch)

    def keys_of(place):
        return [tuple(data) for where, *data in seen if where == place]

    for method in (optax_sam.sam(), optax_sam.accumulated(optax_sam.sam(), 2), optax_sam.tsam(num_samples=2)):
        seen.clear()
        tx = optax.chain(method, optax.sgd(0.1))
        step = jax.jit(optax_sam.step(tx, with_dropout))
        step(init_params(), tx.init(init_params()), make_batch(), key=jax.random.key(SEED))
        jax.effects_barrier()
        for place in (0, 1):
            found = keys_of(place)
            assert len(found) >= 8 and len(set(found)) == len(found)


def test_keys_are_made_in_one_place():
    """So that none is forgotten: every other one is folded out of these."""
    makers = {"key", "PRNGKey"}
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            is_maker = isinstance(node, ast.Attribute) and node.attr in makers
            if is_maker and ast.unparse(node).startswith("jax.random."):
                found.add(path.relative_to(PACKAGE).as_posix())
    assert found == {"arithmetic/keys.py"}
