"""Norms of single examples' gradients, without those gradients.

The gradient of one example with respect to a dense layer's weights is `A^T D`, with a row of `A` (inputs)
and of `D` (cotangents of outputs) for each position at which the layer is used. Its norm needs the two
alone: `||A^T D||^2 = sum (A A^T) * (D D^T)`. One backward pass to the outputs of those equations that
read weights, without the gradient of any of these, gives every `D`.

The jaxpr of one example's loss is walked. Parameters that are read by equations with a rule
(`ghost_rules.py`) alone are treated so. The gradients of all others, and of parameters whose parts meet in a
way that the rules do not know, come out of the same backward pass, as `vmap` would have them. (No equation is
differentiated on its own: solves, loops and rules of `custom_vjp` tell what may be differentiated together.)
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.extend.core as jex
import jax.numpy as jnp

from optax_sam.arithmetic import sharding, trees
from optax_sam.arithmetic.ghost_rules import RULES, Sides, joined, norm_of, norm_of_arrays
from optax_sam.arithmetic.jaxprs import canonical_convolutions, evaluate_equation, inlined

_SAME_ENTRIES = ("reshape", "transpose", "squeeze", "copy", "rev", "convert_element_type", "broadcast_in_dim")


@dataclasses.dataclass(frozen=True)
class Use:
    """One place where an equation reads what is made of parameters alone, beside the example.

    Attributes:
      number: of the equation.
      position: among what it reads.
      variable: that stands there.
    """

    number: int
    position: int
    variable: Any


class Plan(NamedTuple):
    """What is done with each parameter.

    Attributes:
      closed: the jaxpr of one example's loss, which reads parameters, then the example.
      moving: the numbers of the equations that depend on the example.
      by_rows: for each parameter whose norm comes of rows, its uses and their sides.
      leaves: the numbers of the other parameters that the loss reads.
      depends: whether the loss depends on the example.
    """

    closed: jex.ClosedJaxpr
    moving: frozenset[int]
    by_rows: list[tuple[list[Use], list[Sides]]]
    leaves: list[int]
    depends: bool

    @property
    def equations(self) -> list[Any]:
        return self.closed.jaxpr.eqns


def norms(loss: Callable[[list[Any], Any], jax.Array], params: list[jax.Array], examples: Any) -> jax.Array:
    """The L2 norm of the gradient of each example's loss, `float[examples]`.

    Args:
      loss: `loss(params, example)`, a scalar.
      params: real float arrays.
      examples: a pytree. Every leaf has the examples first.
    """
    leaves, treedef = jax.tree.flatten(examples)

    def flat_loss(params, example):
        return loss(params, jax.tree.unflatten(treedef, example))

    one = [sharding.like_row(x) for x in leaves]
    plan = _plan(inlined(jax.make_jaxpr(flat_loss)(params, one)), len(params))
    if not plan.depends:
        same = trees.norm(jax.grad(flat_loss)(params, [x[0] for x in leaves]))
        return jnp.broadcast_to(same, leaves[0].shape[:1])
    return jax.vmap(lambda *example: _of_example(plan, params, example))(*leaves)


def _plan(closed: jex.ClosedJaxpr, num_params: int) -> Plan:
    """Sorts what is made of parameters alone from the rest, and finds where the two meet."""
    jaxpr = closed.jaxpr
    behind: dict[Any, frozenset[int]] = {v: frozenset([n]) for n, v in enumerate(jaxpr.invars[:num_params])}
    moving = set(jaxpr.invars[num_params:])
    # What has the entries of one parameter, each once: in which order its axes stand there, if they do.
    views: dict[Any, tuple[int, ...] | None] = {v: tuple(range(v.aval.ndim)) for v in behind}
    uses, numbers = [], set()
    for number, equation in enumerate(jaxpr.eqns):
        read = [v for v in equation.invars if not isinstance(v, jex.Literal)]
        if moving.intersection(read):
            moving.update(equation.outvars)
            numbers.add(number)
            uses += [Use(number, n, v) for n, v in enumerate(equation.invars) if _is_in(behind, v)]
        elif found := frozenset().union(*(behind.get(v, frozenset()) for v in read)):
            behind.update(dict.fromkeys(equation.outvars, found))
            if read[0] in views and _keeps_entries(equation):
                views[equation.outvars[0]] = _view(equation, views[read[0]])
    by_rows, rowed = [], set()
    for leaf in range(num_params):
        own = [use for use in uses if leaf in behind[use.variable]]
        if own and all(use.variable in views for use in own):
            if sides := _sides(own, jaxpr, views):
                by_rows.append((own, sides))
                rowed.add(leaf)
    leaves = sorted(frozenset().union(*(behind[use.variable] for use in uses)) - rowed)
    depends = _is_in(moving, jaxpr.outvars[0])
    return Plan(closed, frozenset(numbers), by_rows, leaves, depends)


def _sides(uses: list[Use], jaxpr: jex.Jaxpr, views: dict[Any, Any]) -> list[Sides] | None:
    """How one parameter is seen in each of its uses; None where a rule or a common view is missing."""
    found = []
    for use in uses:
        equation = jaxpr.eqns[use.number]
        rule = RULES.get(equation.primitive.name)
        sides = rule.sides(equation, use.position) if rule and not _is_complex(equation) else None
        if sides is None:
            return None
        found.append(sides)
    if len(uses) == 1:
        return found
    if not all(sides.whole and views[use.variable] for use, sides in zip(uses, found, strict=True)):
        return None
    turned = [_turned(sides, views[use.variable]) for use, sides in zip(uses, found, strict=True)]
    known = [sides for sides in turned if sides]
    alike = len({frozenset([sides.left, sides.right]) for sides in known}) == 1
    return known if alike and len(known) == len(uses) else None


def _is_complex(equation: Any) -> bool:
    """Whether a real parameter meets complex numbers there: of its gradient only the real part counts."""
    return any(
        jnp.issubdtype(v.aval.dtype, jnp.complexfloating) for v in (*equation.invars, *equation.outvars)
    )


def _turned(sides: Sides, view: tuple[int, ...]) -> Sides | None:
    """The sides by the parameter's own axes; None where those stand in another order."""
    left = tuple(view[n] for n in sides.left)
    right = tuple(axis for n, axis in enumerate(view) if n not in sides.left)
    in_order = sorted(left) == list(left) and sorted(right) == list(right)
    return Sides(left, right, sides.whole) if in_order else None


def _of_example(plan: Plan, params: list[jax.Array], example: tuple[jax.Array, ...]) -> jax.Array:
    """The norm for one example."""
    numbers = sorted({use.number for uses, _ in plan.by_rows for use in uses})
    given = [plan.equations[n].outvars[0].aval for n in numbers]
    probes = {n: sharding.zeros_of(aval) for n, aval in zip(numbers, given, strict=True)}
    others = [params[n] for n in plan.leaves]

    def backward(probes, others):
        def loss_and_read(probes, others):
            return _run(plan, _fixed_values(plan, _replaced(params, plan.leaves, others)), example, probes)

        loss, pull, read = jax.vjp(loss_and_read, probes, others, has_aux=True)
        return pull(jnp.ones_like(loss)), read

    (cotangents, grads), read = canonical_convolutions(backward)(probes, others)

    def rows_of(use):
        equation = plan.equations[use.number]
        rows = RULES[equation.primitive.name].rows
        return rows(equation, use.position, read[use.number][1 - use.position], cotangents[use.number])

    found = [norm_of_arrays(grads)]
    for uses, sides in plan.by_rows:
        rows = [rows_of(use) for use in uses]
        found.append(norm_of(rows[0] if len(rows) == 1 else joined(rows, sides)))
    return norm_of_arrays(found)


def _replaced(params: list[Any], leaves: list[int], others: list[Any]) -> list[Any]:
    """The parameters, with those of these numbers from `others`."""
    given = dict(enumerate(params)) | dict(zip(leaves, others, strict=True))
    return list(given.values())


def _fixed_values(plan: Plan, params: list[Any]) -> dict[Any, Any]:
    """The values of all variables that do not depend on the example."""
    jaxpr = plan.closed.jaxpr
    values = dict(zip(jaxpr.constvars, plan.closed.consts, strict=True))
    values |= dict(zip(jaxpr.invars, params, strict=False))
    for number, equation in enumerate(jaxpr.eqns):
        if number not in plan.moving:
            values.update(zip(equation.outvars, evaluate_equation(equation, jaxpr, values), strict=True))
    return values


def _run(plan: Plan, fixed: dict[Any, Any], example: tuple[Any, ...], probes: dict[int, Any]) -> Any:
    """The loss, with something added to what the probed equations give; and what those read."""
    jaxpr, read = plan.closed.jaxpr, {}
    values = fixed | dict(zip(jaxpr.invars[len(jaxpr.invars) - len(example) :], example, strict=True))

    def value_of(atom):
        return values[atom] if _is_in(values, atom) and atom not in fixed else None

    for number, equation in enumerate(jaxpr.eqns):
        if number not in plan.moving:
            continue
        outputs = evaluate_equation(equation, jaxpr, values)
        if number in probes:
            read[number] = [value_of(atom) for atom in equation.invars]
            outputs = [outputs[0] + probes[number]]
        values.update(zip(equation.outvars, outputs, strict=True))
    return values[jaxpr.outvars[0]], read


def _is_in(table: Any, atom: Any) -> bool:
    return not isinstance(atom, jex.Literal) and atom in table


def _view(equation: Any, view: tuple[int, ...] | None) -> tuple[int, ...] | None:
    """The axes of a parameter behind an equation that keeps its entries."""
    if equation.primitive.name == "transpose" and view is not None:
        return tuple(view[n] for n in equation.params["permutation"])
    return view if equation.primitive.name in ("convert_element_type", "copy") else None


def _keeps_entries(equation: Any) -> bool:
    """Whether it gives the entries of the one array that it reads, each once."""
    if equation.primitive.name not in _SAME_ENTRIES:
        return False
    x, y = equation.invars[0].aval, equation.outvars[0].aval
    return x.size == y.size and trees.is_inexact(y)
