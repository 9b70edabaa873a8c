"""Canonical convolutions in and beside solves, roots and loops: the gradients are those of JAX."""

import collections

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import optax_sam
from optax_sam import canonical_convolutions
from optax_sam.arithmetic.jaxprs import _with_canonical_jaxprs
from tests.arithmetic.convolutions import assert_all_canonical, assert_same, convolutions, normal
from tests.arithmetic.implicit import LAYERS, SIZE, blurred, plain
from tests.registry import over

ARGS = 0.5 * normal(0, SIZE), normal(1, SIZE)
REPRESENTATIVE = ["custom_linear_solve", "custom_vjp with a constant table"]
RULES_ONCE = ["custom_vjp with a constant table", "custom_vjp with a constant number"]
every_layer = pytest.mark.parametrize("name", over(LAYERS, REPRESENTATIVE))
every_place = pytest.mark.parametrize("inner", over([plain, blurred], [blurred]), ids=["beside", "inside"])


def loss_of(name, inner):
    """A convolution beside the layer, and inside it where that is asked for."""

    def loss(d, x):
        return jnp.sum(jnp.sin(LAYERS[name](d, blurred(x), inner)))

    return loss


class Product(optax_sam.pieces.bases.Combination):
    """Descends along a product with the Hessian."""

    asks_anew = False

    def combine(self, step):
        return step.oracle.hessian_product(step.grads)


def forms(gradient):
    """The gradient inside of what programs are made of, each as a function of `(d, x)`."""

    def in_loop(d, x):
        return lax.scan(lambda s, _: (s + gradient(d * s, x), None), jnp.ones_like(d), length=2)[0]

    return {
        "alone": gradient,
        "scan": in_loop,
        "cond": lambda d, x: lax.cond(x[0] < 9, gradient, lambda d, x: d, d, x),
        "vmap": lambda d, x: jax.vmap(gradient)(jnp.stack([d, 2 * d]), jnp.stack([x, -x])),
    }


@every_place
@every_layer
def test_gradients_through_layers_that_hold_jaxprs_are_those_of_jax(name, inner):
    gradient = jax.grad(loss_of(name, inner))
    assert_all_canonical(canonical_convolutions(gradient), *ARGS)

    @jax.jit
    def both(d, x):
        rewritten = forms(canonical_convolutions(gradient))
        return {form: (rewritten[form](d, x), f(d, x)) for form, f in forms(gradient).items()}

    for got, wanted in both(*ARGS).values():
        assert_same(got, wanted)


@every_place
@every_layer
def test_derivatives_of_rewritten_layers_are_those_of_jax(name, inner):
    """A loss that is held by its trace is differentiated afterwards, once or more."""
    loss = loss_of(name, inner)

    @jax.jit
    def both(d, x):
        def derivatives(loss):
            gradient = jax.grad(loss)
            again = jax.grad(lambda d: jnp.vdot(gradient(d, x), x))
            return gradient(d, x), again(d) if name not in RULES_ONCE else None

        return derivatives(canonical_convolutions(loss)), derivatives(loss)

    assert_same(*both(*ARGS))


@every_place
@every_layer
def test_steps_and_hessian_products_reach_through_them(name, inner):
    loss = loss_of(name, inner)
    params, batch = ARGS[0], jnp.stack([ARGS[1], -ARGS[1], ARGS[1] + 1])
    twice = name not in ("odeint", *RULES_ONCE)
    methods = [optax_sam.sam(0.1)]
    if twice:
        methods.append(optax_sam.sharpness_aware(optax_sam.ascents.to_radius(0.1), combination=Product()))

    def losses(d, batch):
        return jax.vmap(lambda x: loss(d, x))(batch)

    def mean(d):
        return jnp.mean(losses(d, batch))

    def step(method, d):
        state = method.init(d)
        value, grads, oracle = method.value_and_grad(losses)(d, batch, state=state)
        return value, grads, method.update(grads, state, d, oracle=oracle)[0]

    @jax.jit
    def both(d):
        clean = jax.grad(mean)(d)
        wanted = [jax.grad(mean)(d + 0.1 * clean / jnp.linalg.norm(clean))]
        wanted += [jax.jvp(jax.grad(mean), (d,), (clean,))[1]] if twice else []
        return [step(method, d) for method in methods], [(mean(d), clean, found) for found in wanted]

    assert_same(*both(params), rtol=1e-4)


class Pair(collections.namedtuple("Pair", "first second")):
    """A named tuple with a name of its own."""


def test_every_container_in_a_parameter_keeps_its_kind():
    inner = jax.make_jaxpr(lambda x: jnp.convolve(x, jnp.ones(3), mode="same", precision="float32"))(ARGS[1])
    other = jax.make_jaxpr(jnp.sin)(ARGS[1])
    untouched = {"names": ("a", "b"), "jaxprs": Pair(other, None)}
    held = {"deep": [Pair(inner, (other, {"again": inner}))], "rest": (None, 1, "text"), "other": other}
    equation = jax.make_jaxpr(jnp.sin)(ARGS[1]).eqns[0].replace(params={"held": held, "untouched": untouched})
    params = _with_canonical_jaxprs(equation).params
    (pair,) = params["held"]["deep"]
    assert type(pair) is Pair and type(pair.second) is tuple and pair.second[0] is other
    assert pair.first is pair.second[1]["again"] is not inner
    assert params["untouched"] is untouched and params["held"]["rest"] is held["rest"]
    assert held["deep"][0].first is inner, "the equation itself has changed"
    assert_same(jex.jaxpr_as_fun(pair.first)(ARGS[1]), jex.jaxpr_as_fun(inner)(ARGS[1]))


def test_the_jaxprs_of_a_solve_stay_of_one_kind():
    solve = lambda x: LAYERS["custom_linear_solve"](ARGS[0], x, blurred)
    rewritten = jax.make_jaxpr(canonical_convolutions(solve))(ARGS[1])
    (equation,) = [e for e in rewritten.eqns if e.primitive.name == "custom_linear_solve"]
    for length, jaxpr in zip(equation.params["const_lengths"], equation.params["jaxprs"], strict=True):
        assert len(jaxpr.in_avals) == length + 1 and list(convolutions(jaxpr.jaxpr))
    np.testing.assert_allclose(canonical_convolutions(solve)(ARGS[1]), solve(ARGS[1]), rtol=1e-5)
