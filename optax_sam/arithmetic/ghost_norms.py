"""Norms of single examples' gradients, without those gradients.

The gradient of one example with respect to a dense layer's weights is `A^T D`, with a row of `A` (inputs)
and of `D` (cotangents of outputs) for each position at which the layer is used. Its norm needs the two
alone: `||A^T D||^2 = sum (A A^T) * (D D^T)`. One backward pass to the outputs of those equations that
read parameters, without the gradient of any weight, gives every `D`.

The jaxpr of one example's loss is walked. Equations that read parameters and have a rule
(`ghost_rules.py`) are treated so. For all others, and for parameters whose parts meet in a way that the
rules do not know, the example's cotangent is computed as `vmap` would, equation by equation.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.extend.core as jex
import jax.numpy as jnp

from optax_sam.arithmetic import trees
from optax_sam.arithmetic.ghost_rules import RULES, Sides, joined, squared_norm
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
    """What is done with each use.

    Attributes:
      closed: the jaxpr of one example's loss, which reads parameters, then the example.
      moving: the numbers of the equations that depend on the example.
      by_rows: for each parameter whose norm comes of rows, its uses and their sides.
      others: the uses of all other parameters.
      leaves: the numbers of those parameters.
      depends: whether the loss depends on the example.
    """

    closed: jex.ClosedJaxpr
    moving: frozenset[int]
    by_rows: list[tuple[list[Use], list[Sides]]]
    others: list[Use]
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
      examples: a pytree; every leaf has the examples first.
    """
    leaves, treedef = jax.tree.flatten(examples)

    def flat_loss(params, example):
        return loss(params, jax.tree.unflatten(treedef, example))

    one = [jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for x in leaves]
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
    others = [use for use in uses if not behind[use.variable] & rowed]
    leaves = sorted(frozenset().union(*(behind[use.variable] for use in others)))
    depends = _is_in(moving, jaxpr.outvars[0])
    return Plan(closed, frozenset(numbers), by_rows, others, leaves, depends)


def _sides(uses: list[Use], jaxpr: jex.Jaxpr, views: dict[Any, Any]) -> list[Sides] | None:
    """How one parameter is seen in each of its uses; None where a rule or a common view is missing."""
    found = []
    for use in uses:
        equation = jaxpr.eqns[use.number]
        rule = RULES.get(equation.primitive.name)
        sides = rule.sides(equation, use.position) if rule else None
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


def _turned(sides: Sides, view: tuple[int, ...]) -> Sides | None:
    """The sides by the parameter's own axes; None where those stand in another order."""
    left = tuple(view[n] for n in sides.left)
    right = tuple(axis for n, axis in enumerate(view) if n not in sides.left)
    in_order = sorted(left) == list(left) and sorted(right) == list(right)
    return Sides(left, right, sides.whole) if in_order else None


def _of_example(plan: Plan, params: list[jax.Array], example: tuple[jax.Array, ...]) -> jax.Array:
    """The norm for one example."""
    fixed = _fixed_values(plan, params)
    numbers = {use.number for use in itertools.chain(plan.others, *(uses for uses, _ in plan.by_rows))}
    probes = {
        n: [
            jnp.zeros(v.aval.shape, v.aval.dtype)
            for v in plan.equations[n].outvars
            if trees.is_inexact(v.aval)
        ]
        for n in sorted(numbers)
    }

    def backward(probes):
        loss, pull, read = jax.vjp(lambda probes: _run(plan, fixed, example, probes), probes, has_aux=True)
        return pull(jnp.ones_like(loss))[0], read

    cotangents, read = canonical_convolutions(backward)(probes)
    largest, cotangents = _in_units_of_the_largest(cotangents)
    total = jnp.zeros_like(largest)

    def rows_of(use):
        equation = plan.equations[use.number]
        (other,) = [v for n, v in enumerate(equation.invars) if n != use.position]
        values = read[use.number]
        return RULES[equation.primitive.name].rows(
            equation, use.position, values[equation.invars.index(other)], cotangents[use.number][0]
        )

    for uses, sides in plan.by_rows:
        rows = [rows_of(use) for use in uses]
        found = squared_norm(rows[0] if len(rows) == 1 else joined(rows, sides))
        total += found.astype(total.dtype)
    for grads in _by_equation(plan, params, fixed, read, cotangents):
        total += jnp.sum(jnp.square(trees.widen(grads))).astype(total.dtype)
    return largest * jnp.sqrt(total)


def _in_units_of_the_largest(tree: Any) -> tuple[jax.Array, Any]:
    """The largest entry, and the tree divided by it: squares then neither overflow nor vanish."""
    found = [x for x in jax.tree.leaves(tree) if x.size]
    wide = jnp.float64 if any(x.dtype == jnp.float64 for x in found) else jnp.float32
    sizes = [jnp.max(jnp.abs(x)).astype(wide) for x in found]
    largest = functools.reduce(jnp.maximum, sizes) if sizes else jnp.zeros([], wide)
    return largest, trees.divide(tree, largest)


def _by_equation(plan, params, fixed, read, cotangents) -> list[jax.Array]:
    """The gradients of one example with respect to the parameters that have no rows."""

    def of_leaves(leaves):
        given = list(params)
        for number, x in zip(plan.leaves, leaves, strict=True):
            given[number] = x
        values = _fixed_values(plan, given)
        return [values[use.variable] for use in plan.others]

    values, pull = jax.vjp(of_leaves, [params[n] for n in plan.leaves])
    parts = []
    for use, value in zip(plan.others, values, strict=True):
        equation = plan.equations[use.number]
        known = fixed | {
            v: x for v, x in zip(equation.invars, read[use.number], strict=True) if x is not None
        }
        parts.append(_pulled(plan, use, value, known, cotangents[use.number]))
    return pull(parts)[0]


def _pulled(plan: Plan, use: Use, value: Any, known: dict[Any, Any], cotangents: list[Any]) -> Any:
    """The cotangent of what one equation reads at one position, the others being known."""
    equation, jaxpr = plan.equations[use.number], plan.closed.jaxpr
    own = jex.Var(use.variable.aval)  # the equation may read the same variable twice: two uses
    invars = [own if n == use.position else v for n, v in enumerate(equation.invars)]

    def outputs(x):
        found = evaluate_equation(equation.replace(invars=invars), jaxpr, known | {own: x})
        return [y for y in found if trees.is_inexact(y)]

    return jax.vjp(outputs, value)[1](cotangents)[0]


def _fixed_values(plan: Plan, params: list[Any]) -> dict[Any, Any]:
    """The values of all variables that do not depend on the example."""
    jaxpr = plan.closed.jaxpr
    values = dict(zip(jaxpr.constvars, plan.closed.consts, strict=True))
    values |= dict(zip(jaxpr.invars, params, strict=False))
    for number, equation in enumerate(jaxpr.eqns):
        if number not in plan.moving:
            values.update(zip(equation.outvars, evaluate_equation(equation, jaxpr, values), strict=True))
    return values


def _run(plan: Plan, fixed: dict[Any, Any], example: tuple[Any, ...], probes: dict[int, list[Any]]) -> Any:
    """The loss, with something added to what the probed equations give; and what those read."""
    jaxpr, read = plan.closed.jaxpr, {}
    values = fixed | dict(zip(jaxpr.invars[len(jaxpr.invars) - len(example) :], example, strict=True))

    def value_of(atom):
        return None if isinstance(atom, jex.Literal) or atom in fixed else values[atom]

    for number, equation in enumerate(jaxpr.eqns):
        if number not in plan.moving:
            continue
        outputs = evaluate_equation(equation, jaxpr, values)
        if number in probes:
            read[number] = [value_of(atom) for atom in equation.invars]
            added = iter(probes[number])
            outputs = [x + next(added) if trees.is_inexact(x) else x for x in outputs]
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
