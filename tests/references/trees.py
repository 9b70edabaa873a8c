"""Arithmetic on nested dicts of arrays."""

from collections.abc import Callable
from typing import Any

import numpy as np

Tree = dict[str, Any]


def tree_map(fn: Callable, *trees: Tree) -> Tree:
    """Applies `fn` leaf by leaf."""
    return tree_map_with_key(lambda key, *values: fn(*values), *trees)


def tree_map_with_key(fn: Callable, *trees: Tree, key: str = "") -> Tree:
    """Applies `fn(key, *leaves)`, where `key` is the innermost key of the leaf."""
    if not isinstance(trees[0], dict):
        return fn(key, *trees)
    return {k: tree_map_with_key(fn, *(tree[k] for tree in trees), key=k) for k in trees[0]}


def leaves(tree: Tree) -> list[np.ndarray]:
    """All leaves, keys in sorted order at every level, as `jax.tree.leaves` orders dicts."""
    if not isinstance(tree, dict):
        return [tree]
    return [leaf for key in sorted(tree) for leaf in leaves(tree[key])]


def flatten(tree: Tree) -> np.ndarray:
    """One vector of all entries, in the order of `leaves`."""
    return np.concatenate([np.ravel(leaf) for leaf in leaves(tree)])


def zeros_like(tree: Tree) -> Tree:
    """A tree of zeros."""
    return tree_map(np.zeros_like, tree)


def add(a: Tree, b: Tree) -> Tree:
    """a + b."""
    return tree_map(np.add, a, b)


def subtract(a: Tree, b: Tree) -> Tree:
    """a - b."""
    return tree_map(np.subtract, a, b)


def scale(factor: float, tree: Tree) -> Tree:
    """factor * tree."""
    return tree_map(lambda leaf: factor * leaf, tree)


def norm(tree: Tree) -> float:
    """The L2 norm over all leaves."""
    return norm_of(leaves(tree))


def norm_of(arrays: list[np.ndarray]) -> float:
    """The L2 norm over a list of arrays."""
    return float(np.sqrt(sum(np.sum(np.square(array)) for array in arrays)))


def with_norm(tree: Tree, length: float) -> Tree:
    """length * tree / ||tree||; a zero tree stays zero."""
    size = norm(tree)
    return scale(length / size, tree) if size > 0 else zeros_like(tree)


def dot(a: Tree, b: Tree) -> float:
    """The inner product over all leaves."""
    return float(sum(np.sum(x * y) for x, y in zip(leaves(a), leaves(b), strict=True)))


def ratio(a: float, b: float) -> float:
    """a / b, and 0 where b is 0: the rule that makes a zero direction a zero perturbation."""
    return a / b if b != 0 else 0.0


def weighted_sum(*terms: tuple[float, Tree]) -> Tree:
    """The sum of factor * tree over the terms."""
    total = zeros_like(terms[0][1])
    for factor, tree in terms:
        total = add(total, scale(factor, tree))
    return total


def perpendicular(a: Tree, to: Tree) -> Tree:
    """a - (<a, b> / <b, b>) b: what is left of `a` without its part along b = `to`.

    Exactly zero where both are the same, which a norm that is squared again would not give.
    """
    return subtract(a, scale(ratio(dot(a, to), dot(to, to)), to))


def filter_norms(leaf: np.ndarray) -> np.ndarray:
    """The norm of every filter, to be broadcast against the leaf.

    A filter is everything that shares an index on the last axis; of a leaf with fewer than two
    axes it is the whole leaf.
    """
    axes = tuple(range(leaf.ndim - 1)) if leaf.ndim > 1 else None
    return np.sqrt(np.sum(np.square(leaf), axis=axes, keepdims=leaf.ndim > 0))


def tree_map_with_path(fn: Callable, *trees: Tree, path: tuple[str, ...] = ()) -> Tree:
    """Applies `fn(path, *leaves)`, where `path` holds the keys from the root to the leaf."""
    if not isinstance(trees[0], dict):
        return fn(path, *trees)
    return {k: tree_map_with_path(fn, *(tree[k] for tree in trees), path=(*path, k)) for k in trees[0]}


def unflatten(vector: np.ndarray, like: Tree) -> Tree:
    """The tree in the shape of `like` whose `flatten` is the vector."""
    rest = iter(np.split(vector, np.cumsum([leaf.size for leaf in leaves(like)])[:-1]))

    def fill(tree: Tree) -> Tree:
        if not isinstance(tree, dict):
            return next(rest).reshape(tree.shape)
        return {key: fill(tree[key]) for key in sorted(tree)}

    return fill(like)
