"""The programs of the methods: no loop and no conditional but those that their rows declare."""

import collections

import jax
import optax
import pytest

import optax_sam
from optax_sam.arithmetic.jaxprs import equations_of
from tests.problem import init_params, losses, make_batch, make_indices
from tests.registry import CASES, OPTIMIZERS, over

LOOPS = ("while", "scan")
ALL = {**CASES, **OPTIMIZERS}


def control(jaxpr, on_cpu):
    """How many loops and conditionals a program has, on a CPU or on any other machine."""
    found = collections.Counter()
    skipped = set()
    for equation in equations_of(jaxpr):
        if id(equation) in skipped:
            continue
        name, platforms = equation.primitive.name, equation.params.get("branches_platforms")
        if name == "cond" and platforms:  # one branch is compiled
            for branch, machine in zip(equation.params["branches"], platforms, strict=True):
                if ("cpu" in (machine or ())) != on_cpu:
                    skipped |= {id(inner) for inner in equations_of(branch)}
        elif name in LOOPS or name == "cond":
            found["loops" if name in LOOPS else "conditionals"] += 1
    return found


def program(name):
    method = ALL[name].make()
    tx = method if name in OPTIMIZERS else optax.chain(method, optax.sgd(0.1))
    step, params = optax_sam.step(tx, losses), init_params()

    def with_indices(params, state, batch, indices):
        return step(params, state, batch, indices=indices)

    return jax.make_jaxpr(with_indices)(params, tx.init(params), make_batch(), make_indices())


@pytest.mark.parametrize("name", over(ALL))
def test_on_a_gpu_or_tpu_a_program_has_the_loops_and_conditionals_of_its_equation_alone(name):
    """A gate is one conditional; what is renewed in some steps alone is another."""
    case = ALL[name]
    found = control(program(name).jaxpr, on_cpu=False)
    assert found["loops"] == case.loops
    assert found["conditionals"] == case.conditionals + case.gated


def test_on_a_cpu_a_norm_has_a_loop_of_its_own():
    """Of one turn at most: what the test above sees where there is one."""
    assert control(program("sam").jaxpr, on_cpu=True)["loops"] > 0


@pytest.mark.parametrize("name", ["sam", "rst"])
def test_each_gradient_has_its_norm_taken_once(name):
    """Inside a conditional too, where XLA would take again what stands outside."""
    norms = [e for e in equations_of(program(name).jaxpr) if e.params.get("branches_platforms")]
    assert len(norms) == 2


@pytest.mark.parametrize(
    ("name", "kept"), [("bsam", False), pytest.param("m_sam", True, marks=pytest.mark.slow)]
)
def test_bsam_keeps_no_gradient_for_each_of_its_slices(name, kept):
    """It goes through them once; `per_microbatch` goes twice, and keeps the first gradients between."""
    number = {"bsam": 8, "m_sam": 4}[name]
    kernels = {(number, *x.shape) for x in jax.tree.leaves(init_params()) if x.ndim > 1}
    shapes = {x.aval.shape for equation in equations_of(program(name).jaxpr) for x in equation.outvars}
    assert bool(kernels & shapes) == kept
    assert control(program(name).jaxpr, on_cpu=False)["loops"] == ALL[name].loops
