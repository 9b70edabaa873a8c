"""The examples that a gradient sees: rows of a batch, how much each counts, and what padding is worth."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optax_sam.arithmetic import batch_axis, keys, trees
from optax_sam.engine import padding
from optax_sam.engine.aliases import Batch, Params


class Rows(NamedTuple):
    """Arrays with one entry for each example, the batch axis first.

    Attributes:
      batch: a pytree, as the loss function takes it.
      indices: `int[batch]`, the examples' numbers in the data set, or None.
      weights: `float[batch]`, 0 for padding. None where all count alike.
      emphasis: `float[batch]`, by which examples count more in a gradient than in its loss, or None.
    """

    batch: Batch
    indices: Any = None
    weights: Any = None
    emphasis: Any = None


class ById:
    """A function that is equal to itself alone, whatever it says of `==`."""

    def __init__(self, function: Callable[..., Any]):
        self.function = function

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ById) and self.function is other.function

    def __hash__(self) -> int:
        return id(self.function)


class Slices(NamedTuple):
    """What slices have of their own: `Rows`, the sum of their weights, and their number."""

    rows: Rows
    total: Any
    number: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Examples:
    """The examples of one evaluation.

    What an example is worth in the whole is fixed by the batch: `padded` alone changes `total`. Examples
    that are drawn (`take`) or emphasized keep their share.

    Attributes:
      rows: the examples.
      total: `float[]`, the sum of the weights of the batch that they stand for. None where all count alike.
      key: a PRNG key for the loss function, or None.
      spare: a real row for the place of padding, or None. See `with_spare`.
      on_surrogate: `bool[]`, whether the surrogate is differentiated. None where that is certain.
      surrogate: the loss function in the place of the user's, or None.
      fraction: how many of the batch's examples these are.
      num_slices: into how many parts an evaluation is cut. 0 where it is not: its aux has no axis of slices.
      needs_losses: whether one loss per example is wanted.
      whole_batch: whether every example is to be used in this step.
      is_part: whether they are only a part of what the user's batch holds.
      by_size: whether a mean divides by the sizes of the weights: those of a slice may sum to 0.
      passes_share_key: whether another pass or draw has the same key.
    """

    rows: Rows
    total: Any = None
    key: Any = None
    spare: Any = None
    on_surrogate: Any = None
    surrogate: ById | None = dataclasses.field(default=None, metadata={"static": True})
    fraction: float = dataclasses.field(default=1.0, metadata={"static": True})
    num_slices: int = dataclasses.field(default=0, metadata={"static": True})
    needs_losses: bool = dataclasses.field(default=False, metadata={"static": True})
    whole_batch: bool = dataclasses.field(default=False, metadata={"static": True})
    is_part: bool = dataclasses.field(default=False, metadata={"static": True})
    by_size: bool = dataclasses.field(default=False, metadata={"static": True})
    passes_share_key: bool = dataclasses.field(default=False, metadata={"static": True})

    @property
    def size(self) -> int | None:
        """The number of examples; None for a batch without arrays."""
        return size_of(self.rows.batch)

    def per_part(self, number: int, what: str, repair: str) -> int:
        """How many examples each of several parts has; refuses a number that does not divide them."""
        if self.size is None:
            raise ValueError(
                f"{what} a batch without arrays, such as batch=(): pass the examples as the batch, every "
                f"leaf with the batch axis first, or choose a method that takes no parts of it."
            )
        if self.size % number:
            whole = round(self.size / self.fraction)
            drawn = f"the {self.size} examples that the step draws of {whole}"
            these = drawn if whole != self.size else f"the batch of {self.size} examples"
            raise ValueError(f"{what} {these}: {repair}.")
        return self.size // number

    def but(self, **changes: Any) -> "Examples":
        """The same with some fields changed."""
        return dataclasses.replace(self, **changes)

    def with_key(self, number: Any) -> "Examples":
        """Another pass or draw: with a key of its own, where the loss takes one and they do not share it."""
        return self if self.passes_share_key else self.with_key_of_part(number)

    def with_key_of_part(self, number: Any) -> "Examples":
        """A slice: with a key of its own, where the loss function takes one."""
        return self if self.key is None else self.but(key=keys.numbered(self.key, number))

    def with_key_of_one(self, number: Any) -> "Examples":
        """A single example, counted apart from passes and slices: its key is none of theirs."""
        return self.with_key_of_part(-1).with_key_of_part(number)

    def take(self, positions: jax.Array) -> "Examples":
        """The drawn examples only; `positions`: `int[strata, drawn]`, inside each contiguous part."""
        rows = jax.tree.map(lambda x: batch_axis.take_rows(x, positions), self.rows)
        is_part = self.is_part or positions.size != self.size
        return self.but(
            rows=rows, fraction=self.fraction * positions.size / (self.size or 1), is_part=is_part
        )

    def padded(self, real: jax.Array) -> "Examples":
        """Examples where `real` (`bool[batch]`) is False are padding."""
        weights = self.rows.weights
        weights = real.astype(float) if weights is None else jnp.where(real, weights, jnp.zeros_like(weights))
        return self.but(rows=self.rows._replace(weights=weights), total=weights.sum(), spare=None)

    def emphasized(self, emphasis: jax.Array) -> "Examples":
        """Examples that count `emphasis` times their weight in a gradient; its loss stays the same mean."""
        emphasis = jnp.asarray(emphasis)
        wide = trees.accumulator_dtype(emphasis.dtype) if trees.is_inexact(emphasis) else float
        emphasis = emphasis.astype(wide)  # weights are multiplied with it in its dtype
        if self.size is not None and emphasis.shape != (self.size,):
            raise ValueError(
                f"emphasis has the shape {emphasis.shape} for a batch of {self.size} examples: return one "
                "number for each."
            )
        if self.rows.weights is not None:  # what padding says is no number to multiply with
            emphasis = jnp.where(self.rows.weights != 0, emphasis, jnp.zeros_like(emphasis))
        return self.but(rows=self.rows._replace(emphasis=emphasis), needs_losses=True)

    def alone(self, row: Any, number: Any) -> "Examples":
        """One example of the batch, for a loop over them, with a key of its own."""
        batch = jax.tree.map(lambda x: x[None], row)
        one = self.with_key_of_one(number)
        return one.but(rows=Rows(batch), total=None, num_slices=0, fraction=self.fraction / (self.size or 1))

    def split(self, num_slices: int, apart: bool = False) -> "Slices":
        """Contiguous slices, with a leading axis of `num_slices`.

        Args:
          num_slices: must divide the batch.
          apart: whether each lies on devices of its own. Else each is split over all of them.
        """
        self.per_part(
            num_slices,
            f"num_microbatches={num_slices} does not divide",
            "choose a divisor, or pad the batch with examples of weight 0",
        )
        cut = batch_axis.split_rows if apart else batch_axis.split_each_part
        rows = jax.tree.map(lambda x: cut(x, num_slices), self.rows)
        total = None if rows.weights is None else rows.weights.sum(axis=1)
        return Slices(rows, total, jnp.arange(num_slices))

    def shared_by(self, num_slices: int) -> "Examples":
        """What all slices share: everything but rows and shares."""
        return self.but(rows=Rows(()), total=None, is_part=self.is_part or num_slices > 1)

    def of_slice(self, part: "Slices") -> "Examples":
        """The examples of one slice, with a key of its own."""
        return self.but(rows=part.rows, total=part.total).with_key_of_part(part.number)

    def with_spare(self, params: Params) -> "Examples":
        """The same, knowing a real row for the place of padding: all passes of a step share it.

        Args:
          params: where the examples are seen. Other devices of a `jax.shard_map` with the same ones may lend
            the row.
        """
        if self.rows.weights is None or self.spare is not None:
            return self
        return self.but(spare=padding.spare_row(self.rows.batch, self.rows.weights, params))

    def without_padding(self, params: Params, they_meet: bool = False) -> "Examples":
        """A real row in the place of each row of padding.

        Args:
          params: see `with_spare`.
          they_meet: whether examples meet in the loss, which then has a mask of its own: padding stays as it
            is, but for what is not finite.
        """
        if self.rows.weights is None:
            return self
        spare = self.with_spare(params).spare
        batch = padding.without_padding(self.rows.batch, self.rows.weights, spare, they_meet)
        return self.but(rows=self.rows._replace(batch=batch))

    def see_the_same(self, other: "Examples") -> bool:
        """Whether both have the same losses of the same examples."""
        mine, others = (jax.tree.leaves((e.rows.batch, e.rows.weights)) for e in (self, other))
        same_rows = len(mine) == len(others) and all(x is y for x, y in zip(mine, others, strict=True))
        same_loss = self.surrogate == other.surrogate and self.on_surrogate is other.on_surrogate
        return same_rows and same_loss


def size_of(batch: Batch) -> int | None:
    """The number of examples; None for a batch without arrays."""
    leaves = jax.tree.leaves(batch)
    return leaves[0].shape[0] if leaves else None


def check_rows(rows: Rows) -> None:
    """Refuses leaves, indices or weights whose first axis is not that of the batch."""
    size = None
    for path, leaf in jax.tree.leaves_with_path(rows.batch):
        name = "batch" + jax.tree_util.keystr(path)
        if not leaf.shape:
            raise ValueError(
                f"{name} has dtype {leaf.dtype} and no batch axis: every leaf of batch has the "
                f"batch axis first. Pass scalars, keys and batch statistics as further arguments, "
                f"value_and_grad(losses)(params, batch, *args, state=...)."
            )
        size = leaf.shape[0] if size is None else size
        if leaf.shape[0] != size:
            raise ValueError(
                f"{name} has shape {leaf.shape}, but the batch has {size} examples: every leaf of "
                f"batch has the batch axis first."
            )
    if size == 0:
        raise ValueError("batch has 0 examples: pass at least one.")
    kinds = {
        "indices": ((jnp.integer,), "integers"),
        "weights": ((jnp.floating, jnp.integer, bool), "numbers"),
    }
    for name, (accepted, words) in kinds.items():
        array = getattr(rows, name)
        if array is None:
            continue
        if not any(jnp.issubdtype(array.dtype, kind) for kind in accepted):
            raise TypeError(f"{name} has dtype {array.dtype}: pass an array of {words}, one per example.")
        if array.shape != (size,):
            raise ValueError(
                f"{name} has shape {array.shape}, but the batch has {size} examples: pass one "
                f"entry per example, shape ({size},)."
            )
