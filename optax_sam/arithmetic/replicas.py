"""Whether a function of replicated arrays gives the same on all devices of a `pmap`, or needs them all.

The jaxpr is walked: what is the same on all devices, and what differs. A sum over the devices is the same.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.extend.core as jex

from optax_sam.arithmetic.jaxprs import called_by, equations_of, jaxprs_in, parts_of_scan

_SAME = frozenset("psum psum2 psum_invariant pmax pmin all_gather all_gather_invariant".split())
_CASTS = frozenset(["pvary", "pcast"])


def is_same_on_all(closed: jex.ClosedJaxpr, axis: str) -> bool:
    """Whether all outputs are the same on all devices of an axis, if all inputs are.

    Constants are the same where they are known. Traced ones may differ.
    """
    return all(_outputs(closed, [True] * len(closed.jaxpr.invars), axis))


def axes_reduced_over(jaxpr: jex.Jaxpr | jex.ClosedJaxpr) -> set[str]:
    """The axes over which devices tell each other anything."""
    collectives = (e for e in equations_of(jaxpr) if e.primitive.name not in (*_CASTS, "axis_index"))
    return set().union(*map(_axes, collectives))


def _outputs(jaxpr: Any, same: Sequence[bool], axis: str) -> list[bool]:
    """Of a jaxpr, closed or without constants."""
    consts = getattr(jaxpr, "consts", ())
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    known = dict(zip(jaxpr.invars, same, strict=True))
    known |= {v: not isinstance(c, jax.core.Tracer) for v, c in zip(jaxpr.constvars, consts, strict=True)}

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
    if (inner := called_by(equation)) is not None:
        return _outputs(inner, same, axis)
    if name == "cond" and same[0]:
        found = [_outputs(branch, same[1:], axis) for branch in params["branches"]]
        return [all(each) for each in zip(*found, strict=True)]
    if name == "scan":
        first, carried = parts_of_scan(equation)
        head, carry, xs = same[:first], same[first : first + carried], same[first + carried :]
        return _looped(params["jaxpr"], head, carry, xs, axis)
    if name == "while":
        first, second = params["cond_nconsts"], params["body_nconsts"]
        consts, carry = same[first : first + second], same[first + second :]
        carry = _looped(params["body_jaxpr"], consts, carry, [], axis)
        as_often = all(_outputs(params["cond_jaxpr"], [*same[:first], *carry], axis))
        return carry if as_often else [False] * number
    inside = any(axis in _axes(e) for inner in jaxprs_in(params) for e in equations_of(inner))
    return [all(same) and not inside] * number


def _looped(jaxpr: Any, consts: list[bool], carry: list[bool], xs: list[bool], axis: str) -> list[bool]:
    """What a loop carries, and what it gives beside."""
    found: list[bool] = []
    for _ in range(len(carry) + 1):
        found = _outputs(jaxpr, [*consts, *carry, *xs], axis)
        carry = [one and other for one, other in zip(carry, found, strict=False)]
    return [*carry, *found[len(carry) :]]


def _axes(equation: jex.JaxprEqn) -> set[str]:
    """The named axes of a collective."""
    named = (equation.params.get(key, ()) for key in ("axes", "axis_name"))
    each = (axis for name in named for axis in (name if isinstance(name, tuple) else (name,)))
    return {axis for axis in each if isinstance(axis, str)}
