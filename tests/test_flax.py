"""The training step with Flax's own optimizer."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import optax_sam


def test_state_of_an_nnx_optimizer_is_found_and_read():
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    sam = optax_sam.rst(0.1, probability=0.5)
    optimizer = nnx.Optimizer(model, optax.chain(sam, optax.sgd(0.1)), wrt=nnx.Param)
    images = jnp.linspace(-1.0, 1.0, 12).reshape(4, 3)

    @nnx.jit
    def step(model, optimizer, images):
        graph, params = nnx.split(model, nnx.Param)

        def losses(params, batch):
            return jnp.sum(nnx.merge(graph, params)(batch) ** 2, axis=-1)

        loss, grads, oracle = sam.value_and_grad(losses)(params, images, state=optimizer.opt_state)
        optimizer.update(model, grads, oracle=oracle)
        return loss

    with jax.numpy_rank_promotion("allow"):
        seen, spent = [], 0
        for _ in range(6):
            spent += 1 + int(optax_sam.due(optimizer.opt_state))
            seen.append(step(model, optimizer, images))
    assert np.all(np.diff(seen) < 0)
    assert optax_sam.info(optimizer.opt_state)["gradients"] == spent > 6
