"""Whether a function of replicated arrays gives the same on all devices of a `pmap`, or needs them all.

The jaxpr is walked: what is the same on all devices, and what differs. A sum over the devices is the same.
"""

from collections.abc import Sequence
from typing import Any

import jax.extend.core as jex

from optax_sam.arithmetic.jaxprs import equations_of, parts_of_scan

_SAME = frozenset("psum psum2 psum_invariant pmax pmin all_gather all_gather_invariant".split())
_CASTS = frozenset(["pvary", "pcast"])
_CALLS = frozenset("jit pjit closed_call core_call checkpoint remat2 custom_jvp_call custom_vjp_call".split())


def is_same_on_all(closed: jex.ClosedJaxpr, axis: str) -> bool:
    """Whether all outputs are the same on all devices of an axis, if all inputs are; constants may differ."""
    jaxpr = closed.jaxpr
    return all(_outputs(jaxpr, [True] * len(jaxpr.invars), axis))


def axes_reduced_over(closed: jex.ClosedJaxpr) -> set[str]:
    """The axes over which devices tell each other anything."""
    collectives = (e for e in equations_of(closed) if e.primitive.name not in (*_CASTS, "axis_index"))
    return set().union(*map(_axes, collectives))


def _outputs(jaxpr: Any, same: Sequence[bool], axis: str) -> list[bool]:
    known = dict(zip(jaxpr.invars, same, strict=True)) | dict.fromkeys(jaxpr.constvars, False)

    def is_same(atom):
        return isinstance(atom, jex.Literal) or known[atom]

    for equation in jaxpr.eqns:
        given = [is_same(atom) for atom in equation.invars]
        known.update(zip(equation.outvars, _through(equation, given, axis), strict=True))
    return [is_same(atom) for atom in jaxpr.outvars]


def _through(equation: jex.JaxprEqn, same: list[bool], axis: str) -> list[bool]:
    name, params, number = equation.primitive.name, equation.params, len(equation.outvars)
    if name not in _CASTS and axis in _axes(equation):
        grouped = params.get("axis_index_groups") is not None
        return [name in _SAME and not grouped] * number
    if name in _CALLS:
        inner = params.get("jaxpr", params.get("call_jaxpr"))
        return _outputs(getattr(inner, "jaxpr", inner), same, axis)
    if name == "cond" and same[0]:
        found = [_outputs(branch.jaxpr, same[1:], axis) for branch in params["branches"]]
        return [all(each) for each in zip(*found, strict=True)]
    if name == "scan":
        return _scanned(equation, same, axis)
    return [all(same)] * number


def _scanned(equation: jex.JaxprEqn, same: list[bool], axis: str) -> list[bool]:
    first, number = parts_of_scan(equation)
    consts, carry, xs = same[:first], same[first : first + number], same[first + number :]
    found: list[bool] = []
    for _ in range(number + 1):
        found = _outputs(equation.params["jaxpr"].jaxpr, [*consts, *carry, *xs], axis)
        carry = [one and other for one, other in zip(carry, found, strict=False)]
    return [*carry, *found[number:]]


def _axes(equation: jex.JaxprEqn) -> set[str]:
    """The named axes of a collective."""
    named = (equation.params.get(key, ()) for key in ("axes", "axis_name"))
    return {
        axis
        for name in named
        for axis in (name if isinstance(name, tuple) else (name,))
        if isinstance(axis, str)
    }
