"""What an NNX model keeps of a pass that goes through slices: statistics, each weighted as its slice."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import optax_sam
import optax_sam.flax


class Mean(nnx.Module):
    """Its statistic is the plain mean of what it has seen."""

    def __init__(self):
        self.w = nnx.Param(jnp.ones([1]))
        self.mean = nnx.BatchStat(jnp.zeros([1]))

    def __call__(self, x):
        self.mean.set_value(jnp.mean(x, axis=0))
        return x @ self.w.get_value()


DRAWING = {
    "ausam": optax_sam.accumulated(optax_sam.ausam(8, fraction=0.5), 2),
    "ksam": optax_sam.per_microbatch(optax_sam.ksam(fraction=0.5), 2),
    "ksam in slices of slices": optax_sam.per_microbatch(
        optax_sam.accumulated(optax_sam.ksam(fraction=0.5), 2), 2
    ),
    "bsam": optax_sam.bsam(8, 0.1, num_microbatches=4),
    "slices of slices": optax_sam.per_microbatch(optax_sam.accumulated(optax_sam.sam(), 2), 2),
}


@pytest.mark.parametrize(
    "given", [[1, 1, 1, 1, 1, 1, 0, 0], [0, 0, 0, 0, 1, 1, 1, 1], [1, 2, 3, 4, 0, 1, 1, 1]]
)
@pytest.mark.parametrize("name", DRAWING)
def test_statistics_of_slices_weigh_as_much_as_what_the_slices_have_seen(name, given):
    method, weights = DRAWING[name], jnp.asarray(given, float)
    model, x = Mean(), jnp.arange(8.0)[:, None]
    optimizer = nnx.Optimizer(model, optax.chain(method, optax.sgd(0.0)), wrt=nnx.Param)
    value_and_grad = optax_sam.flax.nnx_value_and_grad(method, lambda model, x: (model(x) ** 2, x), True)
    (_, seen), _, _ = value_and_grad(model, x, optimizer=optimizer, indices=jnp.arange(8), weights=weights)
    rows = np.asarray(seen)[..., 0].astype(int)
    of_batch = np.asarray(given, float)
    outer = of_batch.reshape(2, -1).sum(1) / of_batch.sum()  # of the slices of the whole batch
    if name == "ausam":
        shares = of_batch[rows].sum(-1) / of_batch[rows].sum()
    elif rows.ndim == 3:
        inner = of_batch[rows].sum(-1)
        shares = outer[:, None] * inner / np.maximum(inner.sum(-1, keepdims=True), 1e-9)
    else:
        shares = of_batch.reshape(len(rows), -1).sum(1) / of_batch.sum()
    wanted = (shares * rows.mean(-1)).sum()
    np.testing.assert_allclose(model.mean.get_value(), wanted, rtol=1e-5)
