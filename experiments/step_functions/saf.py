"""SAF and MESA: flat minima for the price of plain training, through the loss."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_sam.engine import checks


class SAFState(NamedTuple):
    """What SAF remembers; changes in every step, for the examples of its batch.

    Attributes:
      logits: `float[num_examples, lag + 1, num_classes]`, a ring of each example's last outputs.
      epochs: `int32[num_examples, lag + 1]`, the epochs they are of; -1 for none.
    """

    logits: jax.Array
    epochs: jax.Array


class SAFLoss(NamedTuple):
    """`init() -> SAFState`, and `losses(logits, indices, epoch, state) -> (float[batch], SAFState)`.

    `merged(states, before) -> SAFState` makes one of those of slices, which come with a leading axis, and of
    the one that they began with.
    """

    init: Callable[[], SAFState]
    losses: Callable[..., tuple[jax.Array, SAFState]]
    merged: Callable[[SAFState, SAFState], SAFState]


class MESALoss(NamedTuple):
    """`init(params) -> state`, `losses(logits, mean_logits, epoch) -> float[batch]`, and after each
    step of the optimizer `update(params, state) -> state`. The state is a mean of the parameters."""

    init: Callable[[Any], Any]
    losses: Callable[..., jax.Array]
    update: Callable[[Any, Any], Any]


def saf_loss(
    num_examples: int,
    num_classes: int,
    weight: float = 0.3,
    temperature: float = 5.0,
    lag: int = 3,
    start_epoch: int = 5,
) -> SAFLoss:
    """SAF: stay close to what the network said of the same example some epochs ago.

    Where the loss falls fast along the way of training it is sharp. SAF measures the fall by how far
    the outputs have moved, which it has stored, and needs no second gradient.

    `l_i + weight T^2 KL(softmax(z_i(old) / T) || softmax(z_i / T))`, with `z_i(old)` the logits of
    example `i` in epoch `epoch - lag`, a constant; in epochs after `start_epoch`. An example that
    the epoch `epoch - lag` has left out has no such term.

    Why a loss: there is no perturbation, so nothing for an Optax transformation to do. In the
    ordinary training step, with `has_aux=True` for the new state:

        def losses(params, batch):
            z = network(params, batch["image"])
            further, state = saf.losses(z, batch["index"], epoch, saf_state)
            return cross_entropy(z, batch["label"]) + further, state

    Args:
      num_examples: in the data set; their numbers are the indices. Other indices are padding: no term.
      num_classes: logits per example.
      weight: of the term.
      temperature: `T`, above 0.
      lag: epochs, 1 or more. Epochs count from 0, and may be traced.
      start_epoch: the last epoch without the term.

    Cost:
      1 gradient per step; `num_examples (lag + 1) num_classes` numbers.

    References:
      Jiawei Du, Daquan Zhou, Jiashi Feng, Vincent Y. F. Tan, Joey Tianyi Zhou, `Sharpness-Aware
      Training for Free <https://arxiv.org/abs/2205.14083>`_, 2022; the authors' code, AngusDujw/SAF.

    Deviations:
      the code ends the term after epoch 299, starts from logits of 0 for an example not yet seen, and
      takes those of an older epoch for one that was left out `lag` epochs ago.
    """
    checks.integer("num_examples", num_examples, low=1)
    checks.integer("lag", lag, low=1)

    def init() -> SAFState:
        logits = jnp.zeros([num_examples, lag + 1, num_classes], float)
        return SAFState(logits, jnp.full([num_examples, lag + 1], -1, jnp.int32))

    def merged(states: SAFState, before: SAFState) -> SAFState:
        is_new = states.epochs != before.epochs[None]
        is_new |= jnp.any(states.logits != before.logits[None], axis=-1)
        newest = jnp.argmax(is_new, axis=0)[None]
        logits = jnp.take_along_axis(states.logits, newest[..., None], axis=0)[0]
        return SAFState(logits, jnp.take_along_axis(states.epochs, newest, axis=0)[0])

    def losses(logits: jax.Array, indices: jax.Array, epoch: Any, state: SAFState) -> Any:
        if state.epochs.dtype != jnp.int32 or state.epochs.ndim != 2:
            raise ValueError(
                f"state.epochs is {state.epochs.dtype}{list(state.epochs.shape)}, not "
                f"int32[{num_examples}, {lag + 1}]: where a method takes the batch in slices, aux has "
                "a state for each. Do not average them: pass saf.merged(aux, before)."
            )
        epoch = jnp.asarray(epoch, jnp.int32)
        rows = jnp.where(indices < 0, num_examples, indices)  # -1 would be the last example
        before, now = (rows, (epoch - lag) % (lag + 1)), (rows, epoch % (lag + 1))
        old = state.logits.at[before].get(mode="fill", fill_value=0)
        known = state.epochs.at[before].get(mode="fill", fill_value=-1) == epoch - lag
        active = known & (epoch >= lag) & (epoch > start_epoch)
        kept = jax.lax.stop_gradient(logits).astype(state.logits.dtype)
        new = SAFState(
            state.logits.at[now].set(kept, mode="drop"), state.epochs.at[now].set(epoch, mode="drop")
        )
        return jnp.where(active, weight * _distance(old, logits, temperature), 0), new

    return SAFLoss(init, losses, merged)


def mesa_loss(
    weight: float = 0.8, temperature: float = 5.0, decay: float = 0.9998, start_epoch: int = 5
) -> MESALoss:
    """MESA: SAF with the outputs of a mean of the parameters in place of stored ones.

    `l_i + weight T^2 KL(softmax(z_i(mean) / T) || softmax(z_i / T))` in epochs after `start_epoch`;
    after each step `mean <- decay mean + (1 - decay) params`, from the first parameters on.
    Around the optimizer's part of the ordinary training step:

        def losses(params, batch):
            z, z_mean = (network(p, batch["image"]) for p in (params, mean))
            return cross_entropy(z, batch["label"]) + mesa.losses(z, z_mean, epoch)

        mean = mesa.update(params, mean)

    With batch norm, the mean network runs in evaluation mode, and on means of the running statistics:
    pass them with the parameters to `init` and `update`.

    Args:
      weight, temperature, start_epoch: as `saf_loss`.
      decay: of the mean, from 0 to 1.

    Cost:
      1 gradient and 1 forward pass per step; one parameter-sized buffer.

    References: as `saf_loss`; the end of the term is left out here too.
    """
    checks.number("decay", decay, low=0, high=1)

    def losses(logits: jax.Array, mean_logits: jax.Array, epoch: Any) -> jax.Array:
        distance = _distance(mean_logits, logits, temperature)
        return jnp.where(jnp.asarray(epoch) > start_epoch, weight * distance, 0)

    def update(params: Any, state: Any) -> Any:
        return optax.incremental_update(params, state, 1 - decay)

    return MESALoss(lambda params: jax.tree.map(jnp.array, params), losses, update)


def _distance(old: jax.Array, logits: jax.Array, temperature: float) -> jax.Array:
    old = jax.lax.stop_gradient(old).astype(logits.dtype)
    log_old, log_new = (jax.nn.log_softmax(z / temperature) for z in (old, logits))
    return temperature**2 * jnp.sum(jnp.exp(log_old) * (log_old - log_new), axis=-1)
