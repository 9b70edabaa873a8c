"""SAMPa: a SAM whose two gradients do not wait for each other."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optax_sam
from optax_sam.engine import checks

Loss = Callable[[Any, Any], jax.Array]


class SAMPaState(NamedTuple):
    """State of `sampa_step`; all of it changes in every step.

    Attributes:
      step: `int32[]`, steps taken.
      ahead_grads: `gy`, the last step's gradient at its look-ahead point, a tree like the parameters.
      velocity: the momentum buffer, a tree like the parameters.
      batch: the batch of the last step.
    """

    step: jax.Array
    ahead_grads: Any
    velocity: Any
    batch: Any


def sampa_step(
    loss_fn: Loss,
    learning_rate: optax.ScalarOrSchedule,
    momentum: float = 0.9,
    rho: optax.ScalarOrSchedule = 0.1,
    mix: float = 0.2,
    weight_decay: float = 5e-4,
    devices: Sequence[jax.Device] | None = None,
) -> tuple[Callable[[Any, Any], SAMPaState], Callable[[Any, SAMPaState, Any], tuple[Any, SAMPaState, Any]]]:
    """SAMPa: SAM with the gradients side by side.

    SAM's second gradient waits for its first one, which says where uphill is. SAMPa takes uphill from
    the gradient at a point a little ahead, which the step before has already computed.

    With `B` the batch of the step, `B'` that of the step before, `gy'` the gradient that it kept, and
    `v` the momentum buffer: `g1 = grad L_B'(w + rho gy' / ||gy'||)`, `gy = grad L_B(w - lr (gy' +
    momentum v + weight_decay w))`; then SGD with momentum and decay on `(1 - mix) g1 + mix gy`.
    In the first step `gy' = 0` and `B' = B`.

    Why a step function: the look-ahead needs learning rate, momentum and decay, and the two gradients
    are of different batches. An Optax transformation sees neither.

    Args:
      loss_fn: `loss_fn(params, batch)`, one loss per example or their mean.
      learning_rate: a number, or a schedule of the step.
      momentum: of SGD.
      rho: radius, in the L2 norm over all parameters; a number, or a schedule of the step.
      mix: weight of the look-ahead gradient in the descent, from 0 to 1.
      weight_decay: times the parameters, added to the descent.
      devices: two devices that take one gradient each, at the same time; None leaves where and when
        to the compiler.

    Returns:
      `init(params, batch) -> state`, with the first batch, or one of its shapes whose values are of no
      consequence but in the first step; and `step(params, state, batch) -> params, state, loss`, the
      loss at the look-ahead point. Both are pure; jit them.

    Raises:
      ValueError: `rho` is negative, `mix` is outside [0, 1], or `devices` are not two.

    Cost:
      2 gradients per step, independent of each other: with two devices the time of one. Two
      parameter-sized buffers (`gy` and the momentum), and the last batch.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> losses = lambda w, batch: 0.5 * jnp.sum(w**2) * batch
      >>> init, step = sampa_step(losses, learning_rate=0.1)
      >>> params, batch = jnp.array([3.0, 4.0]), jnp.ones(2)
      >>> state = init(params, batch)
      >>> for _ in range(20):
      ...     params, state, loss = jax.jit(step)(params, state, batch)
      >>> print(loss < 5)
      True

    References:
      Wanyun Xie, Thomas Pethick, Volkan Cevher, `SAMPa: Sharpness-aware Minimization Parallelized
      <https://arxiv.org/abs/2410.10683>`_, 2024; the authors' code, LIONS-EPFL/SAMPa.

    Deviations:
      none in the equations, which are those of the authors' code, but that the code leaves the decay
      out of the first look-ahead. Its label smoothing (0.1) belongs into the loss.
    """
    checks.number("mix", mix, low=0, high=1)
    if devices is not None and len(devices) != 2:
        raise ValueError(f"devices are {len(devices)}: pass two, such as jax.devices()[:2], or None.")
    ascent = optax_sam.ascents.to_radius(rho)

    def mean_loss(params: Any, batch: Any) -> jax.Array:
        return jnp.mean(loss_fn(params, batch))

    gradient = optax_sam.canonical_convolutions(jax.value_and_grad(mean_loss))
    both = _one_on_each(devices, gradient) if devices else _one_after_the_other(gradient)

    def init(params: Any, batch: Any) -> SAMPaState:
        zeros = optax.tree.zeros_like(params)
        return SAMPaState(jnp.zeros([], jnp.int32), zeros, zeros, jax.tree.map(jnp.asarray, batch))

    def step(params: Any, state: SAMPaState, batch: Any) -> tuple[Any, SAMPaState, Any]:
        rate = learning_rate(state.step) if callable(learning_rate) else learning_rate
        extra: Any = {"step": state.step}
        uphill, _ = ascent.update(state.ahead_grads, ascent.init(params), params, **extra)

        def velocity(grads: Any) -> Any:
            decayed = optax.tree.add_scale(grads, weight_decay, params)
            return optax.tree.add_scale(decayed, momentum, state.velocity)

        def moved(velocity: Any) -> Any:
            return jax.tree.map(lambda w, v: w - jnp.asarray(rate, w.dtype) * v, params, velocity)

        points = optax.tree.add(params, uphill), moved(velocity(state.ahead_grads))
        (_, perturbed), (loss, ahead) = both(points, (state.batch, batch))
        descent = optax.tree.add_scale(optax.tree.scale(1 - mix, perturbed), mix, ahead)
        new = velocity(descent)
        return moved(new), SAMPaState(state.step + 1, ahead, new, jax.tree.map(jnp.asarray, batch)), loss

    return init, step


def _one_after_the_other(gradient: Callable[..., Any]) -> Callable[..., Any]:
    return lambda points, batches: tuple(map(gradient, points, batches))


def _one_on_each(devices: Sequence[jax.Device], gradient: Callable[..., Any]) -> Callable[..., Any]:
    mesh, along = jax.sharding.Mesh(np.array(devices), "gradient"), jax.P("gradient")

    def own(pair: Any) -> Any:
        found = gradient(*jax.tree.map(lambda x: x[0], pair))
        return jax.tree.map(lambda x: x[None], found)

    def both(points: Any, batches: Any) -> Any:
        pairs = zip(points, batches, strict=True)
        stacked = jax.tree.map(lambda *x: jnp.stack(x), *pairs)
        found = jax.shard_map(own, mesh=mesh, in_specs=along, out_specs=along)(stacked)
        return [jax.tree.map(lambda x, n=n: x[n], found) for n in range(2)]

    return both
