"""The training step, and the compiled programs of a run made of it.

Everything random follows from the seed and the step count in the state, so that a run goes on
from a checkpoint with the numbers it would have had. The programs are compiled ahead, and compile
time never hides in step time. Seed, learning rate and radii are arguments of the programs: one
compilation serves all seeds of a method.
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

import optax_sam
from experiments import methods, models
from experiments.augment import augment
from experiments.data import Data, Split
from experiments.inputs import Examples, Inputs, make_inputs
from experiments.settings import Settings


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
      model: the network.
      num_examples: training examples.
    """

    settings: Settings
    model: nn.Module
    num_examples: int

    @property
    def steps_per_epoch(self) -> int:
        """Full batches in one pass over the training examples."""
        return self.num_examples // self.settings.batch_size

    def optimizer(
        self, inputs: Inputs, surrogate_losses: Callable[[Any, Any], Any] | None = None
    ) -> tuple[Any, optax.GradientTransformation]:
        """The method (None for SGD), and the chain that it is the first link of, or the whole of.

        Weight decay comes after the method, as in the papers' code: it is not perturbed. It takes
        in all parameters, those of batch norm too.
        """
        numbers, settings = inputs.numbers, self.settings
        total_steps = settings.epochs * self.steps_per_epoch
        schedule = optax.cosine_decay_schedule(numbers["learning_rate"], total_steps)
        base = (
            optax.add_decayed_weights(numbers["weight_decay"]),
            optax.sgd(schedule, momentum=settings.momentum),
        )
        run = methods.Run(
            num_examples=self.num_examples,
            total_steps=total_steps,
            momentum=settings.momentum,
            learning_rate=schedule,
            base=optax.chain(*base),
            surrogate_losses=surrogate_losses or (lambda params, batch: batch),
            seed=numbers["seed"],
            steps_per_epoch=self.steps_per_epoch,
            batch_size=settings.batch_size,
            weight_decay=settings.weight_decay,
        )
        method = methods.make(settings, run, numbers)
        if method is None:
            return None, optax.chain(*base)
        return method, method if settings.method in methods.OPTIMIZERS else optax.chain(method, *base)

    def init(self, inputs: Inputs) -> TrainState:
        """The state before the first step."""
        images = jnp.zeros((1, *inputs.examples.train.image.shape[1:]))
        variables = self.model.init(_keys(inputs)[0], images, train=False)
        _, optimizer = self.optimizer(inputs)
        return TrainState(
            params=variables["params"],
            batch_stats=variables.get("batch_stats", {}),
            opt_state=optimizer.init(variables["params"]),
            step=jnp.int32(0),
            loss_sum=jnp.float32(0),
        )

    def steps(self, state: TrainState, inputs: Inputs, count: jax.Array, *, whole_batch: bool) -> TrainState:
        """Takes `count` steps in one loop on the device; the order of examples is one epoch's."""
        _, order_key, augment_key = _keys(inputs)
        epoch, position = jnp.divmod(state.step, self.steps_per_epoch)
        order = jax.random.permutation(jax.random.fold_in(order_key, epoch), self.num_examples)
        state = state._replace(loss_sum=jnp.where(position == 0, 0.0, state.loss_sum))

        def body(_: jax.Array, state: TrainState) -> TrainState:
            size = self.settings.batch_size
            first = state.step % self.steps_per_epoch * size
            indices = jax.lax.dynamic_slice(order, (first,), (size,))
            key = jax.random.fold_in(augment_key, state.step)
            return self.step(state, inputs, indices, key, whole_batch)

        return jax.lax.fori_loop(0, count, body, state)

    def step(
        self,
        state: TrainState,
        inputs: Inputs,
        indices: jax.Array,
        key: jax.Array,
        whole_batch: bool,
    ) -> TrainState:
        """One training step on the examples with the given indices [batch]."""
        train = inputs.examples.train
        images = inputs.examples.standardized(train.image[indices])
        images = augment(key, images, self.settings.augment or ())
        batch = {"image": images, "label": train.label[indices]}

        def losses(params: Any, batch: dict[str, jax.Array]) -> tuple[jax.Array, Any]:
            variables = {"params": params, "batch_stats": state.batch_stats}
            logits, changed = self.model.apply(variables, batch["image"], train=True, mutable=["batch_stats"])
            return cross_entropy(logits, batch["label"]), changed.get("batch_stats", {})

        def surrogate_losses(params: Any, batch: dict[str, jax.Array]) -> tuple[jax.Array, Any]:
            # The same network on images of half the side, for methods that ask for a cheaper loss. In
            # training, batch norm reads no running statistics, and those of other images are not kept.
            small = batch | {"image": nn.avg_pool(batch["image"], (2, 2), strides=(2, 2))}
            return losses(params, small)[0], state.batch_stats

        method, optimizer = self.optimizer(inputs, surrogate_losses)
        if method is None:
            (loss, batch_stats), grads = mean_gradient(losses)(state.params, batch)
            extra = {}
        else:
            (loss, batch_stats), grads, oracle = method.value_and_grad(losses, has_aux=True)(
                state.params,
                batch,
                state=state.opt_state,
                indices=indices,
                whole_batch=whole_batch,
            )
            # Methods that cut the batch into slices return the statistics of each.
            batch_stats = jax.tree.map(
                lambda new, old: new.mean(0) if new.ndim > old.ndim else new, batch_stats, state.batch_stats
            )
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
        """Mean loss and accuracy on the whole test set, with the running batch statistics."""
        variables = {"params": params, "batch_stats": batch_stats}

        def sums(batch: Split) -> jax.Array:
            logits: Any = self.model.apply(variables, examples.standardized(batch.image), train=False)
            losses = cross_entropy(logits, jnp.maximum(batch.label, 0))
            right = (logits.argmax(-1) == batch.label).astype(jnp.float32)
            real = (batch.label >= 0).astype(jnp.float32)
            return jnp.stack([losses @ real, right @ real, real.sum()])

        loss_sum, right_sum, num_examples = jax.lax.map(sums, examples.test).sum(0)
        return loss_sum / num_examples, right_sum / num_examples


def mean_gradient(losses: Callable[..., Any]) -> Callable[..., Any]:
    """Value, aux and gradient of the mean loss, as fast in a loop on the CPU as outside one."""

    def mean_loss(params: Any, batch: Any) -> tuple[jax.Array, Any]:
        values, aux = losses(params, batch)
        return values.mean(), aux

    return optax_sam.canonical_convolutions(jax.value_and_grad(mean_loss, has_aux=True))


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """One loss per example, shape [batch]."""
    return optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), labels)


@dataclasses.dataclass(frozen=True)
class Programs:
    """A trainer's functions, compiled for the shapes of one data set.

    Attributes:
      trainer: what was compiled.
      init: inputs -> first state.
      first_steps: (state, inputs, count) -> state, in the first epoch; donates the state.
      steps: the same in the later epochs.
      evaluate: (params, batch_stats, examples) -> (loss, accuracy).
      compile_seconds: what all this took.
    """

    trainer: Trainer
    init: Callable[[Inputs], TrainState]
    first_steps: Callable[[TrainState, Inputs, np.int32], TrainState]
    steps: Callable[[TrainState, Inputs, np.int32], TrainState]
    evaluate: Callable[[Any, Any, Examples], tuple[jax.Array, jax.Array]]
    compile_seconds: float

    @property
    def steps_per_epoch(self) -> int:
        """Steps in one epoch."""
        return self.trainer.steps_per_epoch


def compile_programs(settings: Settings, data: Data) -> Programs:
    """Compiles a run ahead of its first step."""
    start = time.perf_counter()
    side, dtype = data.train.image.shape[1], jnp.dtype(settings.dtype)
    model = models.make(settings.model, data.num_classes, side, dtype)
    trainer = Trainer(settings, model, len(data.train.label))
    inputs = make_inputs(settings, data)
    state = jax.eval_shape(trainer.init, inputs)

    def steps(whole_batch: bool) -> Callable[[TrainState, Inputs, np.int32], TrainState]:
        program = functools.partial(trainer.steps, whole_batch=whole_batch)
        return jax.jit(program, donate_argnums=0).lower(state, inputs, np.int32(1)).compile()

    later = steps(whole_batch=False)
    first = steps(whole_batch=True) if settings.method in methods.WHOLE_FIRST_EPOCH else later
    evaluate = jax.jit(trainer.evaluate).lower(state.params, state.batch_stats, inputs.examples)
    evaluate = evaluate.compile()
    init = jax.jit(trainer.init).lower(inputs).compile()
    return Programs(trainer, init, first, later, evaluate, time.perf_counter() - start)


def _keys(inputs: Inputs) -> jax.Array:
    """Keys of the initial weights, of the order of examples, and of augmentation."""
    return jax.random.split(jax.random.key(inputs.numbers["seed"]), 3)
