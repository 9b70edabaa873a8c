"""The base optimizer, which stands behind every method in the chain."""

from typing import Any

import optax

from experiments.settings import Setup


def schedule_of(settings: Setup, learning_rate: Any, steps_per_epoch: int) -> optax.Schedule:
    """A linear rise from 0 in the first epochs, then a cosine to 0, or a constant."""
    total = settings.epochs * steps_per_epoch
    warm = min(round(settings.warmup_epochs * steps_per_epoch), total - 1)
    if settings.schedule == "cosine":
        falling = optax.cosine_decay_schedule(learning_rate, total - warm)
    else:
        falling = optax.constant_schedule(learning_rate)
    if not warm:
        return falling
    return optax.join_schedules([optax.linear_schedule(0.0, learning_rate, warm), falling], [warm])


def base_optimizer(
    settings: Setup, learning_rate: optax.Schedule, weight_decay: Any
) -> optax.GradientTransformation:
    """What follows the method: clipping, weight decay, momentum, the step.

    Weight decay is not perturbed, as in most of the papers' code, unless it is a term of the loss. It
    takes in all parameters, those of batch norm too.
    """
    first = [optax.clip_by_global_norm(settings.clip_norm)] if settings.clip_norm else []
    if settings.optimizer == "adamw":
        return optax.chain(*first, optax.adamw(learning_rate, settings.momentum, weight_decay=weight_decay))
    if settings.optimizer == "lamb":
        return optax.chain(*first, optax.lamb(learning_rate, settings.momentum, weight_decay=weight_decay))
    decay = [] if settings.decay_in_loss else [optax.add_decayed_weights(weight_decay)]
    sgd = optax.sgd(learning_rate, momentum=settings.momentum, nesterov=settings.nesterov)
    return optax.chain(*first, *decay, sgd)
