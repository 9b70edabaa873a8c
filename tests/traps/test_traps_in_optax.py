"""The traps of `optax.contrib.sam` and two of its neighbours, so that their twins here are known to bite.

The twins are in `test_traps.py`, in `test_traps_of_state.py`, and where `docs/what_happens.md` says.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

from tests.traps.quadratic import CURVATURE, ROWS, START

pytestmark = pytest.mark.skipif(optax.__version__ != "0.2.8", reason="seen in optax 0.2.8; later mended?")

P0, ZERO = jnp.asarray(START), jnp.zeros(3)


def g(params):
    return CURVATURE * params


def grad_fn(params, number):
    return g(params)


def make(opaque=True, rho=0.1, base=None, **options):
    ascent = optax.chain(contrib.normalize(), optax.sgd(rho))
    return contrib.sam(base or optax.sgd(0.05), ascent, opaque_mode=opaque, **options)


def first_update(tx, params=P0, grads=None, **extra):
    return tx.update(g(params) if grads is None else grads, tx.init(params), params, **extra)[0]


def distances(tx, steps=3):
    """How far from the parameters the gradient function is called."""
    seen, state = [], tx.init(P0)

    def look(params, number):
        seen.append(float(jnp.linalg.norm(params - P0)))
        return g(params)

    for _ in range(steps):
        _, state = tx.update(g(P0), state, P0, grad_fn=look)
    return seen


def zero_gradient():
    return first_update(make(), ZERO, grad_fn=grad_fn), np.zeros(3)


def zero_second_gradient():
    tx = make(opaque=False)
    _, state = tx.update(g(P0), tx.init(P0), P0)
    return tx.update(ZERO, state, P0)[0], -(P0 + 0.1 * g(P0) / jnp.linalg.norm(g(P0)) - P0)


def period_of_one():
    tx = make(opaque=False, sync_period=1)
    params, state = P0, tx.init(P0)
    for _ in range(3):
        updates, state = tx.update(g(params), state, params)
        params = optax.apply_updates(params, updates)
    return params, START * (1 - 0.05 * CURVATURE) ** 3


def radius_schedule():
    tx = make(rho=lambda count: 0.1 * (count + 1.0), base=optax.sgd(0.0))
    return distances(tx), [0.1, 0.2, 0.3]


def clipping_around():
    tx = optax.chain(optax.clip_by_global_norm(0.01), make(base=optax.sgd(1.0)))
    return jnp.linalg.norm(first_update(tx, grad_fn=grad_fn)), 0.01


def scaling_around():
    return jnp.linalg.norm(first_update(optax.chain(make(opaque=False), optax.scale(0.1)))), 0.1


def multi_steps():
    tx = optax.MultiSteps(make(), 4)
    state = tx.init(P0)
    for row in ROWS:
        one = lambda params, number, row=row: CURVATURE * (params - row)
        updates, state = tx.update(one(P0, 0), state, P0, grad_fn=one)
    return updates, first_update(make(), grad_fn=grad_fn)


def infinite_second_gradient():
    infinite = lambda params, number: jnp.full_like(params, jnp.inf)
    return first_update(optax.apply_if_finite(make(), 3), grad_fn=infinite), np.zeros(3)


def types_of_flags():
    tx = make(opaque=False, base=optax.apply_if_finite(optax.sgd(0.1), 3))
    state = tx.init(P0)
    after = tx.update(g(P0), state, P0)[1]
    return tuple(sum(leaf.dtype == bool for leaf in jax.tree.leaves(tree)) for tree in (after, state))


def float16_norm():
    grads = jnp.full((1000,), 300.0, jnp.float16)
    direction = contrib.normalize().update(grads, optax.EmptyState())[0]
    return np.linalg.norm(np.asarray(direction, np.float32)), 1.0


def bfloat16_restore():
    tx = make(opaque=False, rho=0.05, base=optax.sgd(1e-5))
    params = jnp.zeros(4, jnp.bfloat16)
    state, ones = tx.init(params), jnp.ones(4, jnp.bfloat16)
    for _ in range(2):
        updates, state = tx.update(ones, state, params)
        params = optax.apply_updates(params, updates)
    return params.astype(jnp.float32), np.full(4, -1e-5)


def gradient_with_aux():
    with_aux = lambda params, number: (g(params), {"stats": jnp.ones(2)})
    return first_update(make(), grad_fn=with_aux)[1]["stats"], np.ones(2)


def no_normalization():
    return distances(contrib.sam(optax.sgd(0.05), optax.sgd(0.1), opaque_mode=True), 1), [0.1]


def perturbed_in_hand():
    return optax.apply_updates(P0, first_update(make(opaque=False))), START


SILENT = [
    zero_gradient, zero_second_gradient, period_of_one, radius_schedule, clipping_around, scaling_around,
    multi_steps, infinite_second_gradient, types_of_flags, float16_norm, bfloat16_restore,
    gradient_with_aux, no_normalization, perturbed_in_hand,
]  # fmt: skip


@pytest.mark.parametrize("trap", SILENT, ids=lambda trap: trap.__name__)
def test_trap_gives_another_result_without_a_word(trap):
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        got, meant = trap()
    assert np.shape(got) == np.shape(meant)
    assert not np.allclose(got, meant, rtol=1e-3, atol=1e-7)


# And those that raise, where the same call on this library works or names the repair.


def stripped_keywords():
    tx = optax.chain(optax.MultiSteps(make(), 2).gradient_transformation())
    first_update(tx, grad_fn=grad_fn)


def injected_hyperparameters():
    tx = optax.inject_hyperparams(contrib.sam)(optax.sgd(0.05), optax.sgd(0.1), opaque_mode=True)
    jax.jit(lambda state: tx.update(g(P0), state, P0, grad_fn=grad_fn))(tx.init(P0))


def masked():
    params = {"a": P0, "b": P0}
    gradient = jax.grad(lambda p: 0.5 * jnp.sum(CURVATURE * (p["a"] ** 2 + p["b"] ** 2)))
    both = lambda params, number=0: gradient(params)
    first_update(optax.masked(make(), {"a": True, "b": False}), params, both(params), grad_fn=both)


def donated_buffers():
    tx, params = make(opaque=False), P0.copy()
    step = jax.jit(lambda params, state: tx.update(g(params), state, params), donate_argnums=(0, 1))
    step(params, tx.init(params))


def typed_keys():
    noise = optax.add_noise(0.1, 0.5, jax.random.key(0))
    first_update(make(opaque=False, base=optax.chain(noise, optax.sgd(0.1))))


def unknown_keyword():
    first_update(make(), grad_fn=grad_fn, value=1.0)


def base_that_needs_the_loss():
    first_update(make(base=optax.polyak_sgd()), grad_fn=grad_fn)


def forgotten_params():
    make().update(g(P0), make().init(P0), grad_fn=grad_fn)


def monitored_state_in_a_scan():
    tx = optax.monitor({"norm": optax.tree.norm})
    jax.lax.scan(lambda state, _: (tx.update(g(P0), state)[1], None), tx.init(P0), length=2)


def key_of_the_factory():
    tx = optax.add_noise(0.1, 0.5, jax.random.key(0))
    jax.jit(lambda state: tx.update(g(P0), state)[1], donate_argnums=0)(tx.init(P0))
    tx.update(g(P0), tx.init(P0))


LOUD = {
    stripped_keywords: (ValueError, "grad_fn must be provided"),
    injected_hyperparameters: (jax.errors.TracerBoolConversionError, "traced array"),
    masked: (TypeError, "MaskedNode"),
    donated_buffers: (Exception, "donate the same buffer twice"),
    typed_keys: (TypeError, "key<fry>"),
    unknown_keyword: (TypeError, "unexpected keyword argument 'value'"),
    base_that_needs_the_loss: (TypeError, "value"),
    forgotten_params: (TypeError, "params"),
    monitored_state_in_a_scan: (TypeError, "carry"),
    key_of_the_factory: (Exception, "deleted"),
}


@pytest.mark.parametrize("trap", LOUD, ids=lambda trap: trap.__name__)
def test_trap_raises(trap):
    kind, text = LOUD[trap]
    with jax.numpy_dtype_promotion("standard"), pytest.raises(kind, match=text):
        trap()
