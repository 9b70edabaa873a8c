"""What can be asked at a point, and what is given back."""

import abc
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optax_sam.arithmetic import trees
from optax_sam.engine.aliases import Grads, Params
from optax_sam.engine.examples import Examples


class Evaluation(NamedTuple):
    """What one evaluation at a point gave.

    Attributes:
      grads: a tree like the parameters.
      loss: the weighted mean of the losses, `float[]`. None where only a gradient function is known.
      losses: one loss per example, `float[batch]`. None where the loss function returns their mean.
      aux: what the loss function returned beside the losses.
      norm: `float[]`, the L2 norm of `grads`. None before it is judged.
      shares: `float[slices]`, how much of the mean each slice of `aux` is. None where it has no slices.
    """

    grads: Grads
    loss: Any = None
    losses: Any = None
    aux: Any = None
    norm: Any = None
    shares: Any = None

    def as_only_slice(self) -> "Evaluation":
        """The same as one slice: with the axis of slices that several have."""
        return self._replace(aux=jax.tree.map(lambda x: x[None], self.aux), shares=jnp.ones([1]))


class Arguments(NamedTuple):
    """What every pass of a step is given, whole.

    Attributes:
      args: the arrays of the user's further arguments.
      loss_scale: `float[]`, or None.
    """

    args: list[jax.Array]
    loss_scale: Any = None


class Objective(abc.ABC):
    """What can be asked at a point. A step asks through `StepOracle`, which counts and judges."""

    @abc.abstractmethod
    def evaluate(self, point: Params, examples: Examples, arguments: Arguments) -> Evaluation:
        """The gradient at `point`, of all examples at once."""

    @abc.abstractmethod
    def losses_at(self, point: Params, examples: Examples, arguments: Arguments) -> jax.Array:
        """One loss per example, `float[batch]`."""

    @abc.abstractmethod
    def hessian_product(
        self, point: Params, vector: Params, examples: Examples, arguments: Arguments
    ) -> Grads:
        """The derivative of the gradient at `point` along `vector`."""


class Layout(NamedTuple):
    """Which leaves of the parameters are differentiated.

    Attributes:
      treedef: of the parameters.
      is_float: of each leaf.
    """

    treedef: Any
    is_float: tuple[bool, ...]

    @classmethod
    def of(cls, params: Params) -> "Layout":
        leaves, treedef = jax.tree.flatten(params)
        return cls(treedef, tuple(bool(trees.is_inexact(x)) for x in leaves))

    def floats(self, tree: Any) -> list[jax.Array]:
        """The leaves that are differentiated."""
        return [x for x, is_float in zip(jax.tree.leaves(tree), self.is_float, strict=True) if is_float]

    def others(self, tree: Any) -> list[jax.Array]:
        """All other leaves."""
        return [x for x, is_float in zip(jax.tree.leaves(tree), self.is_float, strict=True) if not is_float]

    def merged(self, floats: list[Any], others: list[Any]) -> Any:
        """The tree of both."""
        supply, rest = iter(floats), iter(others)
        return self.treedef.unflatten([next(supply if f else rest) for f in self.is_float])


def like_params(name: str, grads: Any, params: Params) -> Grads:
    """The gradient as arrays, zeros for integer leaves. Refuses what is no tree like the parameters."""
    grads, params = trees.plain(grads), trees.plain(params)
    if (got := jax.tree.structure(grads)) != (wanted := jax.tree.structure(params)):
        raise ValueError(
            f"{name} has the tree structure {got}, but the parameters have {wanted}: pass a gradient "
            f"tree like params, without auxiliary values."
        )
    for (path, g), p in zip(jax.tree.leaves_with_path(grads), jax.tree.leaves(params), strict=True):
        if jnp.shape(g) != jnp.shape(p):
            raise ValueError(
                f"{name}{jax.tree_util.keystr(path)} has shape {jnp.shape(g)}, but the parameter has "
                f"{jnp.shape(p)}: pass the gradient with respect to params."
            )
    # The gradient of an integer leaf has no arithmetic in JAX (float0).
    return jax.tree.map(
        lambda g, p: jnp.asarray(g) if trees.is_inexact(p) else jnp.zeros_like(p), grads, params
    )
