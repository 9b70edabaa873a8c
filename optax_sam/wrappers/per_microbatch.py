"""m-sharpness on one device: a loop over slices of the batch."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
from jax import lax

from optax_sam.arithmetic import means
from optax_sam.engine import checks
from optax_sam.engine.hyperparameters import Count
from optax_sam.engine.step_oracle import Given
from optax_sam.engine.transformation import SharpnessAware, from_method
from optax_sam.wrappers.slices import PerSlice
from optax_sam.wrappers.wrapper import method_of


@dataclasses.dataclass(frozen=True, eq=False)
class PerMicrobatch(PerSlice):
    """See `per_microbatch`."""

    num_microbatches: int
    loop: str

    def num_slices(self, given: Given) -> int:
        del given
        return self.num_microbatches

    def each(self, function: Callable[[Any, Any], Any], parts: Any, shared: Any) -> Any:
        def on_slice(part):
            return function(part, shared)

        return jax.vmap(on_slice)(parts) if self.loop == "vmap" else lax.map(on_slice, parts)

    def mean_and_sum(
        self, function: Callable[[Any, Any], tuple[Any, Any]], shares: jax.Array, parts: Any, shared: Any
    ) -> tuple[Any, Any]:
        if self.loop == "vmap":
            averaged, summed = self.each(function, parts, shared)
            averaged = means.mean(shares, averaged)
        else:
            averaged, summed = means.mean_by_scan(lambda part: function(part, shared), shares, parts)
        return averaged, jax.tree.map(lambda x: x.sum(axis=0), summed)


def per_microbatch(
    method: SharpnessAware,
    num_microbatches: Count,
    *,
    loop: Literal["scan", "vmap"] = "scan",
) -> SharpnessAware:
    """m-sharpness: each of `num_microbatches` slices of the batch has its own perturbation.

    With `B_1, ..., B_n` contiguous slices of the batch and `S_i` what `method` makes of slice `i`, the
    descent is the mean of the `S_i` (weighted by the slices' weights, where weights are given).
    `value_and_grad` returns the mean of the slices' losses and first gradients. The gradients themselves
    travel in the oracle. The mean costs nothing unless you read it. `aux` gets a leading axis of slices.

    A stateful method starts every slice from the one shared state. The new state is the mean of its float
    leaves and the first slice's for all others. The gate decides once for all slices. A gate that must see
    the gradient (AE-SAM) decides in each slice, and `due` raises an error.

    Args:
      method: any sharpness-aware method.
      num_microbatches: the number of slices. Must divide the batch.
      loop: "scan" takes one slice after the other, in the memory of one (and the slices' first gradients).
        "vmap" takes all at once.

    Returns:
      A `SharpnessAware` transformation.

    Raises:
      TypeError: `method` is none of this library's. `num_microbatches` is no integer.
      ValueError: `num_microbatches` does not divide the batch. `loop` is unknown.

    Cost:
      Gradients per step as `method`. `num_microbatches` parameter-sized buffers.

    Guarantees:
      One slice is `method` itself, to float rounding.

    Example:
      >>> import optax_sam
      >>> m_sam = optax_sam.per_microbatch(optax_sam.sam(rho=0.05), 4)

    References:
      Pierre Foret, Ariel Kleiner, Hossein Mobahi, Behnam Neyshabur, `Sharpness-Aware Minimization for
      Efficiently Improving Generalization <https://arxiv.org/abs/2010.01412>`_, 2020, section 4.1;
      Kayhan Behdin, Qingquan Song, Aman Gupta, Sathiya Keerthi, Ayan Acharya, Borja Ocejo, Gregory
      Dexter, Rajiv Khanna, David Durfee, Rahul Mazumder, `mSAM: Micro-Batch-Averaged Sharpness-Aware
      Minimization <https://arxiv.org/abs/2302.09693>`_, 2023.
    """
    checks.integer("num_microbatches", num_microbatches, low=1)
    checks.one_of("loop", loop, ("scan", "vmap"))
    return from_method(PerMicrobatch(method_of(method), num_microbatches, loop))
