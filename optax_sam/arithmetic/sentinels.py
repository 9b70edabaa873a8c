"""Which values of an array are signs, not contents: infinities that are added, NaN that is asked for.

The jaxpr is walked up to where the array meets the parameters. Where it is added to what is made of them, no
derivative multiplies with it, and an infinity is as harmless in the gradient as in the function. So it is
where a function comes between that is finite at infinity, as `exp(-inf)` is. Where it is compared, or sorted
by, shifted and scaled as it may be, any value may be meant. So it is where anything that is made of it is
asked for NaN. All else counts as contents.
"""

import enum
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.extend.core as jex

from optax_sam.arithmetic.jaxprs import called_by, parts_of_scan


class Meant(enum.Enum):
    """What of an array that is not finite may be a sign."""

    NOTHING = enum.auto()
    INFINITIES = enum.auto()
    ANYTHING = enum.auto()


class _Made(NamedTuple):
    """What a variable is made of.

    Attributes:
      views: the arrays whose entries it has, shifted and scaled by constants.
      tested: the arrays that are tested where it is: all but those of which it has the largest entry, since
        `logsumexp` tests that.
      arrays: all arrays that it is made of, up to where they meet the parameters.
      moves: whether it depends on the parameters.
    """

    views: frozenset[int] = frozenset()
    tested: frozenset[int] = frozenset()
    arrays: frozenset[int] = frozenset()
    moves: bool = False

    def joined(self, other: "_Made") -> "_Made":
        views, tested, arrays = (one | another for one, another in zip(self[:3], other[:3], strict=True))
        return _Made(views, tested, arrays, self.moves or other.moves)


_COMPARISONS = frozenset("is_nan eq ne lt le gt ge is_finite sort top_k approx_top_k argmax argmin".split())
_SHIFTS_AND_SCALES = frozenset("neg abs add sub mul div".split())
_TAMING = frozenset("exp exp2 logistic tanh erf erfc sign atan".split())
"""What makes an infinity finite, or may do so."""
_VIEWS = frozenset(
    "broadcast_in_dim concatenate convert_element_type copy copy_p dynamic_slice gather optimization_barrier "
    "pcast pvary reshape rev sharding_constraint slice split squeeze stop_gradient transpose".split()
)
_SUMS = frozenset(
    "add add_any sub max min select_n clamp concatenate pad dynamic_update_slice scatter scatter-add "
    "scatter_add".split()
)


def meant(jaxpr: jex.Jaxpr, is_param: Sequence[bool], is_array: Sequence[bool]) -> list[Meant]:
    """For each input of a function, what of it may be a sign; nothing of what is no array of interest."""
    walk = _Walk(set(), set())
    pairs = enumerate(zip(is_param, is_array, strict=True))
    walk.through(jaxpr, [_Made(*[frozenset([n] * a)] * 3, moves=p) for n, (p, a) in pairs])

    def of_input(number, is_array):
        if number in walk.compared:
            return Meant.ANYTHING
        return Meant.INFINITIES if is_array and number not in walk.multiplied else Meant.NOTHING

    return [of_input(number, a) for number, a in enumerate(is_array)]


class _Walk(NamedTuple):
    """The arrays that are compared, and those that stand in products with parameters, as found so far."""

    compared: set[int]
    multiplied: set[int]

    def through(self, jaxpr: jex.Jaxpr | jex.ClosedJaxpr, given: Sequence[_Made]) -> list[_Made]:
        """Of what the outputs are made."""
        jaxpr = jaxpr.jaxpr if isinstance(jaxpr, jex.ClosedJaxpr) else jaxpr
        known: dict[Any, _Made] = dict(zip(jaxpr.invars, given, strict=True))

        def made(atom):
            return _Made() if isinstance(atom, jex.Literal) else known.get(atom, _Made())

        for equation in jaxpr.eqns:
            found = self._equation(equation, [made(atom) for atom in equation.invars])
            known.update(zip(equation.outvars, found, strict=True))
        return [made(atom) for atom in jaxpr.outvars]

    def _equation(self, equation: jex.JaxprEqn, given: list[_Made]) -> list[_Made]:
        name = equation.primitive.name
        if (inner := called_by(equation)) is not None:
            return self.through(inner, given)
        if name == "scan":
            return self._scan(equation, given)
        if name == "cond":
            found = [self.through(branch, given[1:]) for branch in equation.params["branches"]]
            return [_all(parts) for parts in zip(*found, strict=True)]
        is_nan = name == "ne" and equation.invars[0] is equation.invars[1]
        return [self._simple("is_nan" if is_nan else name, given)] * len(equation.outvars)

    def _simple(self, name: str, given: list[_Made]) -> _Made:
        whole = _all(given)
        if name in _COMPARISONS:
            tested = {"is_nan": whole.arrays, "is_finite": whole.tested}
            self.compared.update(tested.get(name, whole.views))
            return _Made(moves=whole.moves)
        if name == "div":  # what is divided by an infinity is zero
            whole = given[0].joined(_Made(moves=given[1].moves))
        if name in _TAMING:
            whole = _Made(moves=whole.moves)
        if whole.moves:
            if name not in _SUMS:
                self.multiplied.update(whole.arrays)
            return _Made(moves=True)
        if name in _VIEWS or (name in _SHIFTS_AND_SCALES and sum(bool(x.arrays) for x in given) == 1):
            return whole
        return whole._replace(views=frozenset(), tested=whole.tested if name != "reduce_max" else frozenset())

    def _scan(self, equation: jex.JaxprEqn, given: list[_Made]) -> list[_Made]:
        first, number = parts_of_scan(equation)
        consts, carry, xs = given[:first], given[first : first + number], given[first + number :]
        while True:
            found = self.through(equation.params["jaxpr"], [*consts, *carry, *xs])
            joined = [_all(pair) for pair in zip(carry, found[:number], strict=True)]
            if joined == carry:
                return found
            carry = joined


def _all(parts: Sequence[_Made]) -> _Made:
    whole = _Made()
    for part in parts:
        whole = whole.joined(part)
    return whole
