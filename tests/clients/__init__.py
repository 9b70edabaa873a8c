"""Small training programs as users write them, each without a method and with one.

Every module has `train`, as its authors would have written it before they had thought of SAM;
`train_with_sam`, which takes a method; `params_of`, the parameters after each step of what both return;
`by_hand`, the same steps in plain JAX; `METHODS`, of which the one named `FAST` is not slow; and `CHANGED`,
how many lines of `train_with_sam` are new, and how many of `train` are gone:

* `boxed`, `factory`, `scanned`, `nnx_rngs`: the optimizer's line, the gradient's and the update's; a loss
  that had another argument before the batch changes its signature and its call.
* `equinox_filtered`, `graphs`: the optimizer's line and the update's, and a gradient function before it.
* `pmapped`: the same, and one verdict over both gradients for the loss scale.
* `svi`: the optimizer's line, and the one method of NumPyro's optimizer that owns the step.
"""
