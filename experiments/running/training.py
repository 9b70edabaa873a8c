"""The training step.

Everything random follows from the seed and the step count in the state, so that a run goes on
from a checkpoint with the numbers it would have had.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax.sharding import Mesh

import optax_sam
from experiments import methods
from experiments.data.arrays import Batch, rows
from experiments.methods.adapters import NOISE_SCALE, noise_at
from experiments.methods.baselines import AveragedState
from experiments.methods.last_layer import penalty_of, with_penalty
from experiments.methods.optimizers import base_optimizer, schedule_of
from experiments.models.adapted import completed
from experiments.models.network import Network
from experiments.running.devices import split_rows
from experiments.running.inputs import Examples, Inputs
from experiments.settings import Settings
from experiments.tasks import Task


class TrainState(NamedTuple):
    """All that a run needs to go on.

    Attributes:
      params: the weights.
      batch_stats: running means and variances of batch norm, from the clean first passes only.
      opt_state: state of the whole optimizer chain.
      step: int32 scalar, steps done.
      loss_sum: float32 scalar, sum of the steps' losses since the epoch began.
    """

    params: Any
    batch_stats: Any
    opt_state: optax.OptState
    step: jax.Array
    loss_sum: jax.Array


@dataclasses.dataclass(frozen=True)
class Trainer:
    """The pure functions of a run, to be compiled.

    The last incomplete batch of an epoch is dropped, not filled up: padding rows would enter the
    statistics of batch norm, and every step is to cost the same. Each epoch drops other examples.

    Attributes:
      settings: of the run; its seed, learning rate, weight decay and radii are not read here but
        from the inputs (bSAM's prior aside, which the program depends on).
      network: what is trained.
      task: what it is to learn.
      num_examples: training examples.
      mesh: the devices that share the work.
    """

    settings: Settings
    network: Network
    task: Task
    num_examples: int
    mesh: Mesh

    @property
    def steps_per_epoch(self) -> int:
        """Full batches in one pass over the training examples."""
        return self.num_examples // self.settings.batch_size

    def base(self, inputs: Inputs) -> tuple[optax.Schedule, optax.GradientTransformation]:
        """The schedule of the learning rate, and the base optimizer."""
        schedule = schedule_of(self.settings, inputs.numbers["learning_rate"], self.steps_per_epoch)
        return schedule, base_optimizer(self.settings, schedule, inputs.numbers["weight_decay"])

    def optimizer(
        self, inputs: Inputs, surrogate_losses: Callable[[Any, Any], Any] | None = None
    ) -> tuple[Any, optax.GradientTransformation]:
        """The method (None for SGD), and the chain that it is the first link of, or the whole of."""
        numbers, settings = inputs.numbers, self.settings
        schedule, base = self.base(inputs)
        run = methods.Run(
            num_examples=self.num_examples,
            total_steps=settings.epochs * self.steps_per_epoch,
            momentum=settings.momentum,
            learning_rate=schedule,
            base=base,
            surrogate_losses=surrogate_losses or (lambda params, batch: batch),
            seed=numbers["seed"],
            steps_per_epoch=self.steps_per_epoch,
            batch_size=settings.batch_size,
            weight_decay=settings.weight_decay,
        )
        method = methods.make(settings, run, numbers)
        if method is None:
            return None, base
        if settings.method in methods.BASELINES:
            return None, method
        return method, method if settings.method in methods.WHOLE_OPTIMIZERS else optax.chain(method, base)

    def init(self, inputs: Inputs) -> TrainState:
        """The state before the first step."""
        first = rows(inputs.examples.train, slice(self.settings.batch_size))
        batch = self.task.prepare(first, inputs.examples.constants, None)
        params, batch_stats = self.network.init(_keys(inputs)[0], batch[self.task.inputs])
        params = params | inputs.pretrained
        _, optimizer = self.optimizer(inputs)
        opt_state = optimizer.init(params)
        if isinstance(opt_state, AveragedState):
            opt_state = opt_state._replace(statistics=batch_stats)
        return TrainState(params, batch_stats, opt_state, jnp.int32(0), jnp.float32(0))

    def steps(self, state: TrainState, inputs: Inputs, count: jax.Array, *, whole_batch: bool) -> TrainState:
        """Takes `count` steps in one loop on the device; the order of examples is one epoch's."""
        epoch, position = jnp.divmod(state.step, self.steps_per_epoch)
        order = jax.random.permutation(jax.random.fold_in(_keys(inputs)[1], epoch), self.num_examples)
        state = state._replace(loss_sum=jnp.where(position == 0, 0.0, state.loss_sum))

        def body(_: jax.Array, state: TrainState) -> TrainState:
            size = self.settings.batch_size
            first = state.step % self.steps_per_epoch * size
            indices = split_rows(jax.lax.dynamic_slice(order, (first,), (size,)), self.mesh)
            return self.step(state, inputs, rows(inputs.examples.train, indices), indices, whole_batch)

        return jax.lax.fori_loop(0, count, body, state)

    def streamed_step(
        self, state: TrainState, inputs: Inputs, batch: Batch, *, whole_batch: bool
    ) -> TrainState:
        """One step on a batch that comes from outside, `index` being the numbers of its examples."""
        first = state.step % self.steps_per_epoch == 0
        state = state._replace(loss_sum=jnp.where(first, 0.0, state.loss_sum))
        examples = {name: array for name, array in batch.items() if name != "index"}
        return self.step(state, inputs, examples, batch["index"], whole_batch)

    def step(
        self, state: TrainState, inputs: Inputs, examples: Batch, indices: jax.Array, whole_batch: bool
    ) -> TrainState:
        """One training step on some examples, and their numbers in the data set [batch]."""
        key = jax.random.fold_in(_keys(inputs)[2], state.step)
        change_key, network_key = jax.random.split(key)
        batch = split_rows(self.task.prepare(examples, inputs.examples.constants, change_key), self.mesh)
        decay = inputs.numbers["weight_decay"] if self.settings.decay_in_loss else None
        noise = inputs.numbers.get("noise_scale", NOISE_SCALE)
        noise = noise_at(self.settings.method, noise, state.step, self.settings.epochs * self.steps_per_epoch)
        network = completed(self.network, inputs.examples.frozen, noise)
        penalty = penalty_of(self.settings.method, inputs.numbers)

        def losses(params: Any, batch: Batch) -> tuple[jax.Array, Any]:
            given = batch[self.task.inputs]
            apply = with_penalty(network.apply, penalty)
            (outputs, batch_stats), extra = apply(params, state.batch_stats, given, network_key)
            values = self.task.losses(outputs, batch)
            values = values if extra is None else values + extra
            if decay is not None:
                values = values + 0.5 * decay * optax.tree.norm(params, squared=True)
            return values, batch_stats

        def surrogate_losses(params: Any, batch: Batch) -> tuple[jax.Array, Any]:
            # The same network on images of half the side, for methods that ask for a cheaper loss. In
            # training, batch norm reads no running statistics, and those of other images are not kept.
            small = batch | {"image": nn.avg_pool(batch["image"], (2, 2), strides=(2, 2))}
            return losses(params, small)[0], state.batch_stats

        method, optimizer = self.optimizer(inputs, surrogate_losses)
        if method is None:
            (loss, batch_stats), grads = mean_gradient(losses)(state.params, batch)
            optimizer = optax.with_extra_args_support(optimizer)
            extra = {"batch_stats": batch_stats}
        else:
            (loss, batch_stats), grads, oracle = method.value_and_grad(losses, has_aux=True)(
                state.params,
                batch,
                state=state.opt_state,
                indices=indices,
                whole_batch=whole_batch,
            )
            batch_stats = mean_of_slices(batch_stats, state.batch_stats)
            extra = {"oracle": oracle}
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params, **extra)
        return TrainState(
            params=optax.apply_updates(state.params, updates),
            batch_stats=batch_stats,
            opt_state=opt_state,
            step=state.step + 1,
            loss_sum=state.loss_sum + loss,
        )

    def evaluate(self, params: Any, batch_stats: Any, examples: Examples) -> tuple[jax.Array, jax.Array]:
        """Mean loss and score on the whole test set, with the running batch statistics.

        Where the task has no score, the second is NaN.
        """
        sums = jax.lax.map(lambda batch: self.sums(params, batch_stats, examples, batch), examples.test).sum(
            0
        )
        return sums[0] / sums[2], sums[1] / sums[2]

    def sums(self, params: Any, batch_stats: Any, examples: Examples, part: Batch) -> jax.Array:
        """Sums of the losses and the scores of a test batch, and its examples: [3]."""
        batch = split_rows(self.task.prepare(part, examples.constants, None), self.mesh)
        network = completed(self.network, examples.frozen)
        outputs, _ = network.apply(params, batch_stats, batch[self.task.inputs], None)
        losses, scores = self.task.losses(outputs, batch), self.task.scores(outputs, batch)
        real = batch["real"].astype(jnp.float32)
        score = jnp.nan if scores is None else scores @ real
        return jnp.stack([losses @ real, score, real.sum()])


def judged(state: TrainState) -> tuple[Any, Any]:
    """The parameters and statistics that the network is judged by: averages, where a method keeps them."""
    if isinstance(state.opt_state, AveragedState):
        return state.opt_state.average, state.opt_state.statistics
    return state.params, state.batch_stats


def mean_gradient(losses: Callable[..., Any]) -> Callable[..., Any]:
    """Value, aux and gradient of the mean loss, as fast in a loop on the CPU as outside one."""

    def mean_loss(params: Any, batch: Any) -> tuple[jax.Array, Any]:
        values, aux = losses(params, batch)
        return values.mean(), aux

    return optax_sam.canonical_convolutions(jax.value_and_grad(mean_loss, has_aux=True))


def _keys(inputs: Inputs) -> jax.Array:
    """Keys of the initial weights, of the order of examples, and of everything else."""
    return jax.random.split(jax.random.key(inputs.numbers["seed"]), 3)


def mean_of_slices(new: Any, old: Any) -> Any:
    """Batch statistics as they were; methods that cut the batch into slices return those of each."""
    return jax.tree.map(lambda x, y: x.mean(0) if x.ndim > y.ndim else x, new, old)
