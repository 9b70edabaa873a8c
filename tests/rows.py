"""What a row of the registry says, and the functions that rows hand to methods."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import optax

import optax_sam

AS_THE_ROW = -1.0
"""Gradients of a benchmark: those of the row's first step; none known where there is a gate."""


@dataclasses.dataclass(frozen=True)
class Timed:
    """How `benchmarks/catalogue.py` times a method, where it is not as the row of the method says.

    Attributes:
      name: of the case; None for the method's.
      arguments: of the method; None for the required ones, and the radius of all cases as `rho`.
      gradients: evaluations per step; None where chance or the gradients decide.
      straight: whether compiled FLOPs tell the evaluations; None where two gradients and no loop do.
      more: further arguments of `benchmarks.cases.always`, or of `gated`.
    """

    name: str | None = None
    arguments: dict[str, Any] | None = None
    gradients: float | None = AS_THE_ROW
    straight: bool | None = None
    more: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Case:
    """A method as the tests build it, and what it promises.

    Attributes:
      method: the public function.
      own: arguments that fit it to a tiny problem.
      required: arguments without a default.
      wrap: what is put around the method.
      gradients: evaluations of the first step, perturbed, in full batches.
      examples: the part of the batch that the first gradient sees.
      second_examples: the part that the second one sees; None for the same.
      gated: whether some steps are not perturbed.
      starts_at_params: whether the first gradient is that of the parameters.
      needs_oracle: whether `grad_fn` is refused.
      without_radius: arguments that leave the base optimizer; None where none do.
      perturbs_by_gradient: whether a zero gradient gives no perturbation; noise does not ask.
      is_scale_free: whether the perturbation is as long for a gradient of any scale.
      hessian_products: those of the first step; each counts as two gradients.
      loops: that the program has: over samples, slices, steps; those of Optax are unrolled when compiled.
      conditionals: that it has beside the gate's: what is renewed in some steps alone.
      timed: how the benchmarks time it.
    """

    method: Callable[..., Any]
    own: dict[str, Any] = dataclasses.field(default_factory=dict)
    required: dict[str, Any] = dataclasses.field(default_factory=dict)
    wrap: Callable[[Any], Any] = lambda method: method
    gradients: float = 2.0
    examples: float = 1.0
    second_examples: float | None = None
    gated: bool = False
    starts_at_params: bool = True
    needs_oracle: bool = False
    without_radius: dict[str, Any] | None = dataclasses.field(default_factory=lambda: {"rho": 0.0})
    perturbs_by_gradient: bool = True
    is_scale_free: bool = True
    hessian_products: int = 0
    loops: int = 0
    conditionals: int = 0
    timed: Timed = Timed()

    @property
    def cost_of_first_step(self) -> float:
        """Gradient evaluations of a first step that is perturbed, in full batches."""
        return self.gradients if self.second_examples is None else 1 + self.second_examples

    def make(self, **arguments: Any) -> optax_sam.SharpnessAware:
        """The method, with `arguments` over the tests' own."""
        return self.wrap(self.method(**{**self.required, **self.own, **arguments}))

    def but(self, **changes: Any) -> "Case":
        """A variant."""
        return dataclasses.replace(self, **changes)


TRAINING_EXAMPLES, TRAINING_STEPS = 50_000, 10_000
"""Of a usual training run, which the benchmarks time a step of."""


def within(**times: float) -> dict[str, Any]:
    """How many times as long as other cases a benchmark may take."""
    return {"limits": tuple(times.items())}


def surrogate_losses(params: Any, batch: Any) -> jax.Array:
    """Another loss of the same parameters: the network without its tanh."""
    hidden = batch["image"] @ params["layer_0"]["kernel"] + params["layer_0"]["bias"][None]
    logits = hidden @ params["layer_1"]["kernel"] + params["layer_1"]["bias"][None]
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])


def own_loss(case: Case, loss: Any, without_aux: Any = None) -> dict[str, Any]:
    """Arguments of a method that takes a loss of its own: `loss`, or what of it is called without aux.

    As outputs of which the loss is the mean, `loss` makes Functional SAM SAM.
    """
    if "surrogate_losses" in case.required:
        return {"surrogate_losses": loss}
    if "output_losses" in case.required:
        return {"outputs": without_aux or loss, "output_losses": first_of_both}
    return {}


def first_of_both(outputs: Any, batch: Any) -> Any:
    """Outputs that are losses already."""
    del batch
    return outputs


def logits(params: Any, batch: Any) -> jax.Array:
    """The outputs of the tests' network."""
    hidden = jax.numpy.tanh(batch["image"] @ params["layer_0"]["kernel"] + params["layer_0"]["bias"][None])
    return hidden @ params["layer_1"]["kernel"] + params["layer_1"]["bias"][None]


def cross_entropy(outputs: jax.Array, batch: Any) -> jax.Array:
    """The losses of these outputs."""
    return optax.softmax_cross_entropy_with_integer_labels(outputs, batch["label"])


def is_vector(path: Any, leaf: Any) -> bool:
    """Scales and biases, whose share of the parameters is small in every network."""
    del path
    return leaf.ndim == 1


def biases(path: Any, leaf: Any) -> bool:
    """What the tests' network has in the place of normalization layers."""
    del leaf
    return "bias" in jax.tree_util.keystr(path)


def slices(loop: str = "scan") -> Callable[[Any], Any]:
    """Of every method, one of the batch in four slices."""
    return lambda method: optax_sam.per_microbatch(method, 4, loop=loop)


def every_third(rho: float = 0.05) -> optax_sam.SharpnessAware:
    """SAM in every third step."""
    return optax_sam.sharpness_aware(optax_sam.ascents.to_radius(rho), gate=optax_sam.gates.every(3))


def label(batch: Any) -> jax.Array:
    """The classes of the examples."""
    return batch["label"]
