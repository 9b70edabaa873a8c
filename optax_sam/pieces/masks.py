"""Which entries of a perturbation are kept, as Optax transformations.

With a mask behind `to_radius`, what is kept has a part of the radius. With a mask before it, what is kept has
the whole radius.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from optax_sam.arithmetic import keys, random_trees, sharding, shares, trees
from optax_sam.engine import checks
from optax_sam.engine.hyperparameters import Count, FixedProbability, Scalar, Seed, Share
from optax_sam.pieces.bases import Ascent, transformation


class MaskState(NamedTuple):
    """State of `fisher_mask` and `dynamic_mask`.

    Attributes:
      mask: `bool` trees like the parameters: which entries are perturbed. Changes when it is renewed.
    """

    mask: Any


@dataclasses.dataclass(frozen=True)
class FisherMask(Ascent):
    """See `fisher_mask`."""

    sparsity: float
    refresh_steps: int
    num_samples: int
    pattern: str
    outputs_first: bool

    says_how_far: ClassVar[bool] = False
    draws: ClassVar[int] = 0

    def init(self, params: Any) -> MaskState:
        mask = jax.tree.map(lambda x: jnp.zeros(jnp.shape(x), bool), params)
        return MaskState(mask)

    def update(
        self,
        updates: Any,
        state: MaskState,
        params: Any = None,
        *,
        step: Any = None,
        oracle: Any = None,
        **extra_args: Any,
    ) -> tuple[Any, MaskState]:
        del extra_args

        def renewed():
            return self._kept(oracle.root_mean_squares(oracle.params, self.num_samples))

        due = step % self.refresh_steps == 0
        # The first renewal is made up, where the step that was to have it was lost.
        if self._keeps_some(updates):
            due |= ~_any(state.mask)
        mask = oracle.cond(due, renewed, lambda: state.mask)
        return masked(updates, state.mask), MaskState(mask)

    def _keeps_some(self, updates: Any) -> bool:
        size = _size(updates)
        wanted = {"unstructured": _num_live(updates, self.sparsity), "structured": self._wanted(size)}
        return wanted.get(self.pattern, size) > 0

    def _wanted(self, size: int) -> int:
        """Of how many entries the leaves are kept."""
        return size - shares.down(self.sparsity, size)

    def _kept(self, roots: Any) -> Any:
        if self.pattern == "unstructured":
            return _largest(roots, _num_live(roots, self.sparsity))
        if self.pattern == "structured":
            return _largest_leaves(roots, self._wanted(_size(roots)))
        kept, group = check_pattern(self.pattern)
        return jax.tree.map(lambda x: _largest_of_groups(x, kept, group, self.outputs_first), roots)


def fisher_mask(
    sparsity: Share,
    refresh_steps: Count,
    num_samples: Count,
    pattern: str = "unstructured",
    outputs_first: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Keeps the entries with the largest diagonal of the empirical Fisher matrix (SSAM-F).

    The mask is renewed in every `refresh_steps`-th step, behind its perturbation, from the squared gradients
    of the first examples of the batch. Before the first renewal it keeps nothing. Where a gate closes the
    step, or a gradient is not finite there, the first renewal is that of the next step. A later one is left
    out. Arguments: see `sparse_sam`.
    """
    checks.static_number("sparsity", sparsity, low=0, high=1)
    checks.integer("refresh_steps", refresh_steps, low=1)
    checks.integer("num_samples", num_samples, low=1)
    check_pattern(pattern)
    checks.boolean("outputs_first", outputs_first)
    return transformation(FisherMask(sparsity, refresh_steps, num_samples, pattern, bool(outputs_first)))


@dataclasses.dataclass(frozen=True)
class DynamicMask(Ascent):
    """See `dynamic_mask`."""

    sparsity: float
    refresh_steps: int
    drop_rate: Scalar
    total_steps: int
    seed: Scalar

    asks_anew: ClassVar[bool] = False
    says_how_far: ClassVar[bool] = False

    def init(self, params: Any) -> MaskState:
        floats = jax.tree.map(lambda x: jnp.asarray(x), params)
        scores = random_trees.uniform(keys.from_seed(self.seed, "mask"), floats)
        mask = _largest(scores, _num_live(scores, self.sparsity))
        return MaskState(mask)

    def update(
        self,
        updates: Any,
        state: MaskState,
        params: Any = None,
        *,
        step: Any = None,
        key: Any = None,
        **extra_args: Any,
    ) -> tuple[Any, MaskState]:
        del params, extra_args

        def renewed():
            size, num_live = _size(updates), _num_live(updates, self.sparsity)
            turn = jnp.cos(jnp.pi * jnp.minimum(step, self.total_steps).astype(float) / self.total_steps)
            drop = jnp.asarray(self.drop_rate).astype(turn.dtype) * (1 + turn) / 2
            num_grown = jnp.minimum(shares.floor(num_live * drop), size - num_live)
            num_kept = num_live - num_grown
            # Live entries outrank dead ones, with a zero gradient too; all are compared in float32.
            tiny = jnp.finfo(jnp.float32).tiny
            sizes = trees.map_inexact(lambda e: jnp.abs(e).astype(jnp.float32) + tiny, updates)
            kept = _largest(masked(sizes, state.mask), num_kept)
            dead = jax.tree.map(jnp.logical_not, state.mask)
            uniform = trees.map_inexact(lambda u: u + 1e-7, random_trees.uniform(key, updates))
            grown = _largest(masked(uniform, dead), num_grown)
            return jax.tree.map(lambda x, y: x | y, kept, grown)

        mask = sharding.cond(step % self.refresh_steps == 0, renewed, lambda: state.mask)
        return masked(updates, state.mask), MaskState(mask)


def dynamic_mask(
    sparsity: Share, refresh_steps: Count, drop_rate: FixedProbability, total_steps: Count, seed: Seed = 0
) -> optax.GradientTransformationExtraArgs:
    """Keeps a random part. Drops entries with small gradients, and takes in as many random ones (SSAM-D).

    In every `refresh_steps`-th step, behind its perturbation, the part `d` of the entries is replaced,
    `d = drop_rate (1 + cos(pi step / total_steps)) / 2`, and 0 after `total_steps`. Arguments: see
    `sparse_sam`.
    """
    checks.static_number("sparsity", sparsity, low=0, high=1)
    checks.integer("refresh_steps", refresh_steps, low=1)
    checks.number("drop_rate", drop_rate, low=0, high=1)
    checks.integer("total_steps", total_steps, low=1)
    checks.seed(seed)
    return transformation(DynamicMask(sparsity, refresh_steps, drop_rate, total_steps, seed))


@dataclasses.dataclass(frozen=True)
class Only(Ascent):
    """See `only`."""

    mask: Callable[[Any, Any], bool]

    asks_anew: ClassVar[bool] = False
    says_how_far: ClassVar[bool] = False
    draws: ClassVar[int] = 0

    def init(self, params: Any) -> optax.EmptyState:
        self._chosen(params)
        return optax.EmptyState()

    def update(self, updates: Any, state: Any, params: Any = None, **extra_args: Any):
        del extra_args
        chosen = self._chosen(params)
        return jax.tree.map(lambda x, c: x if c else jnp.zeros_like(x), updates, chosen), state

    def _chosen(self, params: Any) -> Any:
        chosen = jax.tree.map_with_path(lambda path, leaf: bool(self.mask(path, leaf)), params)
        if jax.tree.leaves(chosen) and not any(jax.tree.leaves(chosen)):
            raise ValueError("mask chooses no leaf of the parameters: choose one or more.")
        return chosen


def only(mask: Callable[[Any, Any], bool]) -> optax.GradientTransformationExtraArgs:
    """The leaves that a mask chooses, and zeros for all others (SAM-ON).

    Args:
      mask: `mask(path, leaf) -> bool`, with the keys of the leaf's path.
    """
    checks.function("mask", mask, "mask(path, leaf) -> bool, such as is_normalization")
    return transformation(Only(mask))


@dataclasses.dataclass(frozen=True)
class KeepRandomFraction(Ascent):
    """See `keep_random_fraction`."""

    fraction: Scalar

    asks_anew: ClassVar[bool] = False
    says_how_far: ClassVar[bool] = False

    def update(self, updates: Any, state: Any, params: Any = None, *, key: Any = None, **extra_args: Any):
        del params, extra_args
        kept = random_trees.coins(key, self.fraction, updates)
        return trees.map_inexact(lambda d, k: jnp.where(k, d, jnp.zeros_like(d)), updates, kept), state


def keep_random_fraction(fraction: FixedProbability) -> optax.GradientTransformationExtraArgs:
    """Each leaf as it is with probability `fraction`, else zero, drawn anew in every step (ESAM).

    Before `to_radius`, the radius is that of what is kept.

    Args:
      fraction: from 0 to 1.
    """
    checks.number("fraction", fraction, low=0, high=1)
    return transformation(KeepRandomFraction(fraction))


@dataclasses.dataclass(frozen=True)
class KeepOutliers(Ascent):
    """See `keep_outliers`."""

    quantile: Scalar

    asks_anew: ClassVar[bool] = False
    says_how_far: ClassVar[bool] = False
    draws: ClassVar[int] = 0

    def update(self, updates: Any, state: Any, params: Any = None, **extra_args: Any):
        del params, extra_args

        def on_leaf(d):
            if d.ndim < 2 or not d.size:
                return d
            # The standard deviation is one number for the leaf, and does not change the order.
            distance = jnp.abs(d - jnp.mean(d))
            if isinstance(self.quantile, jax.Array):
                position = shares.floor(self.quantile.astype(distance.dtype) * (d.size - 1))
            else:
                position = shares.down(self.quantile, d.size - 1)
            # Both sides of the comparison come out of the sort: computed twice, a distance may differ.
            numbers = jnp.arange(d.size)
            ordered, order = lax.sort((sharding.replicated(distance).ravel(), numbers), num_keys=1)
            kept = jnp.zeros([d.size], bool).at[order].set(ordered > ordered[position], unique_indices=True)
            return jnp.where(sharding.split_like(kept.reshape(d.shape), d), d, jnp.zeros_like(d))

        return trees.map_wide(on_leaf, updates), state


def keep_outliers(quantile: FixedProbability) -> optax.GradientTransformationExtraArgs:
    """The entries of each leaf that are furthest from its mean, and zero for the others (ZSharp).

    An entry is kept if its z-score, without the sign, is above the quantile of all z-scores of the leaf.
    Leaves with one axis or none are kept whole. Before `to_radius`, the radius is that of what is kept.

    Args:
      quantile: from 0 (all but the nearest) to 1 (none).
    """
    checks.number("quantile", quantile, low=0, high=1)
    return transformation(KeepOutliers(quantile))


def masked(tree: Any, mask: Any) -> Any:
    """The entries that the mask keeps, and zeros elsewhere."""

    def on_leaf(x, m):  # masks are whole on every device
        return jnp.where(sharding.split_like(m, x), x, jnp.zeros_like(x))

    return trees.map_inexact(on_leaf, tree, mask)


def _any(mask: Any) -> jax.Array:
    """Whether a mask keeps an entry."""
    return jnp.any(jnp.asarray([jnp.any(x) for x in jax.tree.leaves(mask)]))


def _size(tree: Any) -> int:
    """How many entries could be perturbed."""
    return sum(x.size for x in jax.tree.leaves(tree) if trees.is_inexact(x))


def _num_live(tree: Any, sparsity: float) -> int:
    """How many of its entries a mask keeps."""
    return _size(tree) - shares.up(sparsity, _size(tree))


def _largest(scores: Any, number: Any) -> Any:
    """Masks of the `number` largest entries over all leaves."""
    leaves, treedef = jax.tree.flatten(scores)
    flat = jnp.concatenate([jnp.zeros([0], jnp.float32), *map(_comparable, leaves)])
    rank = jnp.argsort(jnp.argsort(-flat, stable=True), stable=True)
    kept, masks, start = rank.astype(jnp.int32) < number, [], 0
    for x in leaves:
        masks.append(kept[start : start + x.size].reshape(x.shape))
        start += x.size
    return jax.tree.unflatten(treedef, masks)


def _comparable(leaf: jax.Array) -> jax.Array:
    """The entries in a row; those that are never perturbed come last."""
    if not trees.is_inexact(leaf):
        return jnp.full([leaf.size], -jnp.inf, jnp.float32)
    return sharding.replicated(leaf).ravel().astype(jnp.float32)


def _largest_leaves(roots: Any, wanted: int) -> Any:
    """Masks of whole leaves, the largest root mean squares first, until `wanted` entries are kept."""
    leaves, treedef = jax.tree.flatten(roots)
    means = [
        trees.norm(_comparable(x)) / math.sqrt(x.size) if trees.is_inexact(x) and x.size else -jnp.inf
        for x in leaves
    ]
    kept = first_until([x.size for x in leaves], jnp.argsort(-jnp.asarray(means), stable=True), wanted)
    return jax.tree.unflatten(treedef, [jnp.broadcast_to(kept[n], x.shape) for n, x in enumerate(leaves)])


def first_until(sizes: Sequence[int], order: jax.Array, wanted: int) -> jax.Array:
    """`bool[n]`: what is taken in `order`, until the sizes add up to `wanted`.

    The sums may be beyond int32 and beyond what float32 counts: they are kept as two digits.
    """
    digits = jnp.asarray([divmod(size, 2**16) for size in sizes], jnp.int32)
    first, second = digits.reshape(-1, 2)[order].T
    first, second = jnp.cumsum(first) - first, jnp.cumsum(second) - second
    first, second = first + second // 2**16, second % 2**16
    wanted_first, wanted_second = divmod(wanted, 2**16)
    before = (first < wanted_first) | ((first == wanted_first) & (second < wanted_second))
    return jnp.zeros([len(sizes)], bool).at[order].set(before)


def _largest_of_groups(scores: jax.Array, kept: int, group: int, outputs_first: bool) -> jax.Array:
    """The `kept` largest of each `group` inputs of a matrix; all of what has no group.

    A matrix is `[..., in, out]`, or with its outputs first `[out, in, ...]`.
    """
    if scores.ndim < 2:
        return jnp.ones(scores.shape, bool)
    if outputs_first:
        mask = _largest_of_groups(jnp.moveaxis(sharding.replicated(scores), 0, -1), kept, group, False)
        return jnp.moveaxis(mask, -1, 0)
    rows = sharding.replicated(scores).reshape(-1, scores.shape[-1])
    whole = rows.shape[0] // group * group
    groups = rows[:whole].reshape(-1, group, rows.shape[1])
    rank = jnp.argsort(jnp.argsort(-groups, axis=1, stable=True), axis=1, stable=True)
    mask = jnp.concatenate([(rank < kept).reshape(whole, -1), jnp.ones_like(rows[whole:], bool)])
    return mask.reshape(scores.shape)


def check_pattern(pattern: Any) -> tuple[int, int]:
    """The numbers of a pattern such as 2:4, or (0, 0) for the patterns with a name. Refuses all others."""
    if pattern in ("unstructured", "structured"):
        return 0, 0
    found = re.fullmatch(r"(\d+):(\d+)", pattern) if isinstance(pattern, str) else None
    if not found or not 0 < int(found[1]) <= int(found[2]):
        raise ValueError(
            f"pattern={pattern!r} is unknown: choose unstructured, structured, or N:M such as 2:4."
        )
    return int(found[1]), int(found[2])
