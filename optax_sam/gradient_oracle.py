"""The narrower door to a step: the user's own gradient function in the place of losses."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from optax_sam import trees
from optax_sam.jaxprs import canonical_convolutions
from optax_sam.oracle import Evaluation, First


@dataclasses.dataclass(frozen=True, eq=False)
class GradientOracle:
    """The narrower door: a gradient function of the parameters, without losses or examples."""

    grad_fn: Callable[[Any], Any]
    structure: Any
    grads: Any = None
    params = None
    fraction = 1.0

    def with_key(self, number: Any) -> "GradientOracle":
        """Itself: what the gradient function closes over is the same in all passes."""
        del number
        return self

    @property
    def first(self) -> First:
        """The gradient that the caller brought."""
        return First(None, Evaluation(self.grads))

    def evaluate(self, params: Any) -> Evaluation:
        """The gradient at `params`."""
        params = jax.tree.unflatten(self.structure, jax.tree.leaves(params))
        grads = canonical_convolutions(self.grad_fn)(params)
        return Evaluation(like_params("grad_fn(params)", grads, params))

    def moved(self, perturbation: Any, params: Any) -> Any:
        """The parameters moved by `perturbation`."""
        return trees.add_perturbation(params, perturbation)

    def evaluate_moved(self, perturbation: Any, params: Any) -> Evaluation:
        """The gradient at the moved parameters."""
        return self.evaluate(self.moved(perturbation, params))


def like_params(name: str, grads: Any, params: Any) -> Any:
    """The gradient as arrays, zeros for integer leaves; refuses what is no tree like the parameters."""
    grads, params = trees.plain(grads), trees.plain(params)
    if (got := jax.tree.structure(grads)) != (wanted := jax.tree.structure(params)):
        raise ValueError(
            f"{name} has the tree structure {got}, the parameters have {wanted}: pass a gradient "
            f"tree like params, without auxiliary values."
        )
    for (path, g), p in zip(jax.tree.leaves_with_path(grads), jax.tree.leaves(params), strict=True):
        if jnp.shape(g) != jnp.shape(p):
            raise ValueError(
                f"{name}{jax.tree_util.keystr(path)} has shape {jnp.shape(g)}, the parameter has "
                f"{jnp.shape(p)}: pass the gradient with respect to params."
            )
    # The gradient of an integer leaf has no arithmetic in JAX (float0).
    return jax.tree.map(
        lambda g, p: jnp.asarray(g) if trees.is_inexact(p) else jnp.zeros_like(p), grads, params
    )
