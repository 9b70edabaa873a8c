"""The narrower door: the user's own gradient function in the place of losses."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from optax_sam.arithmetic import sharding
from optax_sam.arithmetic.jaxprs import canonical_convolutions, equations_of
from optax_sam.engine.aliases import Grads, Params
from optax_sam.engine.examples import Examples
from optax_sam.engine.objective import Arguments, Evaluation, Layout, Objective, like_params

ONLY_GRAD_FN = (
    "grad_fn is given, but this method needs examples, losses or a start of its own: "
    "pass the oracle of value_and_grad, or oracle=optax_sam.Oracle(losses, batch)."
)


def check_mean(grad_fn: Callable[[Params], Grads], params: Params) -> None:
    """Refuses a gradient function that keeps replicas of a `pmap` no longer alike, for it takes no mean.

    Raises:
      ValueError: inside a `pmap`, or a `shard_map(check_vma=False)`, `grad_fn` reduces over none of its axes.
    """
    if not (axes := sharding.unchecked_axes()):
        return

    def reduces(equation):
        named = (equation.params.get(key, ()) for key in ("axes", "axis_name"))
        return any(axis in (name if isinstance(name, tuple) else (name,)) for name in named for axis in axes)

    if not any(map(reduces, equations_of(jax.make_jaxpr(grad_fn)(params)))):
        raise ValueError(
            f"grad_fn takes the gradient of one device alone, under a pmap (or a shard_map with "
            f"check_vma=False) over {axes[0]!r}: each device would perturb along its own gradient, and the "
            f"replicas would drift apart. Take the mean inside it, "
            f"grad_fn=lambda params: lax.pmean(grads_of(params), {axes[0]!r}). "
            f"If every device trains a model of its own, give the pmap no axis_name."
        )


@dataclasses.dataclass(eq=False)
class GradientFunction(Objective):
    """The narrower door: a gradient function of the parameters, without losses or examples."""

    grad_fn: Callable[[Params], Grads]
    structure: Any

    def evaluate(self, point: Params, examples: Examples, arguments: Arguments) -> Evaluation:
        del examples, arguments
        return Evaluation(canonical_convolutions(self._gradient)(point))

    def losses_at(self, point: Params, examples: Examples, arguments: Arguments) -> jax.Array:
        del point, examples, arguments
        raise ValueError(ONLY_GRAD_FN)

    def hessian_product(
        self, point: Params, vector: Params, examples: Examples, arguments: Arguments
    ) -> Grads:
        del examples, arguments
        layout = Layout.of(point)
        floats = layout.floats(point)

        def along(floats, tangents):
            def again(floats):
                return layout.floats(self._gradient(layout.merged(floats, layout.others(point))))

            return jax.jvp(again, (floats,), (tangents,))[1]

        tangents = [v.astype(x.dtype) for v, x in zip(layout.floats(vector), floats, strict=True)]
        found = canonical_convolutions(along)(floats, tangents)
        return layout.merged(found, [jnp.zeros_like(x) for x in layout.others(point)])

    def _gradient(self, point: Params) -> Grads:
        params = jax.tree.unflatten(self.structure, jax.tree.leaves(point))
        return like_params("grad_fn(params)", self.grad_fn(params), params)
