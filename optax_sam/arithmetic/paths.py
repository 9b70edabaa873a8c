"""The names on the path of a parameter, in the libraries' several spellings."""

import re
from typing import Any

import jax


def names_on(path: tuple[Any, ...]) -> list[str]:
    """The names on a path, the outermost first: no index is one, nor the `value` of a box of Flax.

    A path in one key, a tuple or joined by `/` or `.`, as Flax's `flatten_dict` and files of weights have
    them, is as many names.

    Args:
      path: keys, as `jax.tree.map_with_path` hands them.
    """
    parts = [part for key in path for part in _parts_of(key)]
    return [part for part in parts if part and not part.isdigit()]


def _parts_of(key: Any) -> list[str]:
    if isinstance(key, jax.tree_util.GetAttrKey):
        return [] if key.name == "value" else [key.name]
    name = getattr(key, "key", None)
    words = name if isinstance(name, tuple) else (name,)
    return [part for word in words if isinstance(word, str) for part in re.split("[/.]", word)]
