"""Which values of an array are contents, and which may be signs: NaN and infinities of which more can come.

The jaxpr is walked up to where the array meets the parameters. A product with them makes contents of it: the
derivative of `0 * NaN` is NaN, so that nothing is lost where the value is replaced. It may be a sign where
something finite can come of it before: NaN from a comparison, or from an operation that nobody knows; an
infinity from `exp(-inf)` or a divisor, too. What no product meets may be a sign as well.
"""

import enum
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.extend.core as jex
import jax.numpy as jnp

from optax_sam.arithmetic.jaxprs import called_by, parts_of_scan


class Meant(enum.Enum):
    """What of an array that is not finite may be a sign."""

    NOTHING = enum.auto()
    INFINITIES = enum.auto()
    ANYTHING = enum.auto()


class _Made(NamedTuple):
    """What a variable is made of.

    Attributes:
      arrays: those whose NaN would be NaN here. Of what depends on the parameters, only what was added to it.
      moves: whether it has a derivative by the parameters.
    """

    arrays: frozenset[int] = frozenset()
    moves: bool = False


_SUMS = frozenset(
    "add add_any all_gather all_gather_invariant all_to_all broadcast_in_dim complex concatenate conj "
    "convert_element_type copy copy_p cumsum dynamic_slice dynamic_update_slice gather imag neg "
    "optimization_barrier pad pbroadcast pcast ppermute psum psum_invariant pvary real reduce_precision "
    "reduce_scatter reduce_sum reduce_window_sum reshape rev scatter scatter-add scatter_add select_n "
    "sharding_constraint slice split squeeze stack stop_gradient sub tile transpose unstack".split()
)
"""What is linear: NaN and infinities stay, and no derivative multiplies with them."""
_CHOICES = frozenset(
    "clamp cummax cummin max min pmax pmin reduce_max reduce_min reduce_window_max reduce_window_min".split()
)
"""NaN stays, an infinity may be left out, and no derivative multiplies with them."""
_PRODUCTS = frozenset("conv_general_dilated dot_general mul".split())
_GROWING = frozenset("abs log log1p sqrt square".split())
"""What keeps NaN and infinities."""
_TAMING = frozenset(
    "acos acosh asin asinh atan atan2 atanh cbrt ceil cos cosh cumlogsumexp cumprod digamma erf erf_inv "
    "erfc exp exp2 expm1 floor integer_pow lgamma logistic reduce_prod rem round rsqrt sign sin sinh tan "
    "tanh".split()
)
"""What keeps NaN, and may make an infinity finite."""
_FLAT = frozenset("ceil floor round sign stop_gradient".split())
"""What has no derivative."""


def meant(jaxpr: jex.Jaxpr, is_param: Sequence[bool], is_array: Sequence[bool]) -> list[Meant]:
    """For each input of a function, what of it may be a sign; nothing of what is no array of interest."""
    walk = _Walk(set(), set(), set())
    pairs = enumerate(zip(is_param, is_array, strict=True))
    walk.through(jaxpr, [_Made(frozenset([n] * a), p) for n, (p, a) in pairs])

    def of_input(number, is_array):
        if not is_array:
            return Meant.NOTHING
        if number in walk.asked or number not in walk.multiplied:
            return Meant.ANYTHING
        return Meant.INFINITIES if number in walk.tamed else Meant.NOTHING

    return [of_input(number, a) for number, a in enumerate(is_array)]


class _Walk(NamedTuple):
    """The arrays of which NaN, or an infinity, may become finite, and those in products with parameters."""

    asked: set[int]
    tamed: set[int]
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
            return [_joined(parts) for parts in zip(*found, strict=True)]
        is_float = [jnp.issubdtype(getattr(x.aval, "dtype", bool), jnp.inexact) for x in equation.outvars]
        found = self._simple(name if all(is_float) else "a question", given)
        return [found._replace(moves=found.moves and n and name not in _FLAT) for n in is_float]

    def _simple(self, name: str, given: list[_Made]) -> _Made:
        whole = _joined(given)
        if name in _SUMS:
            return whole
        if name in _CHOICES:
            self.tamed.update(whole.arrays)
            return whole
        if name in _PRODUCTS or name == "div":
            return self._product(given, is_quotient=name == "div")
        if name in _TAMING:
            self.tamed.update(whole.arrays)
        elif name not in _GROWING:
            self.asked.update(whole.arrays)
            return _Made(moves=whole.moves)
        return _Made(moves=True) if whole.moves and name not in _FLAT else whole

    def _product(self, given: list[_Made], is_quotient: bool) -> _Made:
        first, second = given
        if is_quotient:  # what is divided by an infinity is zero
            self.tamed.update(second.arrays)
        if second.moves:
            self.multiplied.update(first.arrays)
        if first.moves:
            self.multiplied.update(second.arrays)
        if not (first.moves or second.moves):
            return _joined(given)
        if second.moves and (first.moves or is_quotient):  # its derivative multiplies with all
            return _Made(moves=True)
        return first if first.moves else second

    def _scan(self, equation: jex.JaxprEqn, given: list[_Made]) -> list[_Made]:
        first, number = parts_of_scan(equation)
        consts, carry, xs = given[:first], given[first : first + number], given[first + number :]
        while True:
            found = self.through(equation.params["jaxpr"], [*consts, *carry, *xs])
            joined = [_joined(pair) for pair in zip(carry, found[:number], strict=True)]
            if joined == carry:
                return found
            carry = joined


def _joined(parts: Sequence[_Made]) -> _Made:
    return _Made(frozenset().union(*(part.arrays for part in parts)), any(part.moves for part in parts))
