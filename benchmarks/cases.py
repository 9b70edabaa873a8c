"""Whole training steps as programs: plain SGD, Optax's own SAM, and this library's methods."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import optax

from experiments.running.training import mean_of_slices
from optax_sam import SharpnessAware

Step = Callable[[Any, Any, Any, Any], tuple[Any, Any, Any, jax.Array]]
"""`(params, stats, state, batch) -> (params, stats, state, loss)`; all but the batch are donated."""

Losses = Callable[[Any, Any, Any], tuple[jax.Array, Any]]

Build = Callable[[Losses, optax.GradientTransformation], tuple[Callable[[Any], Any], Step]]
"""From the losses and the base optimizer: the initial state from the parameters, and the step."""

RHO = 0.05
LEARNING_RATE = 1e-3


@dataclasses.dataclass(frozen=True)
class Case:
    """One training step.

    Attributes:
      name: in the table: the method, and how its gate stands.
      build: see `Build`.
      gradients: evaluations per step, in units of one full batch; None where chance or the gradients
        decide.
      straight: whether compiled FLOPs tell the evaluations; not where there is a loop or a
        conditional around a gradient, of which the compiler counts each body once, taken or not.
      calls: steps in one timed run, over which a gate is averaged.
      limits: other cases, and how many times their time this one may take.
      most_flops: the largest number of compiled FLOPs, relative to SGD.
    """

    name: str
    build: Build
    gradients: float | None
    straight: bool = True
    calls: int = 1
    limits: tuple[tuple[str, float], ...] = ()
    most_flops: float = math.inf


def usual_base() -> optax.GradientTransformation:
    """The base optimizer, where no other is named."""
    return optax.sgd(LEARNING_RATE, momentum=0.9)


def sgd(losses: Losses, base: optax.GradientTransformation) -> tuple[Callable[[Any], Any], Step]:
    """The plain training step that all others are compared with."""

    def step(params, stats, state, batch):
        (loss, stats), grads = _gradient(losses, stats, batch)(params)
        updates, state = base.update(grads, state, params)
        return optax.apply_updates(params, updates), stats, state, loss

    return base.init, step


def contrib_sam(losses: Losses, base: optax.GradientTransformation) -> tuple[Callable[[Any], Any], Step]:
    """SAM as Optax has it, in opaque mode: both gradients in one update."""
    tx = optax.contrib.sam(base, _contrib_ascent(), opaque_mode=True)

    def step(params, stats, state, batch):
        gradient = _gradient(losses, stats, batch)
        (loss, new), grads = gradient(params)
        updates, state = tx.update(grads, state, params, grad_fn=lambda params, _: gradient(params)[1])
        return optax.apply_updates(params, updates), new, state, loss

    return tx.init, step


def contrib_sam_transparent(
    losses: Losses, base: optax.GradientTransformation
) -> tuple[Callable[[Any], Any], Step]:
    """SAM as Optax has it, in transparent mode: two updates, one gradient each."""
    tx = optax.contrib.sam(base, _contrib_ascent(), sync_period=2)

    def step(params, stats, state, batch):
        gradient = _gradient(losses, stats, batch)
        (loss, new), grads = gradient(params)
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        updates, state = tx.update(gradient(params)[1], state, params)
        return optax.apply_updates(params, updates), new, state, loss

    return tx.init, step


def ours(method: SharpnessAware, perturb: bool | None = None) -> Build:
    """The training step of one of this library's methods, before the base optimizer."""
    return _with(method, lambda base: optax.chain(method, base), perturb)


def whole(optimizer: SharpnessAware) -> Build:
    """The training step of one of this library's optimizers, which need no base."""
    return _with(optimizer, lambda base: optimizer, None)


def with_surrogate(factory: Callable[[Any], SharpnessAware]) -> Build:
    """The training step of a method that needs a cheaper loss: here the network itself, the dearest."""

    def build(losses, base):
        def step(params, stats, state, batch):
            method = factory(lambda params, batch: losses(params, stats, batch))
            return ours(method)(losses, base)[1](params, stats, state, batch)

        return optax.chain(factory(losses), base).init, step

    return build


def with_outputs(factory: Callable[[Any], SharpnessAware]) -> Build:
    """The training step of a method that takes the network's outputs: here the losses themselves."""

    def build(losses, base):
        def step(params, stats, state, batch):
            method = factory(lambda params, batch: losses(params, stats, batch)[0])
            return ours(method)(losses, base)[1](params, stats, state, batch)

        return optax.chain(factory(losses), base).init, step

    return build


def always(method: SharpnessAware, name: str, gradients: float | None = 2, **more: Any) -> Case:
    """A method that does the same in every step."""
    return Case(name, ours(method), gradients, **more)


def gated(
    method: SharpnessAware,
    name: str,
    average: float | None = None,
    calls: int = 10,
    shut: float = 1.03,
    limits: tuple[tuple[str, float], ...] = (),
    part: float = 1.0,
) -> list[Case]:
    """A method with a gate: open, closed, and as the program decides over some steps.

    Args:
      method: the method.
      name: its name.
      average: gradients per step, where they are known.
      calls: steps over which the time is averaged.
      shut: how many times SGD's time a closed step may take.
      limits: of the average.
      part: share of the batch in each gradient.
    """
    return [
        Case(f"{name}, open", ours(method, True), 2 * part),
        Case(f"{name}, closed", ours(method, False), part, limits=(("sgd", shut),)),
        Case(name, ours(method), average, False, calls, limits),
    ]


def _with(method: SharpnessAware, optimizer: Callable[[Any], Any], perturb: bool | None) -> Build:
    extra: dict[str, Literal[True, False]] = {} if perturb is None else {"perturb": perturb}

    def build(losses, base):
        tx = optimizer(base)

        def step(params, stats, state, batch):
            def loss_fn(params, batch):
                return losses(params, stats, batch)

            first = method.value_and_grad(loss_fn, has_aux=True)
            (loss, new), grads, oracle = first(params, batch, state=state, indices=batch["index"])
            updates, state = tx.update(grads, state, params, oracle=oracle, **extra)
            return optax.apply_updates(params, updates), mean_of_slices(new, stats), state, loss

        return tx.init, step

    return build


def _gradient(losses: Losses, stats: Any, batch: Any) -> Callable[[Any], Any]:
    def loss_fn(params):
        values, new = losses(params, stats, batch)
        return values.mean(), new

    return jax.value_and_grad(loss_fn, has_aux=True)


def _contrib_ascent() -> optax.GradientTransformation:
    return optax.chain(optax.contrib.normalize(), optax.sgd(RHO))
