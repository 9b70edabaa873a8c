"""Runs a case as a user would: in Python, operation by operation, or compiled."""

import contextlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import optax_sam
from optax_sam.arithmetic import trees
from tests.fuzzing.cases import Case
from tests.fuzzing.problems import Problem, loss_fn, wide_dtype


class Outcome(NamedTuple):
    """What one step returned."""

    before: Any
    state: Any
    descent: Any
    grads: Any
    loss: Any
    aux: Any


def make_method(case: Case) -> optax_sam.SharpnessAware:
    """The method of a case, wrapped."""
    rho: Any = case.rho
    if case.rho_kind == "numpy":
        rho = np.float32(rho)
    if case.rho_kind == "array":
        rho = jnp.asarray(rho)
    if case.rho_kind == "schedule":
        rho = lambda step: jnp.where(step == 0, case.rho, case.rho / 2)
    rho = {"negative rho": -0.1, "rho of NaN": float("nan"), "rho a string": "0.1"}.get(case.mistake, rho)
    radius = "radius" if case.method == "pugd" else "rho"
    method = getattr(optax_sam, case.method)(**{radius: rho}, **case.arguments)
    bad = {"num_microbatches of 0": 0, "num_microbatches a float": 2.0}
    for kind, number, loop in reversed(case.wrappers):
        options = {} if loop is None else {"loop": loop}
        method = getattr(optax_sam, kind)(method, bad.get(case.mistake, number), **options)
    return method


def run(case: Case, problems: list[Problem], mode: str) -> list[Outcome]:
    """All steps of a case. `mode`: "python" runs each operation alone, "jit" compiles the step."""
    method = make_method(case)
    state = method.init(problems[0].params)
    outcomes = []
    with jax.disable_jit() if mode == "python" else contextlib.nullcontext():
        for problem in problems:
            step = _step(case, problem, method)
            result = (jax.jit(step) if mode == "jit" else step)(problem.params, state)
            outcomes.append(Outcome(state, *result))
            state = outcomes[-1].state
    return outcomes


def _step(case: Case, problem: Problem, method: optax_sam.SharpnessAware) -> Any:
    losses = loss_fn(case, problem)
    call = {"oracle": _oracle_arguments(case, problem), "update": {"perturb": case.perturb, "unknown": 1}}
    if case.mistake == "perturb=1":
        call["update"]["perturb"] = 1
    if case.mistake == "perturb an array":
        call["update"]["perturb"] = jnp.array(True)
    batch = dict(problem.batch)
    if case.mistake == "rows differ":
        batch["t"] = np.append(batch["t"], batch["t"][:1])
    if case.mistake == "scalar in batch":
        batch["t"] = batch["t"][0]
    if case.mistake == "empty batch":
        batch = {name: x[:0] for name, x in batch.items()}

    def grad_fn(params):
        if case.wide_grads:
            params = jax.tree.map(_widened, params)
        whole = {name: np.where(np.isnan(x), x.dtype.type(1), x) for name, x in problem.batch.items()}
        mean = lambda p: jnp.mean(_losses_alone(case, losses, p, whole))
        grads = jax.grad(mean, allow_int=True)(params)
        return (grads, 1.0) if case.mistake == "gradient with aux" else grads

    def step(params, state):
        loss, aux = None, None
        if case.has_oracle:
            arguments = call["oracle"]
            if case.door == "by hand":
                oracle = optax_sam.Oracle(losses, batch, has_aux=case.has_aux, **arguments)
                grads = jax.tree.map(lambda x: jnp.full_like(x, _nonsense(x)), params)
            else:
                known = (1, 2) if case.mistake == "state of another" else state
                value_and_grad = method.value_and_grad(losses, has_aux=case.has_aux)
                loss, grads, oracle = value_and_grad(params, batch, state=known, **arguments)
                loss, aux = loss if case.has_aux else (loss, None)
            doors = {"oracle": oracle}
        else:
            grads = grad_fn(params)
            grads = grads[0] if case.mistake == "gradient with aux" else grads
            doors = {"grad_fn": grad_fn}
        first = jax.tree.map(lambda g, p: g if trees.is_inexact(jnp.asarray(p)) else None, grads, params)
        if case.mistake == "gradient of another tree":
            grads = (grads, jnp.ones(2))
        if case.mistake == "gradient of another shape":
            grads = jax.tree.map(lambda x: jnp.zeros([*jnp.shape(x), 2]), params)
        if case.mistake == "neither door":
            doors = {}
        if case.mistake == "both doors":
            doors = {"oracle": doors.get("oracle", 1), "grad_fn": grad_fn}
        if case.mistake == "no oracle":
            doors = {"oracle": losses}
        if case.mistake == "no grad_fn":
            doors = {"grad_fn": 1.0}
        given = None if case.mistake == "no params" else params
        descent, new = method.update(grads, state, given, **doors, **call["update"])
        return new, descent, first, loss, aux

    return step


def _oracle_arguments(case: Case, problem: Problem) -> dict[str, Any]:
    arguments = {
        "weights": problem.weights,
        "indices": problem.indices,
        "whole_batch": case.whole_batch,
        "key": jax.random.key(case.seed) if case.has_key else None,
        "loss_scale": case.loss_scale,
    }
    wrong = {
        "complex weights": {"weights": np.ones(case.size, np.complex64)},
        "weights too short": {"weights": np.ones(case.size + 1, np.float32)},
        "indices of floats": {"indices": np.ones(case.size, np.float32)},
        "indices too short": {"indices": np.arange(case.size + 1, dtype=np.int32)},
        "loss_scale of 0": {"loss_scale": 0.0},
        "key of floats": {"key": jnp.ones(2)},
    }
    return arguments | wrong.get(case.mistake, {})


def _losses_alone(case: Case, losses: Any, params: Any, batch: Any) -> Any:
    found = losses(params, batch, *[None] * case.has_key)
    return found[0] if case.has_aux else found


def _nonsense(x: Any) -> Any:
    return jnp.nan if jnp.issubdtype(jnp.asarray(x).dtype, jnp.inexact) else 1


def _widened(x: Any) -> Any:
    x = jnp.asarray(x)
    return x.astype(wide_dtype(x.dtype)) if jnp.issubdtype(x.dtype, jnp.inexact) else x
