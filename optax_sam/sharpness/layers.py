"""Curvature layer by layer: the blocks on the Hessian's diagonal."""

import collections
import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optax_sam.engine import checks
from optax_sam.sharpness import products
from optax_sam.sharpness.eigenvalues import krylov, searched
from optax_sam.sharpness.problem import Floats, Point, Problem, check_product
from optax_sam.sharpness.progress import shown
from optax_sam.sharpness.standard_errors import standard_error


@dataclasses.dataclass(frozen=True)
class Layers:
    """What `by_layer` found, in the order of the parameters.

    Attributes:
      names: of the groups of leaves.
      sizes: `int64[groups]`, parameters in each.
      traces: `float64[groups]`, of each group's block of the Hessian. They add up to the whole trace.
      standard_errors: `float64[groups]`, of the traces.
      eigenvalues: `float64[groups]`, the largest of each block. NaN where not asked for.
      residuals: `float64[groups]`. An eigenvalue of the block lies within the residual of each.
      products: with the matrix, that it took.
    """

    names: tuple[str, ...]
    sizes: np.ndarray
    traces: np.ndarray
    standard_errors: np.ndarray
    eigenvalues: np.ndarray
    residuals: np.ndarray
    products: int

    def __str__(self) -> str:
        width = max(5, *map(len, self.names))
        heading = f"{'layer':<{width}} {'parameters':>11} {'trace':>20} {'per parameter':>13} {'largest':>10}"
        rows = zip(self.names, self.sizes, self.traces, self.standard_errors, self.eigenvalues, strict=True)
        lines = [
            f"{name:<{width}} {size:>11,} {f'{trace:.4g} ± {error:.1g}':>20} {trace / size:>13.3g} "
            f"{top:>10.4g}"
            for name, size, trace, error, top in rows
        ]
        return "\n".join([heading, *lines])


def by_layer(
    loss_fn: Callable[[Any, Any], Any],
    params: Any,
    batches: Any,
    *,
    groups: Callable[[Any, Any], str] | None = None,
    num_products: int = 20,
    max_products: int = 15,
    tolerance: float = 1e-2,
    seed: int = 0,
    progress: bool = False,
) -> Layers:
    """Trace and largest eigenvalue of each layer's block of the Hessian of the mean loss.

    The same products `H s` with random signs serve all layers. In expectation, `sum(s_l * (H s)_l)` over a
    layer's entries is the trace of its block. The largest eigenvalue of a block comes from Lanczos inside it.

    Args:
      loss_fn: see `top_eigenvalues`.
      params: the parameters.
      batches: one batch, or many. See `top_eigenvalues`.
      groups: `groups(path, leaf) -> name`, with the keys of the leaf's path. Leaves of the same name are one
        layer. By default the name is the path without its last key: `dense/kernel` and `dense/bias` are
        `dense`. Layers whose names would be equal, by keys that hold a slash, are called by their keys.
      num_products: for all traces together.
      max_products: for each eigenvalue at most. 0 for none.
      tolerance: residual at which to stop, as a part of the block's largest absolute eigenvalue.
      seed: of the random vectors.
      progress: whether a bar is shown.

    Returns:
      `Layers`, on the host. `print` shows its table, `plots.by_layer` draws it.

    Raises:
      ValueError: the loss or a product is not finite, or an argument is out of range. Also what
        `hessian_vector_product` refuses.
      TypeError: `groups` is no function or returns no string, or a number of products is no integer.

    Cost:
      About two gradients for each product, `num_products` and up to `max_products` for each layer.

    Example:
      >>> import jax.numpy as jnp
      >>> from optax_sam import sharpness
      >>> loss_fn = lambda p, scale: scale * (3 * p["first"]["w"] ** 2 + p["last"]["w"] ** 2)
      >>> params = {"first": {"w": jnp.array(1.0)}, "last": {"w": jnp.array(1.0)}}
      >>> print(sharpness.by_layer(loss_fn, params, jnp.ones(1)).traces)
      [6. 2.]
    """
    checks.integer("num_products", num_products, low=1)
    checks.integer("max_products", max_products, low=0)
    checks.positive("tolerance", tolerance)
    checks.seed(seed)
    if groups is not None:
        checks.function("groups", groups, "groups(path, leaf) -> name of the layer")
    problem = Problem.of(loss_fn, params, batches)
    names, titles = _names(problem.point, groups)
    problem.finite_loss()
    layers, samples = tuple(dict.fromkeys(names)), []
    most = num_products + max_products * len(layers)
    with shown(progress, "layers", problem.count and problem.count * most) as steps:
        for number in range(num_products):
            probe = products.signs(problem, seed, number)
            (image,) = products.times(problem, [probe], steps)
            samples.append(jax.device_get(_along(probe, image)))
        entries = np.array(samples, float)
        traces = np.array([entries[:, _of(names, layer)].sum(axis=1) for layer in layers])
        check_product(float(traces.sum()))
        found = [
            searched(
                krylov(problem, 1, seed, steps, _of(names, layer)), 1, "largest", tolerance, max_products
            )[0]
            for layer in layers
            if max_products
        ]
    sizes = [
        sum(x.size for x, n in zip(problem.point.floats, names, strict=True) if n == layer)
        for layer in layers
    ]
    nothing = np.full(len(layers), np.nan)
    return Layers(
        tuple(titles[layer] for layer in layers),
        np.array(sizes),
        traces.mean(axis=1),
        np.array([standard_error(list(each)) for each in traces]),
        np.array([each.values[0] for each in found]) if found else nothing,
        np.array([each.residuals[0] for each in found]) if found else nothing,
        num_products + sum(each.products for each in found),
    )


def _names(point: Point, groups: Callable[[Any, Any], str] | None) -> tuple[list[str], dict[str, str]]:
    """The layer of each float leaf, and how it is called in what is shown."""
    pairs = zip(jax.tree.leaves_with_path(point.params()), point.is_float, strict=True)
    pairs = [pair for pair, is_float in pairs if is_float]
    if groups is None:
        paths = [path[:-1] or path for path, _ in pairs]
        names = [jax.tree_util.keystr(path) for path in paths]
        texts = [jax.tree_util.keystr(path, simple=True, separator="/") or "params" for path in paths]
        titles = dict(zip(names, texts, strict=True))  # keys that hold a slash: two paths, one text
        often = collections.Counter(titles.values())
        return names, {name: text if often[text] == 1 else name for name, text in titles.items()}
    names = [groups(*pair) for pair in pairs]
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"groups returned {name!r}: return the name of the layer, a string.")
    return names, {name: name for name in names}


def _of(names: list[str], layer: str) -> tuple[bool, ...]:
    return tuple(name == layer for name in names)


@jax.jit
def _along(probe: Floats, image: Floats) -> jax.Array:
    """The inner product of each leaf."""
    return jnp.stack([jnp.sum(s * x.astype(s.dtype)) for s, x in zip(probe, image, strict=True)])
