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
