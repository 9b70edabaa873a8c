"""A loss on data at one place: what every measurement here is made of.

The host drives every measurement. So the data may be larger than the memory, and a long measurement shows its
progress. What is done on one batch is one compiled program.
"""

import dataclasses
import functools
import operator
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optax_sam.arithmetic import batch_axis, trees
from optax_sam.arithmetic.jaxprs import canonical_convolutions, equations_of
from optax_sam.engine import checks
from optax_sam.engine.arrays import as_arrays
from optax_sam.engine.examples import Rows, check_rows, size_of
from optax_sam.engine.losses import mean_loss
from optax_sam.sharpness.progress import Steps
from optax_sam.sharpness.reuse import traced_anew

Floats = list[jax.Array]
"""The float leaves of the parameters, or a vector with as many entries, in float32 or wider."""

norm, inner = jax.jit(trees.norm), jax.jit(trees.inner)
"""Compiled once: called by the host, the conditional in a norm would be compiled anew in each call."""


class NotFiniteError(ValueError):
    """A loss, a gradient or a product is infinite or NaN, so that there is nothing to measure."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Point:
    """Parameters, their float leaves apart from the rest.

    Attributes:
      floats: the leaves that are differentiated.
      others: integer, zero-size leaves.
      treedef: of the parameters.
      is_float: which leaf is which.
    """

    floats: Floats
    others: list[Any]
    treedef: Any = dataclasses.field(metadata={"static": True})
    is_float: tuple[bool, ...] = dataclasses.field(metadata={"static": True})

    def params(self, floats: Floats | None = None) -> Any:
        """The parameters, with these float leaves."""
        return self._tree(self.floats if floats is None else floats, self.others)

    def vector(self, floats: Floats) -> Any:
        """A tree like the parameters with these float leaves, and zeros in place of the others."""
        return self._tree(floats, [jnp.zeros_like(x) for x in self.others])

    def moved(self, by: Floats) -> "Point":
        """The point at `params + by`."""
        return dataclasses.replace(self, floats=trees.add_perturbation(self.floats, by))

    def _tree(self, floats: Floats, others: list[Any]) -> Any:
        supply, rest = iter(floats), iter(others)
        return self.treedef.unflatten([next(supply if f else rest) for f in self.is_float])


def point_of(params: Any) -> Point:
    """The parameters as a point, without Flax NNX's variables around them."""
    params = trees.plain(params)
    leaves, treedef = jax.tree.flatten(params)
    _refuse_traced("params", leaves)
    leaves = jax.tree.leaves(as_arrays("params", params))
    is_float = tuple(bool(trees.is_inexact(x) and x.size) for x in leaves)
    for (path, _), x in zip(jax.tree.leaves_with_path(params), leaves, strict=True):
        if jnp.iscomplexobj(x):
            name = jax.tree_util.keystr(path)
            raise ValueError(f"params{name} has dtype {x.dtype}: split it into a real and an imaginary leaf.")
    if not any(is_float):
        raise ValueError("params has no float leaves: there is nothing to move.")
    floats, others = (
        [x for x, f in zip(leaves, is_float, strict=True) if f is kind] for kind in (True, False)
    )
    return Point(floats, others, treedef, is_float)


def _refuse_traced(name: str, tree: Any) -> None:
    if any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(tree)):
        raise TypeError(f"{name} are traced, but the host drives a measurement: call it outside of jax.jit.")


def floats_of(name: str, tree: Any, point: Point) -> Floats:
    """The float leaves of a tree like the parameters, in float32 or wider. Integers there become floats."""
    leaves, treedef = jax.tree.flatten(trees.plain(tree))
    shapes = [np.shape(x) for x in jax.tree.leaves(point.params())]
    if treedef != point.treedef or [np.shape(x) for x in leaves] != shapes:
        found = jax.tree.map(np.shape, trees.plain(tree))
        raise ValueError(f"{name} has the shapes {found}, unlike params: pass a tree like params.")
    chosen = [jnp.asarray(x) for x, f in zip(leaves, point.is_float, strict=True) if f]
    if any(map(jnp.iscomplexobj, chosen)):
        raise ValueError(f"{name} is complex, unlike params: pass its real and imaginary part one by one.")
    floats = [
        x if trees.is_inexact(x) else x.astype(w.dtype) for x, w in zip(chosen, point.floats, strict=True)
    ]
    return trees.widen(floats)


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """A loss at a point, as the mean over all examples of one or of many batches.

    Attributes:
      loss_fn: `loss_fn(params, batch)`.
      point: the parameters.
      batches: as the user handed them in.
      programs: compiled for this loss, by function.
      first: the number of the first batch, among those that this one was cut from.
    """

    loss_fn: Any
    point: Point
    batches: Any
    programs: dict[Any, Callable[..., Any]] = dataclasses.field(default_factory=dict)
    first: int = 0

    @classmethod
    def of(cls, loss_fn: Any, params: Any, batches: Any) -> "Problem":
        """Checks what the user handed in."""
        checks.function("loss_fn", loss_fn, "loss_fn(params, batch) -> [batch]")
        if hasattr(batches, "__next__"):
            raise TypeError(
                f"batches={batches!r} is an iterator, which ends after one pass: pass one batch, a list of "
                "batches, or what can be iterated over again, such as tfds.as_numpy(dataset)."
            )
        _refuse_traced("batches", batches)
        return cls(loss_fn, point_of(params), batches)

    @property
    def size(self) -> int:
        """How many float parameters there are."""
        return sum(x.size for x in self.point.floats)

    @functools.cached_property
    def is_many(self) -> bool:
        """Whether there are batches: a list, or what is iterable and no tree of arrays."""
        if isinstance(self.batches, list):
            return True
        one_leaf = jax.tree_util.all_leaves([self.batches])
        is_array = hasattr(self.batches, "shape") and hasattr(self.batches, "dtype")
        return one_leaf and not is_array and hasattr(self.batches, "__iter__")

    @property
    def count(self) -> int | None:
        """How many batches there are, or None where that shows only at the end."""
        if not self.is_many:
            return 1
        count = operator.length_hint(self.batches, -1)  # a dataset's `len` may raise
        return None if count < 0 else count

    def __iter__(self) -> Iterator[tuple[Any, int]]:
        """Each batch, and how many examples it has."""
        number = -1
        for number, batch in enumerate(self.batches if self.is_many else [self.batches]):
            batch = as_arrays(f"batch {number}", jax.tree.map(_kept, batch))
            check_rows(Rows(batch))
            size = size_of(batch)
            if size is None:
                raise ValueError(
                    f"batch {number} has no arrays: pass a tree with the examples on the first axis."
                )
            yield batch, size
        if number < 0:
            raise ValueError("batches is empty: pass at least one.")

    def parts(self, size: int | None) -> Iterator[tuple["Problem", int]]:
        """The problems of so many examples each, cut from the batches, or of each batch with None."""
        count = 0
        for number, (batch, rows) in enumerate(self):
            step = rows if size is None else size
            if rows % step:
                raise ValueError(
                    f"microbatch_size={size} does not divide batch {number} of {rows} examples: "
                    "choose a divisor."
                )
            for first in range(0, rows, step):
                part = batch if step == rows else _rows(batch, first, first + step)
                yield dataclasses.replace(self, batches=[part], first=self.first + count), step
                count += 1

    def numbered(self) -> Iterator[tuple[np.int32, Any, int]]:
        """Each batch behind its number, which is the same in every pass, and before its size."""
        for number, (batch, size) in enumerate(self, self.first):
            yield np.int32(number), batch, size

    def mean(
        self, function: Callable[..., Any], *rest: Any, steps: Steps | None = None, numbered: bool = False
    ) -> Any:
        """The mean of `function(loss_fn, point, batch, *rest)` over all examples, a tree of arrays.

        With `numbered` the number of the batch comes behind the batch.
        """
        program = self.program(function)
        mean, examples = None, 0
        for number, batch, size in self.numbered():
            given = (number, *rest) if numbered else rest
            part, examples = trees.widen(program(self.point, batch, *given)), examples + size
            mean = part if mean is None else _mixed(mean, part, size / examples)
            if steps:
                steps.advance()
        return mean

    def program(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function` with the loss function, compiled. On a CPU it runs at full speed anywhere.

        What a loss function reads may have changed since the last measurement, so it is compiled anew. A
        `jax.tree_util.Partial` is traced anew, and compiled only if it is another program than before.
        """
        if function not in self.programs and _is_reusable(self.loss_fn):
            self.programs[function] = traced_anew(function, self.loss_fn)
        elif function not in self.programs:
            alone = functools.partial(function, self.loss_fn)
            self.programs[function] = jax.jit(canonical_convolutions(alone))
        return self.programs[function]

    def at(self, point: Point) -> "Problem":
        """The same loss at another point."""
        return dataclasses.replace(self, point=point)

    def loss(self) -> float:
        """The mean of the losses."""
        return float(self.mean(loss_at))

    def finite_loss(self) -> float:
        """The mean of the losses, or an error."""
        loss = self.loss()
        if not np.isfinite(loss):
            raise NotFiniteError(f"the loss at params is {loss}: measure where the loss is finite.")
        return loss

    def finite_loss_within(self, rho: Any) -> float:
        """The mean of the losses at a perturbed point, or an error."""
        loss = self.loss()
        if not np.isfinite(loss):
            raise NotFiniteError(
                f"the loss within rho={rho} of params is {loss}: lower rho, or measure where the gradient "
                "is finite."
            )
        return loss

    def gradient(self) -> Floats:
        """The gradient of the mean loss."""
        return self.mean(gradient_at)


def _kept(x: Any) -> Any:
    """A copy of an array of NumPy: a loader may fill it anew while it is still on its way to the device."""
    return x.copy() if isinstance(x, np.ndarray) else x


def _rows(batch: Any, first: int, last: int) -> Any:
    """Some rows; of a batch whose type says how it is split, whole on every device."""
    return jax.tree.map(lambda x: batch_axis.look_up(x, jnp.arange(first, last)), batch)


@functools.partial(jax.jit, donate_argnums=0)
def _mixed(mean: Any, part: Any, share: Any) -> Any:
    """The mean with a part that has this share of all examples."""
    return trees.map_inexact(lambda x, y: trees.times(1 - share, x) + trees.times(share, y), mean, part)


def _is_reusable(loss_fn: Any) -> bool:
    """Whether all that a loss function closes over are arrays of a tree; a flag shapes the program."""
    return all(isinstance(x, jax.Array | np.ndarray) for x in jax.tree.leaves(loss_fn))


def check_product(number: float) -> None:
    """Refuses what comes of a product that is not finite."""
    if not np.isfinite(number):
        raise NotFiniteError(
            "a product with the curvature matrix is not finite: make sure that the loss is smooth at params."
        )


def loss_at(loss_fn: Any, point: Point, batch: Any) -> jax.Array:
    """The mean of the losses of a batch, `float[]`."""
    return of_floats(loss_fn, point, batch)(point.floats)


def gradient_at(loss_fn: Any, point: Point, batch: Any) -> Floats:
    """The gradient of the mean loss of a batch."""
    return trees.widen(jax.grad(of_floats(loss_fn, point, batch))(point.floats))


def of_floats(loss_fn: Any, point: Point, batch: Any) -> Callable[[Floats], jax.Array]:
    """The mean loss of a batch as a function of the float leaves."""
    losses = functools.partial(alone, loss_fn)
    return lambda floats: mean_loss(losses, point.params(floats), batch)


def alone(loss_fn: Any, params: Any, batch: Any) -> Any:
    """The losses without what may come with them."""
    returned = loss_fn(*trees.anew((params, batch)))
    if isinstance(returned, tuple) and len(returned) != 2:
        raise ValueError(
            f"loss_fn returned a tuple of {len(returned)}: return the losses, shape [batch], or "
            "(losses, aux)."
        )
    return returned[0] if isinstance(returned, tuple) else returned


def computing_precision(problem: Problem) -> float:
    """The last place of 1 in the coarsest float type that the loss computes in, or the parameters have."""
    batch, _ = next(iter(problem))
    program = jax.make_jaxpr(of_floats(problem.loss_fn, problem.point, batch))(problem.point.floats)
    inside = [v.aval for equation in equations_of(program) for v in equation.outvars]
    types = {x.dtype for x in (*inside, *problem.point.floats) if hasattr(x, "dtype")}
    return max(float(jnp.finfo(x).eps) for x in types if jax.dtypes.issubdtype(x, jnp.floating))


@functools.partial(jax.jit, static_argnums=0)
def _drawn(draw: Callable[..., Floats], key: jax.Array, like: Floats) -> Floats:
    return draw(key, like)


def random_vector(draw: Callable[..., Floats], key: jax.Array, point: Point) -> Floats:
    """Random entries from `draw(key, like)` in float32 or wider, split over devices as the parameters."""
    drawn = _drawn(draw, key, trees.widen(point.floats))
    return [jax.device_put(x, w.sharding) for x, w in zip(drawn, point.floats, strict=True)]
