"""A function traced once for each shape and mesh, and run again as it was."""

import dataclasses
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import jax
import jax.extend.core as jex

from optax_sam.arithmetic.jaxprs import canonical, with_arrays


class Traced(NamedTuple):
    """A function of arrays, as it was when it was traced.

    Attributes:
      jaxpr: its equations. What it closes over are their constants.
      run: the same as a function of constants and arguments, convolutions in canonical form on a CPU.
      compiled: `run` as one equation of whatever is traced around it.
      treedef: of what it returns.
      function: the function itself, kept so that its identity is not given to another.
    """

    jaxpr: jex.ClosedJaxpr
    run: Callable[..., list[Any]]
    compiled: Callable[..., list[Any]]
    treedef: Any
    function: Any


@dataclasses.dataclass(eq=False)
class Held:
    """Functions of one step, each called once for all arguments of the same types.

    A name that a function closes over may be assigned anew after the first call: a notebook's variable, an
    attribute, an entry of a dict. What is run again is the trace. (An array of NumPy that is changed in place
    is not held.)
    """

    traced: dict[Any, Traced] = dataclasses.field(default_factory=dict)
    looked_at: list[Traced] = dataclasses.field(default_factory=list)

    def trace(self, key: Hashable, function: Callable[..., Any], *args: Any) -> Traced:
        """`function`, traced for the types of `args`; `key` says what else it depends on."""
        leaves, treedef = jax.tree.flatten(args)
        types = tuple(map(jax.typeof, leaves))
        key = key, treedef, types, jax.sharding.get_abstract_mesh()
        if key not in self.traced:
            jaxpr, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
            jaxpr = with_arrays(jaxpr)
            run = canonical(jaxpr)
            run.__name__ = function.__name__  # as profiles show it
            self.traced[key] = Traced(jaxpr, run, jax.jit(run), jax.tree.structure(shapes), function)
        return self.traced[key]

    def call(self, key: Hashable, function: Callable[..., Any], *args: Any) -> Any:
        """`function(*args)`."""
        found = self.trace(key, function, *args)
        arrays = [*found.jaxpr.consts, *jax.tree.leaves(args)]
        # Where nothing is traced, a compiled function would be compiled anew in every step.
        is_traced = any(isinstance(x, jax.core.Tracer) for x in arrays)
        return jax.tree.unflatten(found.treedef, (found.compiled if is_traced else found.run)(*arrays))
