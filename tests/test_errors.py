"""Bad arguments: a clear error at construction or trace time, never a NaN later."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_sam
from optax_sam import per_example, schedules
from tests.registry import METHODS, init_params, losses, make_batch, make_indices

AT_CONSTRUCTION = {
    "negative rho": (lambda: optax_sam.sam(rho=-0.1), ValueError, "rho=-0.1"),
    "nan rho": (lambda: optax_sam.sam(rho=float("nan")), ValueError, "rho=nan"),
    "rho a string": (lambda: optax_sam.sam(rho="0.1"), TypeError, "rho='0.1'"),
    "rho missing": (lambda: optax_sam.sam(rho=None), TypeError, "rho=None"),
    "rho a vector": (lambda: optax_sam.sam(rho=jnp.ones(2)), ValueError, "rho has shape (2,)"),
    "asam rho": (lambda: optax_sam.asam(rho=-1), ValueError, "rho=-1"),
    "eta": (lambda: optax_sam.asam(eta=-0.5), ValueError, "eta=-0.5"),
    "probability": (lambda: optax_sam.rst(probability=1.5), ValueError, "probability=1.5"),
    "grst probability": (lambda: optax_sam.grst(probability=-1), ValueError, "probability=-1"),
    "alpha": (lambda: optax_sam.grst(alpha="2"), TypeError, "alpha='2'"),
    "seed a float": (lambda: optax_sam.rst(seed=0.5), TypeError, "seed=0.5"),
    "seed a key": (lambda: optax_sam.rst(seed=jnp.zeros(2, jnp.uint32)), TypeError, "seed has shape (2,)"),
    "window": (lambda: optax_sam.vsam(window=7), ValueError, "window=7"),
    "window no multiple": (lambda: optax_sam.vsam(window=52), ValueError, "window=52"),
    "window an array": (lambda: optax_sam.vsam(window=jnp.array(50)), TypeError, "static_arguments"),
    "slices": (lambda: optax_sam.vsam(slices=0), ValueError, "slices=0"),
    "max_rate": (lambda: optax_sam.vsam(max_rate=1.5), ValueError, "max_rate=1.5"),
    "max_rate too small": (lambda: optax_sam.vsam(max_rate=0.01), ValueError, "max_rate=0.01"),
    "rate_gain": (lambda: optax_sam.vsam(rate_gain=0.1), TypeError, "rate_gain=0.1"),
    "reuse_decay": (lambda: optax_sam.vsam(reuse_decay=2.0), ValueError, "reuse_decay=2.0"),
    "reuse_steps": (lambda: optax_sam.vsam(reuse_steps=-1), ValueError, "reuse_steps=-1"),
    "warmup_steps": (lambda: optax_sam.vsam(warmup_steps=1.5), TypeError, "warmup_steps=1.5"),
    "tail": (lambda: optax_sam.vsam(tail=0), ValueError, "tail=0"),
    "pugd radius": (lambda: optax_sam.pugd(radius=-1.0), ValueError, "radius=-1.0"),
    "num_samples": (lambda: optax_sam.tsam(num_samples=0), ValueError, "num_samples=0"),
    "num_samples an array": (
        lambda: optax_sam.tsam(num_samples=jnp.array(3)),
        TypeError,
        "static_arguments",
    ),
    "tsam radius": (lambda: optax_sam.tsam(radius=-1), ValueError, "radius=-1"),
    "noise_scale": (lambda: optax_sam.tsam(noise_scale=-1), ValueError, "noise_scale=-1"),
    "noise": (lambda: optax_sam.tsam(noise="cauchy"), ValueError, "noise='cauchy'"),
    "tilt": (lambda: optax_sam.tsam(tilt="1"), TypeError, "tilt='1'"),
    "num_examples": (lambda: optax_sam.ausam(0), ValueError, "num_examples=0"),
    "num_examples a float": (lambda: optax_sam.ausam(10.0), TypeError, "num_examples=10.0"),
    "fraction 0": (lambda: optax_sam.ausam(10, fraction=0.0), ValueError, "fraction=0"),
    "fraction 2": (lambda: optax_sam.ausam(10, fraction=2.0), ValueError, "fraction=2.0"),
    "fraction an array": (
        lambda: optax_sam.ausam(10, fraction=jnp.array(0.5)),
        TypeError,
        "static_arguments",
    ),
    "score_range": (lambda: optax_sam.ausam(10, score_range=(0.5, 0.1)), ValueError, "score_range[1]=0.1"),
    "score_range 0": (lambda: optax_sam.ausam(10, score_range=(0, 1)), ValueError, "score_range[0]=0"),
    "score": (lambda: optax_sam.ausam(10, score="loss"), ValueError, "score='loss'"),
    "strata": (lambda: optax_sam.ausam(10, strata=0), ValueError, "strata=0"),
    "ramp_steps": (lambda: optax_sam.ausam(10, ramp_steps=-1), ValueError, "ramp_steps=-1"),
    "microbatches": (
        lambda: optax_sam.per_microbatch(optax_sam.sam(), 0),
        ValueError,
        "num_microbatches=0",
    ),
    "loop": (
        lambda: optax_sam.per_microbatch(optax_sam.sam(), 2, loop="for"),
        ValueError,
        "loop='for'",
    ),
    "accumulated": (
        lambda: optax_sam.accumulated(optax_sam.sam(), 1.5),
        TypeError,
        "num_microbatches=1.5",
    ),
    "accumulated around an optimizer": (
        lambda: optax_sam.accumulated(optax.sgd(0.1), 2),
        TypeError,
        "no method",
    ),
    "axis_name": (lambda: optax_sam.per_device(optax_sam.sam(), 0), TypeError, "axis_name=0"),
    "per_device around an optimizer": (lambda: optax_sam.per_device(optax.sgd(0.1)), TypeError, "no method"),
    "no method": (lambda: optax_sam.per_microbatch(optax.sgd(0.1), 2), TypeError, "no method"),
    "no gate": (
        lambda: optax_sam.sharpness_aware(optax_sam.to_radius(0.1), gate=optax_sam.always),
        TypeError,
        "with its brackets",
    ),
    "no geometry": (lambda: optax_sam.to_radius(0.1, optax_sam.euclidean), TypeError, "geometry="),
    "no log_weight": (
        lambda: optax_sam.over_draws(optax_sam.sam(), 2, 0.5),
        TypeError,
        "log_weight=0.5",
    ),
    "no ascent": (lambda: optax_sam.sharpness_aware(0.05), TypeError, "ascent=0.05"),
    "k": (lambda: optax_sam.every(0), ValueError, "k=0"),
    "no function": (lambda: optax_sam.static_arguments(optax_sam.sam()), TypeError, "no function"),
    "schedule probability": (lambda: schedules.increasing(1.5, 10), ValueError, "probability=1.5"),
    "schedule steps": (lambda: schedules.cosine(0), ValueError, "total_steps=0"),
    "losses no function": (lambda: optax_sam.Oracle(1.0, make_batch()), TypeError, "losses=1.0"),
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
    "indices shape": (
        lambda: optax_sam.Oracle(losses, jnp.ones(3), indices=jnp.arange(2)),
        ValueError,
        "indices has shape (2,)",
    ),
    "key": (lambda: optax_sam.Oracle(losses, jnp.ones(3), key=0), TypeError, "key=0 is no PRNG key"),
    "keys": (
        lambda: optax_sam.Oracle(losses, jnp.ones(3), key=jax.random.split(jax.random.key(0))),
        TypeError,
        "no PRNG key",
    ),
    "loss_scale": (
        lambda: optax_sam.Oracle(losses, jnp.ones(3), loss_scale=0.0),
        ValueError,
        "loss_scale=0.0",
    ),
    "loss_scale negative": (
        lambda: optax_sam.Oracle(losses, jnp.ones(3), loss_scale=-8),
        ValueError,
        "loss_scale=-8",
    ),
    "weights dtype": (
        lambda: optax_sam.Oracle(losses, jnp.ones(3), weights=jnp.ones(3, bool)),
        TypeError,
        "weights has dtype bool",
    ),
    "microbatch_size": (
        lambda: per_example.losses(losses, init_params(), make_batch(), microbatch_size=3),
        ValueError,
        "microbatch_size=3",
    ),
}


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
