"""Gradient accumulation: the method of the big batch, in the memory of one micro-batch."""

import dataclasses

from optax_sam.engine import checks
from optax_sam.engine.aliases import Grads, Params
from optax_sam.engine.hyperparameters import Count
from optax_sam.engine.state import SharpnessAwareState
from optax_sam.engine.step_oracle import Given
from optax_sam.engine.transformation import Begun, Outcome, SharpnessAware, from_method
from optax_sam.wrappers.wrapper import Wrapper, method_of


@dataclasses.dataclass(frozen=True, eq=False)
class Accumulated(Wrapper):
    """See `accumulated`."""

    num_microbatches: int

    def begin(self, state: SharpnessAwareState, given: Given) -> Begun:
        return self.inner.begin(state, self._in_slices(given))

    def finish(
        self,
        grads: Grads,
        begun: Begun,
        state: SharpnessAwareState,
        params: Params,
        given: Given,
        perturb: bool | None,
    ) -> Outcome:
        return self.inner.finish(grads, begun, state, params, self._in_slices(given), perturb)

    def _in_slices(self, given: Given) -> Given:
        number = max(given.examples.num_slices, 1) * self.num_microbatches
        return given.but(examples=given.examples.but(num_slices=number))


def accumulated(method: SharpnessAware, num_microbatches: Count) -> SharpnessAware:
    """Gradient accumulation: `method` on the whole batch, in the memory of a part of it.

    `B_1, ..., B_n` are contiguous slices of the examples. Every gradient of the step is taken as
    `g = sum_i a_i grad L(w, B_i)`, one slice after the other, with `a_i` the part of slice `i` in all
    weights. This is the gradient of the whole batch, and so there is one perturbation. `aux` gets a leading
    axis of slices. (`per_microbatch` gives every slice a perturbation of its own.)

    Args:
      method: any sharpness-aware method.
      num_microbatches: the number of slices. Must divide the batch, and the examples that the method draws.

    Returns:
      A `SharpnessAware` transformation.

    Raises:
      TypeError: `method` is none of this library's. `num_microbatches` is no integer.
      ValueError: `num_microbatches` does not divide the examples.

    Cost:
      Gradients per step as `method`. One parameter-sized buffer. Activations of one slice.

    Guarantees:
      Equal to `method` to float rounding, unless the loss depends on the other examples of its
      batch, as with batch norm.

    Example:
      >>> import optax_sam
      >>> big_batch_sam = optax_sam.accumulated(optax_sam.sam(rho=0.05), 8)
    """
    checks.integer("num_microbatches", num_microbatches, low=1)
    return from_method(Accumulated(method_of(method), num_microbatches))
