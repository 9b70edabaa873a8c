"""Bad arguments: a clear error at construction or trace time, never a NaN later."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_sam
from optax_sam import per_example
from tests.problem import init_params, losses, make_batch, make_indices
from tests.registry import METHODS

AT_CONSTRUCTION = {
    "rho a vector": (lambda: optax_sam.sam(rho=jnp.ones(2)), ValueError, "rho has shape (2,)"),
    "seed a key": (lambda: optax_sam.rst(seed=jnp.zeros(2, jnp.uint32)), TypeError, "seed has shape (2,)"),
    "window no multiple": (lambda: optax_sam.vsam(window=52), ValueError, "window=52"),
    "window an array": (lambda: optax_sam.vsam(window=jnp.array(50)), TypeError, "static_arguments"),
    "num_samples an array": (
        lambda: optax_sam.tsam(num_samples=jnp.array(3)),
        TypeError,
        "static_arguments",
    ),
    "fraction an array": (
        lambda: optax_sam.ausam(10, fraction=jnp.array(0.5)),
        TypeError,
        "static_arguments",
    ),
    "no method": (lambda: optax_sam.per_microbatch(optax.sgd(0.1), 2), TypeError, "no method"),
    "no gate": (
        lambda: optax_sam.sharpness_aware(optax_sam.ascents.to_radius(0.1), gate=optax_sam.gates.always),
        TypeError,
        "with its brackets",
    ),
    "no function": (lambda: optax_sam.static_arguments(optax_sam.sam()), TypeError, "no function"),
    "rows differ": (
        lambda: optax_sam.Oracle(losses, {"x": jnp.ones(3), "y": jnp.ones(4)}),
        ValueError,
        "batch['y'] has shape (4,)",
    ),
    "scalar in batch": (
        lambda: optax_sam.Oracle(losses, {"x": jnp.ones(3), "t": jnp.ones([])}),
        ValueError,
        "batch['t']",
    ),
    "empty batch": (lambda: optax_sam.Oracle(losses, jnp.ones([0, 2])), ValueError, "0 examples"),
    "indices dtype": (
        lambda: optax_sam.Oracle(losses, jnp.ones(3), indices=jnp.ones(3)),
        TypeError,
        "indices has dtype float32",
    ),
    "weights dtype": (
        lambda: optax_sam.Oracle(losses, jnp.ones(3), weights=jnp.ones(3, complex)),
        TypeError,
        "weights has dtype complex64",
    ),
    "microbatch_size": (
        lambda: per_example.losses(losses, init_params(), make_batch(), microbatch_size=3),
        ValueError,
        "microbatch_size=3",
    ),
}
"""Messages that say more than `tests/guarantees/test_refused_arguments.py` asks for."""


@pytest.mark.parametrize("name", AT_CONSTRUCTION)
def test_wrong_argument_is_named_with_its_value(name):
    call, kind, text = AT_CONSTRUCTION[name]
    with pytest.raises(kind, match=re.escape(text)) as error:
        call()
    assert ":" in str(error.value), "no repair"


def _update(method=None, **arguments):
    method = optax_sam.sam() if method is None else method
    params = arguments.pop("params", init_params())
    grads = arguments.pop("grads", init_params())
    return method.update(grads, method.init(init_params()), params, **arguments)


def _step(method=None, loss_fn=losses, **arguments):
    method = optax_sam.sam() if method is None else method
    arguments = {"indices": make_indices(), **arguments}
    return method.value_and_grad(loss_fn, has_aux=arguments.pop("has_aux", False))(
        init_params(), make_batch(), state=method.init(init_params()), **arguments
    )


def _gradient(params):
    return jax.grad(lambda p: jnp.mean(losses(p, make_batch())))(params)


def _masked_decoupled(**arguments):
    decoupled, params = optax_sam.decoupled(optax_sam.wsam(), optax.sgd(0.1), 0.1), init_params()
    tx = optax.masked(decoupled, {"layer_0": True, "layer_1": False})
    return tx.update(params, tx.init(params), params, **arguments)


AT_TRACE = {
    "params missing": (lambda: _update(params=None, grad_fn=_gradient), ValueError, "params=None"),
    "neither": (lambda: _update(), ValueError, "exactly one"),
    "both": (
        lambda: _update(grad_fn=_gradient, oracle=optax_sam.Oracle(losses, make_batch())),
        ValueError,
        "exactly one",
    ),
    "oracle": (lambda: _update(oracle=_gradient), TypeError, "no Oracle"),
    "grad_fn": (lambda: _update(grad_fn=1.0), TypeError, "grad_fn=1.0"),
    "perturb": (lambda: _update(grad_fn=_gradient, perturb=1), TypeError, "perturb=1"),
    "perturb an array": (
        lambda: _update(grad_fn=_gradient, perturb=jnp.array(True)),
        TypeError,
        "bool(sam.due(opt_state))",
    ),
    "perturb False": (
        lambda: _update(optax_sam.tsam(), oracle=optax_sam.Oracle(losses, make_batch()), perturb=False),
        ValueError,
        "perturb=False",
    ),
    "other tree": (lambda: _update(grads={"a": jnp.ones(2)}, grad_fn=_gradient), ValueError, "grads has"),
    "other shape": (
        lambda: _update(
            grads=jax.tree.map(lambda x: jnp.ones([*x.shape, 2]), init_params()), grad_fn=_gradient
        ),
        ValueError,
        "has shape (7, 2)",
    ),
    "gradient with aux": (
        lambda: _update(grad_fn=lambda p: (_gradient(p), jnp.ones(2))),
        ValueError,
        "grad_fn(params) has the tree structure",
    ),
    "scalar loss": (
        lambda: _step(optax_sam.ausam(48), lambda p, b: jnp.mean(losses(p, b))),
        ValueError,
        "shape [batch]",
    ),
    "scalar loss and weights": (
        lambda: _step(loss_fn=lambda p, b: jnp.mean(losses(p, b)), weights=jnp.ones(16)),
        ValueError,
        "weights are given",
    ),
    "token losses": (
        lambda: _step(loss_fn=lambda p, b: jnp.ones([16, 5])),
        ValueError,
        "losses.mean(axis=-1)",
    ),
    "aux without has_aux": (
        lambda: _step(loss_fn=lambda p, b: (losses(p, b), 1)),
        ValueError,
        "pass has_aux=True",
    ),
    "integer losses": (
        lambda: _step(loss_fn=lambda p, b: jnp.ones([16], jnp.int32)),
        ValueError,
        "dtype int32",
    ),
    "no pair": (lambda: _step(has_aux=True), ValueError, "return (losses, aux)"),
    "indices missing": (lambda: _step(optax_sam.ausam(48), indices=None), ValueError, "indices=None"),
    "fraction leaves none": (
        lambda: _step(optax_sam.ausam(48, fraction=0.01)),
        ValueError,
        "leaves no example",
    ),
    "strata do not divide": (lambda: _step(optax_sam.ausam(48, strata=3)), ValueError, "strata=3"),
    "slices do not divide": (
        lambda: _step(optax_sam.per_microbatch(optax_sam.sam(), 3)),
        ValueError,
        "num_microbatches=3",
    ),
    "tail": (
        lambda: _update(optax_sam.vsam(tail=lambda params: [True]), grad_fn=_gradient, perturb=True),
        ValueError,
        "tail returned 1 bools for 4",
    ),
    "ahead with a combination": (
        lambda: optax_sam.sharpness_aware(
            optax_sam.ascents.to_radius(0.1),
            start=optax_sam.starts.ahead(),
            direction=optax_sam.directions.previous_descent(),
            combination=optax_sam.combinations.unit(),
        ),
        ValueError,
        "leave combination out",
    ),
    "ahead with a reuse": (
        lambda: optax_sam.sharpness_aware(
            optax_sam.ascents.to_radius(0.1),
            start=optax_sam.starts.ahead(),
            direction=optax_sam.directions.previous_descent(),
            reuse=optax_sam.reuses.orthogonal_component(0.7),
        ),
        ValueError,
        "leave reuse out",
    ),
    "a gate that must see the gradient that it chooses": (
        lambda: optax_sam.sharpness_aware(
            optax_sam.ascents.to_radius(0.1),
            start=optax_sam.starts.on_surrogate_between(losses),
            gate=optax_sam.gates.when_gradient_is_large(1.0),
        ),
        ValueError,
        "must see it first",
    ),
    "decoupled without params": (
        lambda: _update(
            optax_sam.decoupled(optax_sam.wsam(), optax.sgd(0.1), 0.1),
            params=None,
            oracle=optax_sam.Oracle(losses, make_batch()),
        ),
        ValueError,
        "params=None",
    ),
    "decoupled in a mask": (
        lambda: _masked_decoupled(oracle=optax_sam.Oracle(losses, make_batch())),
        ValueError,
        "oracle.params=None inside optax.masked",
    ),
    "no state": (lambda: optax_sam.info(()), ValueError, "no state"),
    "due without state": (lambda: optax_sam.due(optax.EmptyState()), ValueError, "no state"),
}


@pytest.mark.parametrize("name", AT_TRACE)
def test_wrong_call_is_named_at_trace_time(name):
    call, kind, text = AT_TRACE[name]
    with pytest.raises(kind, match=re.escape(text)):
        jax.eval_shape(lambda: call() and None)


def test_arrays_pass_the_checks_of_range():
    assert np.isfinite(
        jax.jit(lambda rho: _update(optax_sam.sam(rho), grad_fn=_gradient)[1].step)(jnp.array(-1.0))
    )


def test_static_arguments_are_those_that_shape_the_program():
    assert optax_sam.static_arguments(optax_sam.sam) == ()
    assert optax_sam.static_arguments(optax_sam.rst) == ()
    assert optax_sam.static_arguments(optax_sam.tsam) == ("num_samples", "noise")
    assert set(optax_sam.static_arguments(optax_sam.vsam)) == {
        "window", "slices", "max_rate", "rate_gain", "reuse_steps", "warmup_steps", "tail",
    }  # fmt: skip
    assert set(optax_sam.static_arguments(optax_sam.ausam)) == {
        "num_examples", "fraction", "score_range", "ramp_steps", "score", "strata",
    }  # fmt: skip
    for case in METHODS.values():
        assert not {"rho", "seed"} & set(optax_sam.static_arguments(case.method))


def test_an_oracle_does_not_cross_a_jit_boundary():
    with pytest.raises(TypeError, match="Oracle"):
        jax.jit(lambda: optax_sam.Oracle(losses, make_batch()))()
