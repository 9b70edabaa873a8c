"""The narrower door: the user's own gradient function in the place of losses."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp

from optax_sam.arithmetic import replicas, sharding
from optax_sam.arithmetic.jaxprs import canonical_convolutions
from optax_sam.engine.aliases import Grads, Params
from optax_sam.engine.examples import Examples
from optax_sam.engine.meter import unmetered
from optax_sam.engine.objective import Arguments, Evaluation, Layout, Objective, like_params

ONLY_GRAD_FN = (
    "grad_fn is given, but this method needs examples, losses or a start of its own: "
    "pass the oracle of value_and_grad, or oracle=optax_sam.Oracle(losses, batch)."
)


def check_mean(grad_fn: Callable[[Params], Grads], params: Params) -> None:
    """Refuses a gradient function that would not keep the replicas of a model alike.

    Raises:
      ValueError: inside a `pmap`, or a `shard_map(check_vma=False)`, what `grad_fn` returns is no mean over
        an axis of it. Inside any `shard_map`, see `check_own_parameters`.
    """
    if not sharding.is_inside_shard_map():
        return
    traced = jax.make_jaxpr(lambda params: grad_fn(params))(params)  # not a trace of before
    check_own_parameters(traced, params)
    for axis in sharding.unchecked_axes():
        if not replicas.is_same_on_all(traced, axis):
            raise ValueError(
                f"grad_fn returns the gradient of one device, under a pmap (or a shard_map with "
                f"check_vma=False) over {axis!r}: each device would perturb along its own gradient, and the "
                f"replicas would drift apart. Take the mean of the gradient last, "
                f"grad_fn=lambda params: lax.pmean(grads_of(params), {axis!r}). "
                f"If every device trains a model of its own, give the pmap no axis_name."
            )


def check_own_parameters(traced: jex.Jaxpr | jex.ClosedJaxpr, params: Params) -> None:
    """Refuses one model in parts on several devices of a `shard_map`: norms would be those of a part.

    Raises:
      ValueError: what was traced communicates over an axis over which `params` differ.
    """
    if axes := sharding.varying_axes(params) & replicas.axes_reduced_over(traced):
        raise ValueError(
            f"the parameters differ over the axis {min(axes)!r} of a shard_map, over which the loss "
            f"communicates: they are parts of one model, and every device would see only a part of its norm. "
            f"Split the parameters by shardings under plain jax.jit. Norms are those of the model there."
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
        with unmetered():
            return like_params("grad_fn(params)", self.grad_fn(params), params)
